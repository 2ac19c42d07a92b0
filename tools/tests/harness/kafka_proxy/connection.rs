//! One connection of the proxy: frames pass in both directions, unless a rule says otherwise.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::{Partition, Shared};
use crate::harness::kafka_frames::{Produce, api_key, client_id, produce};

/// How long a first request is held for a second one to come.
const LONE_PATIENCE: Duration = Duration::from_millis(500);

/// How many first requests of one connection are held at a time: librdkafka has five on their way at most, and the second ones need room.
const HELD_MAX: usize = 2;

/// Clients that have trouble.
const SPOILED: &str = "outrider";

/// A connection's way back, and its requests that are held.
struct Connection {
    shared: Arc<Shared>,
    back: tokio::sync::Mutex<OwnedWriteHalf>,
    held: Mutex<HashMap<Partition, (Produce, i16)>>,
    spoiled: AtomicBool,
    silent: AtomicBool,
}

/// Passes frames until one side ends.
pub(super) async fn connect(client: TcpStream, shared: Arc<Shared>) -> Result<()> {
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
            if let Some(delay) = connection.shared.delay_of(api_key(&frame[4..])?) {
                tokio::time::sleep(delay).await;
            }
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
