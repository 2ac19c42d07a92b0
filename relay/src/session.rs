//! A session: one connection, the lanes held meanwhile, and the streams that publish from them.
//!
//! Whatever fails of Postgres or of Kafka as a whole, fails the session. The next one starts from what is settled in Postgres, with raised
//! tokens and new producers, so there is no half-broken state to reason about. In particular nothing in memory outlives a lost connection:
//! after a fail-over the new primary may know less than this relay has seen. For the same reason there is only one connection: two of them
//! could end at two servers.
//!
//! What fails of one topic does not: the topic's aggregate types wait ([`waiting`]), and the others go on by a new producer.
//!
//! The session reads and settles; a thread of each stream ([`sender`]) hands what was read to its producer meanwhile.

mod lease;
mod leases;
mod pace;
mod parking;
mod reading;
mod sender;
mod stream;
mod trouble;
mod waiting;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use rdkafka::error::KafkaError;
use shared::ages::{EventAge, Stage};
use shared::db::{Database, MaybePostgres, PooledConnection};
use shared::spans;

use crate::config::RelayConfig;
use crate::lanes::cursor::BadSnapshot;
use crate::lanes::{HeldLanes, TypeIndex, TypeNames};
use crate::metrics::Metrics;
use crate::outbox::cluster::ForeignCursors;
use crate::outbox::detour::Finding;
use crate::outbox::parked::RetryRequest;
use crate::outbox::sequence::SequenceFault;
use crate::outbox::{self, Server};
use crate::publisher::Unmade;
use crate::publisher::outcomes::Acknowledged;

use pace::Pace;
use reading::ReadSizes;
use stream::{Ending, LOOK_OF_ALL, Stream, Streams, Unused};
use waiting::{Flowed, Waiting};

pub use stream::PublishConstraints;
pub use waiting::Served;

/// Why a session ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Postgres said no, or the connection broke.
    #[error("Postgres: {}", shared::db::words(.0))]
    Database(#[from] sqlx::Error),
    /// The connection has ended at a standby. Transactions can become visible there in another order than on the primary, so what a
    /// cursor says of one is not true of the other; and it takes no settle.
    #[error("{}", shared::db::ON_STANDBY)]
    Standby,
    /// Postgres did not answer within the length of a lease.
    #[error("Postgres has not answered for {0:?}")]
    Stalled(Duration),
    /// Another relay has taken a lane: this one was frozen or cut off for longer than its lease.
    #[error("lane {0} was taken by another relay")]
    LaneLost(i16),
    /// The brokers do not answer, or refuse the producer.
    #[error("Kafka did not take a record: {0}")]
    Delivery(KafkaError),
    /// The producer could not be made, or is of no use any more.
    #[error("the producer failed: {0}")]
    Producer(KafkaError),
    /// A thread that sends or hears could not be started.
    #[error("no thread for the producer: {0}")]
    Thread(std::io::Error),
    /// The cursors do not hold in this Postgres cluster: going on would publish events without end.
    #[error(transparent)]
    OtherCluster(#[from] ForeignCursors),
    /// Ids of the outbox are not given out in order.
    #[error(transparent)]
    Sequence(#[from] SequenceFault),
    /// A snapshot that cannot be read.
    #[error(transparent)]
    Snapshot(#[from] BadSnapshot),
}

impl MaybePostgres for SessionError {
    fn postgres(&self) -> Option<&sqlx::Error> {
        match self {
            Self::Database(error) => Some(error),
            _ => None,
        }
    }
}

impl SessionError {
    /// What failed, in one of a few words: a label of a metric.
    pub(crate) const fn class(&self) -> &'static str {
        match self {
            Self::Database(_) => "postgres",
            Self::Standby => "standby",
            Self::Stalled(_) => "postgres_stalled",
            Self::LaneLost(_) => "lane_lost",
            Self::Delivery(_) => "delivery",
            Self::Producer(_) => "producer",
            Self::Thread(_) => "thread",
            Self::OtherCluster(_) => "other_cluster",
            Self::Sequence(_) => "sequence",
            Self::Snapshot(_) => "snapshot",
        }
    }
}

impl From<Unmade> for SessionError {
    fn from(unmade: Unmade) -> Self {
        match unmade {
            Unmade::Kafka(error) => Self::Producer(error),
            Unmade::Thread(error) => Self::Thread(error),
        }
    }
}

/// The state of one session.
pub struct Session<'a> {
    connection: PooledConnection,
    streams: Streams<'a>,
    constraints: PublishConstraints,
    /// The stream of all events that flow.
    main: Stream,
    /// The producer to go on with if that of the main stream is given up. It is made when that becomes likely: a producer may get its id
    /// half a second after it has asked for it, and all events would wait so long.
    spare: Option<Unused>,
    system_identifier: i64,
    lanes: HeldLanes,
    types: TypeNames,
    /// Aggregate types whose topic takes no records now.
    waiting: BTreeMap<TypeIndex, Waiting>,
    /// Those that waited, and flow again.
    flowed: BTreeMap<TypeIndex, Flowed>,
    /// Streams that end.
    ending: Vec<Ending>,
    /// Until then nothing is read, so that a type that waited can catch up.
    reads_rest_until: Instant,
    next_balance: Instant,
    next_settle: Instant,
    next_sequence_check: Instant,
    /// Whether Kafka has acknowledged something since the last settle.
    unsettled: bool,
    sizes: ReadSizes,
    /// Events of the last read.
    events_read: usize,
    pace: Pace,
    /// How far the look for a detour's aggregates has come.
    finding: Option<Finding>,
    /// Parked keys that an operator wants to be published again.
    retries: VecDeque<RetryRequest>,
    /// No retry is begun before.
    next_retry: Instant,
    /// Whether some of them are under way.
    retrying: bool,
    /// How long Kafka may acknowledge none of them.
    retry_patience: Duration,
    /// Room for acknowledgements, reused.
    acknowledged: Vec<Acknowledged>,
    acknowledged_age: EventAge,
}

impl<'a> Session<'a> {
    /// Opens a session and takes the first lanes.
    ///
    /// # Errors
    /// When Postgres does not answer, the cursors do not hold in this cluster, or ids are not given out in order.
    pub async fn start(
        config: &'a RelayConfig,
        database: &Database,
        metrics: &'a Metrics,
        constraints: &PublishConstraints,
    ) -> Result<Self, SessionError> {
        let mut connection = database.acquire().await?;
        // A connection that was given up in the middle of a statement must not be used again.
        connection.close_on_drop();
        // A connection stays at its server, and a server that was promoted never becomes a standby without a restart, which ends the
        // connection: so once a session is enough. Behind a pooler that leads each statement elsewhere, the renewal, which writes, fails
        // on a standby.
        let Server { system_identifier, in_recovery } = outbox::server(&mut connection).await?;
        if in_recovery {
            return Err(SessionError::Standby);
        }
        let now = Instant::now();
        let routes = config.routes.with_table(outbox::routes::routes(&mut connection).await?);
        let topics = config.kafka.topics("outrider-relay");
        let streams = Streams { config, metrics, topics, routes, lease_until: now };
        let main = streams.start(constraints, LOOK_OF_ALL, None)?;
        let mut session = Self {
            connection,
            streams,
            constraints: constraints.clone(),
            main,
            spare: None,
            system_identifier,
            lanes: HeldLanes::default(),
            types: TypeNames::default(),
            waiting: BTreeMap::new(),
            flowed: BTreeMap::new(),
            ending: Vec::new(),
            reads_rest_until: now,
            next_balance: now,
            next_settle: now,
            next_sequence_check: now,
            unsettled: false,
            sizes: ReadSizes::new(config.limits.lane_rows_max),
            events_read: 0,
            pace: Pace::new(now),
            finding: None,
            retries: VecDeque::new(),
            next_retry: now,
            retrying: false,
            retry_patience: config.limits.slow_after(),
            acknowledged: Vec::new(),
            acknowledged_age: metrics.ages.at(Stage::Acknowledged),
        };
        session.keep_leases().await?;
        Ok(session)
    }

    /// Ends the session, and notes for the next one what this one has learned of the brokers. What the producers have not sent is thrown
    /// away, which takes up to half a second.
    pub async fn end(self, constraints: &mut PublishConstraints) {
        let Self { main, spare, waiting, mut ending, constraints: learned, .. } = self;
        let spare = tokio::task::spawn_blocking(move || drop(spare));
        ending.extend(waiting.into_values().filter_map(Waiting::close));
        let (_, window) = main.close().end().await;
        for ending in ending {
            ending.end().await;
        }
        let _ = spare.await;
        *constraints = PublishConstraints { window, ..learned };
    }

    /// Takes what Kafka has acknowledged, writes what it refuses into `relay_parked`, and lets the types of a topic in trouble wait. Returns
    /// whether anything was acknowledged.
    ///
    /// # Errors
    /// When Kafka as a whole has failed, or Postgres does.
    pub async fn collect(&mut self) -> Result<bool, SessionError> {
        self.take_acknowledged();
        let any = !self.acknowledged.is_empty();
        self.park().await?;
        self.set_aside_types().await?;
        self.keep_spare()?;
        if let Some(failure) = self.main.outcomes.failure() {
            self.replace_producer(failure).await?;
        }
        Ok(any)
    }

    /// Has a spare producer while a topic is slow, and none otherwise: one that was made earlier may have chosen to learn of topics from a
    /// broker that stands still now.
    fn keep_spare(&mut self) -> Result<(), SessionError> {
        let is_slow = self.main.outcomes.is_topic_slow();
        if is_slow && self.spare.is_none() {
            self.spare = Some(self.streams.producer(&self.constraints)?);
        } else if !is_slow && let Some(spare) = self.spare.take() {
            // It waits for the producer's threads.
            tokio::task::spawn_blocking(move || drop(spare));
        }
        Ok(())
    }

    fn take_acknowledged(&mut self) {
        self.main.outcomes.take_acknowledged(&mut self.acknowledged);
        let now = spans::now();
        for Acknowledged { ticket, trace_id } in &self.acknowledged {
            if let Some(occurred_us) = self.lanes.acknowledge(*ticket) {
                self.acknowledged_age.observe(since_1970(occurred_us), now, *trace_id);
            }
        }
        self.lanes.allow_in_flight(self.pace.acknowledged(self.acknowledged.len(), Instant::now()));
        self.streams.metrics.published.inc_by(self.acknowledged.len() as u64);
        self.unsettled |= !self.acknowledged.is_empty();
    }

    /// Records that Kafka has yet to acknowledge.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.lanes.in_flight()
    }

    /// How many events the last read found.
    #[must_use]
    pub const fn events_read(&self) -> usize {
        self.events_read
    }

    /// Whether another read must wait: for acknowledgements, or for the sender.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.in_flight() >= self.streams.config.limits.in_flight_max || self.main.pipe.is_full()
    }

    /// Whether nothing is to be read now, so that a type that waited can catch up.
    #[must_use]
    pub fn reads_rest(&self) -> bool {
        !self.waiting.is_empty() && Instant::now() < self.reads_rest_until
    }

    /// Resolves when Kafka has acknowledged or refused something, or the sender has room.
    pub async fn outcome(&self) {
        self.main.outcomes.changed().await;
    }
}

/// The time so many microseconds after 1970 began.
fn since_1970(micros: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// Gives Postgres as long as a lease: after that, whatever it would answer is too late.
async fn in_time<T>(limit: Duration, answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, SessionError> {
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(SessionError::Stalled(limit)),
    }
}
