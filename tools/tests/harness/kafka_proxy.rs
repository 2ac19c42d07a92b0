//! A way to a broker that knows Kafka's frames, and spoils them as it is told.
//!
//! Start the broker with `advertised.listeners` on the proxy's port. Only clients whose `client.id` begins with `outrider` have trouble:
//! a test's own reader passes.

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::kafka_frames::{Produce, client_id, produce};

/// How long a first request is held for a second one to come.
const LONE_PATIENCE: Duration = Duration::from_millis(500);

/// How many first requests of one connection are held at a time: librdkafka has five on their way at most, and the second ones need room.
const HELD_MAX: usize = 2;

/// Clients that have trouble.
const SPOILED: &str = "outrider";

type Partition = (String, i32);

/// What to do, and what was done. All connections look at it.
#[derive(Debug, Default)]
struct Rules {
    broker_port: Option<u16>,
    /// Beginnings of the topics whose first requests are refused, and the error.
    refuse_first: Option<(Vec<String>, i16)>,
    /// Partitions that have had their first request in this round.
    begun: HashSet<Partition>,
    /// By topic, the error that each produce request gets, and how many times.
    answers: HashMap<String, (i16, u64)>,
    bytes_per_sec: Option<u64>,
    /// When the throttled way is free again.
    free_at: Option<Instant>,
}

#[derive(Debug, Default)]
struct Shared {
    rules: Mutex<Rules>,
    silent: AtomicBool,
    passed: AtomicU64,
    alone: AtomicU64,
    answered: AtomicU64,
    unreadable: AtomicU64,
}

/// How often something was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    /// First requests that were refused while the second one was on its way, and let pass.
    pub(crate) second_passed: u64,
    /// First requests that were refused without a second one.
    pub(crate) alone: u64,
    /// Requests that were answered with an error.
    pub(crate) answered: u64,
}

/// See the module. It ends with the runtime that it was started on.
#[derive(Debug)]
pub(crate) struct KafkaProxy {
    port: u16,
    shared: Arc<Shared>,
    generation: watch::Sender<u64>,
}

impl KafkaProxy {
    /// Listens; leads nowhere until [`KafkaProxy::lead_to`].
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let (generation, watched) = watch::channel(0);
        let all = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (all, mut watched) = (Arc::clone(&all), watched.clone());
                watched.mark_unchanged();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = connect(client, all) => {}
                        _ = watched.changed() => {}
                    }
                });
            }
        });
        Ok(Self { port, shared, generation })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Leads new connections to this port of loopback.
    pub(crate) fn lead_to(&self, port: u16) {
        self.shared.rules().broker_port = Some(port);
    }

    /// Begins a round. In it the first produce request to each partition of topics that begin with one of `topics` is refused with `error`
    /// once the second one is on its way, and that one passes. A first request that stays alone is refused after half a second.
    pub(crate) fn refuse_first(&self, topics: &[&str], error: i16) {
        let mut rules = self.shared.rules();
        rules.refuse_first = Some((topics.iter().map(|topic| (*topic).to_owned()).collect(), error));
        rules.begun.clear();
    }

    /// Ends the rounds.
    pub(crate) fn refuse_no_more(&self) {
        self.shared.rules().refuse_first = None;
    }

    /// Answers the next `times` produce requests to a topic with `error`; the broker sees none of them.
    pub(crate) fn answer(&self, topic: &str, error: i16, times: u64) {
        self.shared.rules().answers.insert(topic.to_owned(), (error, times));
    }

    /// Lets a topic's produce requests pass again.
    pub(crate) fn answer_no_more(&self, topic: &str) {
        self.shared.rules().answers.remove(topic);
    }

    /// Lets so many bytes a second pass to the broker, all connections together.
    pub(crate) fn throttle(&self, bytes_per_sec: Option<u64>) {
        self.shared.rules().bytes_per_sec = bytes_per_sec;
    }

    /// Lets nothing pass, on connections that stay open. They never recover; new ones do, once this is over.
    pub(crate) fn silence(&self, silent: bool) {
        self.shared.silent.store(silent, Ordering::SeqCst);
    }

    /// Closes all connections.
    pub(crate) fn cut(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// What was done so far.
    ///
    /// # Panics
    /// When a produce request came that this proxy cannot read.
    pub(crate) fn counts(&self) -> Counts {
        let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        assert_eq!(count(&self.shared.unreadable), 0, "produce requests that the proxy cannot read");
        Counts {
            second_passed: count(&self.shared.passed),
            alone: count(&self.shared.alone),
            answered: count(&self.shared.answered),
        }
    }
}

impl Shared {
    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The error that this request is answered with.
    fn answer_to(&self, request: &Produce) -> Option<i16> {
        let mut rules = self.rules();
        let (error, times) = rules.answers.get_mut(&request.topic)?;
        *times = times.checked_sub(1)?;
        self.answered.fetch_add(1, Ordering::SeqCst);
        Some(*error)
    }

    /// The error to refuse this request with, if it is its partition's first one of the round.
    fn refusal_of_first(&self, request: &Produce) -> Option<i16> {
        let mut rules = self.rules();
        let (topics, error) = rules.refuse_first.as_ref()?;
        let error = topics.iter().any(|topic| request.topic.starts_with(topic)).then_some(*error)?;
        rules.begun.insert((request.topic.clone(), request.partition)).then_some(error)
    }

    /// When a throttled frame has passed.
    fn passes_at(&self, bytes: usize) -> Option<Instant> {
        let mut rules = self.rules();
        let micros = bytes as u64 * 1_000_000 / rules.bytes_per_sec?;
        let from = rules.free_at.map_or_else(Instant::now, |free| free.max(Instant::now()));
        let until = from + Duration::from_micros(micros);
        rules.free_at = Some(until);
        Some(until)
    }
}

/// A connection's way back, and its requests that are held.
struct Connection {
    shared: Arc<Shared>,
    back: tokio::sync::Mutex<OwnedWriteHalf>,
    held: Mutex<HashMap<Partition, (Produce, i16)>>,
    spoiled: AtomicBool,
    silent: AtomicBool,
}

async fn connect(client: TcpStream, shared: Arc<Shared>) -> Result<()> {
    let port = shared.rules().broker_port.context("the proxy leads nowhere yet")?;
    let broker = TcpStream::connect(("127.0.0.1", port)).await?;
    for stream in [&client, &broker] {
        stream.set_nodelay(true)?;
    }
    let (requests, back) = client.into_split();
    let (answers, forth) = broker.into_split();
    let connection = Arc::new(Connection {
        shared,
        back: tokio::sync::Mutex::new(back),
        held: Mutex::default(),
        spoiled: AtomicBool::new(false),
        silent: AtomicBool::new(false),
    });
    tokio::select! {
        ended = forward(Arc::clone(&connection), requests, forth) => ended,
        ended = hand_back(&connection, answers) => ended,
    }
}

/// A frame, its length included; none at the end of the connection.
async fn read_frame(from: &mut OwnedReadHalf) -> Result<Option<Vec<u8>>> {
    let length = match from.read_u32().await {
        Ok(length) => length,
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut frame = length.to_be_bytes().to_vec();
    frame.resize(4 + usize::try_from(length)?, 0);
    from.read_exact(&mut frame[4..]).await?;
    Ok(Some(frame))
}

async fn hand_back(connection: &Connection, mut answers: OwnedReadHalf) -> Result<()> {
    while let Some(frame) = read_frame(&mut answers).await? {
        if !connection.is_silent() {
            connection.back.lock().await.write_all(&frame).await?;
        }
    }
    Ok(())
}

async fn forward(connection: Arc<Connection>, mut requests: OwnedReadHalf, mut forth: OwnedWriteHalf) -> Result<()> {
    while let Some(frame) = read_frame(&mut requests).await? {
        let spoiled = client_id(&frame[4..])?.starts_with(SPOILED);
        connection.spoiled.store(spoiled, Ordering::SeqCst);
        if connection.is_silent() {
            continue;
        }
        if spoiled {
            let request = produce(&frame[4..]).inspect_err(|_| {
                connection.shared.unreadable.fetch_add(1, Ordering::SeqCst);
            })?;
            if let Some(request) = request
                && !passes(&connection, request).await?
            {
                continue;
            }
            if let Some(at) = connection.shared.passes_at(frame.len()) {
                tokio::time::sleep_until(at).await;
            }
        }
        forth.write_all(&frame).await?;
    }
    Ok(())
}

/// Whether a produce request passes; when it does not, it was answered or is held.
async fn passes(connection: &Arc<Connection>, request: Produce) -> Result<bool> {
    if let Some(error) = connection.shared.answer_to(&request) {
        connection.refuse(&request, error).await?;
        return Ok(false);
    }
    let partition = (request.topic.clone(), request.partition);
    let first = connection.held().remove(&partition);
    if let Some((first, error)) = first {
        connection.shared.passed.fetch_add(1, Ordering::SeqCst);
        connection.refuse(&first, error).await?;
        return Ok(true);
    }
    let Some(error) = connection.shared.refusal_of_first(&request) else { return Ok(true) };
    let correlation = request.correlation;
    {
        let mut held = connection.held();
        if held.len() >= HELD_MAX {
            return Ok(true);
        }
        held.insert(partition.clone(), (request, error));
    }
    tokio::spawn(refuse_if_alone(Arc::clone(connection), partition, correlation));
    Ok(false)
}

/// Refuses a first request when the second one does not come. The partition may hold another one by then, of the next round.
async fn refuse_if_alone(connection: Arc<Connection>, partition: Partition, correlation: i32) {
    tokio::time::sleep(LONE_PATIENCE).await;
    let alone = {
        let mut held = connection.held();
        let is_it = held.get(&partition).is_some_and(|(request, _)| request.correlation == correlation);
        if is_it { held.remove(&partition) } else { None }
    };
    if let Some((alone, error)) = alone {
        connection.shared.alone.fetch_add(1, Ordering::SeqCst);
        // The connection may be closed by now.
        let _ = connection.refuse(&alone, error).await;
    }
}

impl Connection {
    fn held(&self) -> MutexGuard<'_, HashMap<Partition, (Produce, i16)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_silent(&self) -> bool {
        if self.spoiled.load(Ordering::SeqCst) && self.shared.silent.load(Ordering::SeqCst) {
            self.silent.store(true, Ordering::SeqCst);
        }
        self.silent.load(Ordering::SeqCst)
    }

    async fn refuse(&self, request: &Produce, error: i16) -> Result<()> {
        Ok(self.back.lock().await.write_all(&request.refusal(error)).await?)
    }
}
