//! A session: one connection, one producer, and the lanes held meanwhile.
//!
//! Whatever fails, fails the session as a whole. The next one starts from what is settled in Postgres, with raised tokens and a new
//! producer, so there is no half-broken state to reason about. In particular nothing in memory outlives a lost connection: after a
//! fail-over the new primary may know less than this relay has seen.

mod leases;
mod publish;

use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use sqlx::pool::PoolConnection;
use sqlx::{PgPool, Postgres};

use crate::config::RelayConfig;
use crate::lanes::cursor::BadSnapshot;
use crate::lanes::{HeldLane, LANES, Snapshot};
use crate::metrics::Metrics;
use crate::outbox;
use crate::publisher::{Publisher, Ticket};

pub use publish::Found;

/// Why a session ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Postgres said no, or the connection broke.
    #[error("Postgres: {0}")]
    Database(#[from] sqlx::Error),
    /// Postgres did not answer within the length of a lease.
    #[error("Postgres has not answered for {0:?}")]
    Stalled(Duration),
    /// Another relay has taken a lane: this one was frozen or cut off for longer than its lease.
    #[error("lane {0} was taken by another relay")]
    LaneLost(i16),
    /// The leases could be renewed, but not in time to send under them.
    #[error("the lease was renewed too late to send under it")]
    LeaseTooOld,
    /// Kafka did not acknowledge a record in time, or refused it after it was sent.
    #[error("Kafka did not take a record: {0}")]
    Delivery(KafkaError),
    /// The producer could not be made, or is of no use any more.
    #[error("the producer failed: {0}")]
    Producer(KafkaError),
    /// A topic could not be made.
    #[error("topic '{topic}' could not be made: {error}")]
    Topic {
        /// Its name.
        topic: String,
        /// What the brokers say.
        error: KafkaError,
    },
    /// The cursors speak of another Postgres cluster: going on could skip rows. Not cured by trying again.
    #[error(
        "the cursors in relay_lanes speak of another Postgres cluster ({stored}, this is {current}): this database was restored from a dump. \
         Stop all writers and relays, run `SELECT relay_reanchor()` as the owner of the tables, and start again"
    )]
    OtherCluster {
        /// The cluster of the cursors.
        stored: i64,
        /// This cluster.
        current: i64,
    },
    /// A snapshot that cannot be read.
    #[error(transparent)]
    Snapshot(#[from] BadSnapshot),
}

/// The state of one session.
pub struct Session<'a> {
    config: &'a RelayConfig,
    metrics: &'a Metrics,
    connection: PoolConnection<Postgres>,
    publisher: Publisher,
    system_identifier: i64,
    /// The lanes held, by their number.
    lanes: [Option<HeldLane>; LANES],
    /// Until when the leases hold, by this process's clock and at the worst.
    lease_until: Instant,
    next_balance: Instant,
    next_settle: Instant,
    /// Whether Kafka has acknowledged something since the last settle.
    unsettled: bool,
    /// The snapshot of the last read, when that read found all there was.
    exhausted: Option<String>,
    /// A read whose late rows were too many for one: the last id read, the snapshot to read through, and the lanes that take part.
    rest: Option<(i64, Snapshot, Vec<i16>)>,
    /// Room for acknowledgements, reused.
    acknowledged: Vec<Ticket>,
}

impl<'a> Session<'a> {
    /// Opens a session and takes the first lanes.
    ///
    /// # Errors
    /// When Postgres does not answer, or the cursors speak of another cluster.
    pub async fn start(config: &'a RelayConfig, pool: &PgPool, metrics: &'a Metrics) -> Result<Self, SessionError> {
        let mut connection = pool.acquire().await?;
        // A connection that was given up in the middle of a statement must not be used again.
        connection.close_on_drop();
        let system_identifier = outbox::system_identifier(&mut connection).await?;
        let producer = config.kafka.producer("outrider-relay", config.limits.message_timeout());
        let routes = config.routes.with_table(outbox::routes::routes(&mut connection).await?);
        let publisher = Publisher::new(&producer, &config.limits.source, routes).map_err(SessionError::Producer)?;
        let now = Instant::now();
        let mut session = Self {
            config,
            metrics,
            connection,
            publisher,
            system_identifier,
            lanes: [const { None }; LANES],
            lease_until: now,
            next_balance: now,
            next_settle: now,
            unsettled: false,
            exhausted: None,
            rest: None,
            acknowledged: Vec::new(),
        };
        session.keep_leases().await?;
        Ok(session)
    }

    /// Ends the session. What the producer has not sent is thrown away, which takes up to half a second.
    pub async fn end(self) {
        let Self { publisher, .. } = self;
        let _ = tokio::task::spawn_blocking(move || drop(publisher)).await;
    }

    /// Takes what Kafka has acknowledged.
    ///
    /// # Errors
    /// When a record has failed.
    pub fn collect(&mut self) -> Result<(), SessionError> {
        self.publisher.take_acknowledged(&mut self.acknowledged);
        for ticket in &self.acknowledged {
            if let Some(lane) = self.lanes.get_mut(ticket.lane()).and_then(Option::as_mut) {
                lane.progress.acknowledge(ticket.sequence());
            }
        }
        self.metrics.published.inc_by(self.acknowledged.len() as u64);
        self.unsettled |= !self.acknowledged.is_empty();
        self.publisher.failure().map_or(Ok(()), |error| Err(SessionError::Delivery(error)))
    }

    /// Records that Kafka has yet to acknowledge.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.held().map(|lane| lane.progress.in_flight()).sum()
    }

    /// Resolves when Kafka has acknowledged or refused something.
    pub async fn outcome(&self) {
        self.publisher.outcome().await;
    }

    fn held(&self) -> impl Iterator<Item = &HeldLane> {
        self.lanes.iter().flatten()
    }
}

/// Gives Postgres as long as a lease: after that, whatever it would answer is too late.
async fn in_time<T>(limit: Duration, answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, SessionError> {
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(SessionError::Stalled(limit)),
    }
}
