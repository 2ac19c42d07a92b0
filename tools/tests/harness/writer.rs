//! A service that writes events at a steady pace, by SQL, each in its order.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use rand::RngExt;
use rand::distr::Alphanumeric;
use sqlx::PgPool;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Between two statements.
const PACE: Duration = Duration::from_millis(20);

/// By aggregate type and id, the highest version that was written; versions begin at 1 and have no gaps.
pub(crate) type Written = HashMap<String, HashMap<String, i64>>;

/// What to write.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// Aggregate types, in turn.
    pub(crate) types: Vec<String>,
    /// Aggregates of each type, in turn.
    pub(crate) keys: u64,
    /// Begins each aggregate's id.
    pub(crate) key_prefix: String,
    /// Events a second, all types together.
    pub(crate) per_sec: u64,
    /// Length of the random text in each payload.
    pub(crate) payload_bytes: usize,
}

impl Load {
    pub(crate) fn new(types: &[&str], per_sec: u64) -> Self {
        let types = types.iter().map(|name| (*name).to_owned()).collect();
        Self { types, keys: 40, key_prefix: "k".to_owned(), per_sec, payload_bytes: 200 }
    }
}

/// Rows for one statement.
#[derive(Default)]
struct Rows {
    types: Vec<String>,
    keys: Vec<String>,
    versions: Vec<i64>,
    texts: Vec<String>,
}

/// Writes a statement's rows. Each payload says when it was written, in microseconds since 1970.
async fn insert(pool: &PgPool, rows: Rows) -> Result<()> {
    sqlx::query(
        "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
         SELECT gen_random_uuid(), t, k, v, 'thing.changed',
            json_build_object('at', (extract(epoch FROM clock_timestamp()) * 1e6)::bigint, 'text', x)
         FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[]) r(t, k, v, x)",
    )
    .bind(rows.types)
    .bind(rows.keys)
    .bind(rows.versions)
    .bind(rows.texts)
    .execute(pool)
    .await?;
    Ok(())
}

/// The next rows of a load, and what they add up to.
struct Source {
    load: Load,
    next: u64,
    written: Written,
}

impl Source {
    fn new(load: Load) -> Self {
        Self { load, next: 0, written: Written::new() }
    }

    fn take(&mut self, count: u64) -> Rows {
        let mut rows = Rows::default();
        for _ in 0..count {
            let types = self.load.types.len() as u64;
            let of_type = &self.load.types[usize::try_from(self.next % types).unwrap_or(0)];
            let key = format!("{}{}", self.load.key_prefix, (self.next / types) % self.load.keys);
            let versions = self.written.entry(of_type.clone()).or_default();
            let version = versions.entry(key.clone()).or_default();
            *version += 1;
            rows.versions.push(*version);
            rows.types.push(of_type.clone());
            rows.keys.push(key);
            // Random, so that no codec makes it smaller.
            rows.texts
                .push(rand::rng().sample_iter(Alphanumeric).take(self.load.payload_bytes).map(char::from).collect());
            self.next += 1;
        }
        rows
    }
}

/// Writes so many events of a load at once, and says what they are.
pub(crate) async fn write_backlog(pool: &PgPool, load: Load, count: u64) -> Result<Written> {
    let mut source = Source::new(load);
    let mut rest = count;
    while rest > 0 {
        let part = rest.min(1_000);
        insert(pool, source.take(part)).await?;
        rest -= part;
    }
    Ok(source.written)
}

/// Writes until it is stopped.
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<Mutex<Written>>,
    task: JoinHandle<Result<()>>,
}

impl Writer {
    pub(crate) fn start(pool: &PgPool, load: Load) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Written::new())));
        let task = tokio::spawn(write(pool.clone(), load, Arc::clone(&stop), Arc::clone(&written)));
        Self { stop, written, task }
    }

    /// What is committed by now.
    pub(crate) fn written(&self) -> Written {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it, and says what it has written.
    pub(crate) async fn stop(self) -> Result<Written> {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await??;
        Ok(self.written.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

async fn write(pool: PgPool, load: Load, stop: Arc<AtomicBool>, written: Arc<Mutex<Written>>) -> Result<()> {
    let per_sec = load.per_sec;
    let mut source = Source::new(load);
    let mut tick = interval(PACE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let begun = Instant::now();
    while !stop.load(Ordering::SeqCst) {
        tick.tick().await;
        let millis = u64::try_from(begun.elapsed().as_millis())?;
        let due = (millis * per_sec / 1_000).saturating_sub(source.next);
        // Held up, it catches up within a few rounds.
        insert(&pool, source.take(due.min(per_sec))).await?;
        source.written.clone_into(&mut written.lock().unwrap_or_else(PoisonError::into_inner));
    }
    Ok(())
}

/// Adds what one writer wrote to what another one wrote. They must not share a type.
pub(crate) fn together(writings: impl IntoIterator<Item = Written>) -> Written {
    writings.into_iter().flatten().collect()
}
