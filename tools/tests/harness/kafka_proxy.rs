//! A way to a broker that knows Kafka's frames, and spoils them as it is told.
//!
//! Start the broker with `advertised.listeners` on the proxy's port. Only clients whose `client.id` begins with `outrider` have trouble:
//! a test's own reader passes.

mod connection;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

use super::kafka_frames::Produce;
use connection::connect;

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
    /// How long requests wait before they pass, by their `api_key`.
    held_back: HashMap<i16, Duration>,
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

    /// Lets each request of this `api_key` wait so long before it passes, and those behind it on its connection with it.
    pub(crate) fn hold_back(&self, api_key: i16, delay: Duration) {
        self.shared.rules().held_back.insert(api_key, delay);
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

    fn delay_of(&self, api_key: i16) -> Option<Duration> {
        self.rules().held_back.get(&api_key).copied()
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
