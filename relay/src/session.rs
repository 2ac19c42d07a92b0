//! A session: one connection, one producer, and the lanes held meanwhile.
//!
//! Whatever fails, fails the session as a whole. The next one starts from what is settled in Postgres, with raised tokens and a new
//! producer, so there is no half-broken state to reason about. In particular nothing in memory outlives a lost connection: after a
//! fail-over the new primary may know less than this relay has seen. For the same reason there is only one connection: two of them
//! could end at two servers.
//!
//! The session reads and settles; a thread of its own ([`sender`]) hands what was read to the producer meanwhile.

mod lease;
mod leases;
mod parking;
mod reading;
mod sender;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rdkafka::error::KafkaError;
use shared::ages::{EventAge, Stage};
use shared::spans;
use sqlx::pool::PoolConnection;
use sqlx::{PgPool, Postgres};

use crate::config::RelayConfig;
use crate::lanes::HeldLanes;
use crate::lanes::cursor::BadSnapshot;
use crate::metrics::Metrics;
use crate::outbox::cluster::ForeignCursors;
use crate::outbox::parked::RetryRequest;
use crate::outbox::sequence::SequenceFault;
use crate::outbox::{self, Server};
use crate::publisher::destinations::{Denied, Destinations};
use crate::publisher::outcomes::{Acknowledged, Failure, Outcomes, Refused, is_of_topic};
use crate::publisher::{Batching, Publisher, Unmade};

use lease::Lease;
use sender::{Pipe, Sender};

/// How long a session looks for the records that it is to send one at a time: their lanes may have gone to another relay.
const SUSPICION_MAX: Duration = Duration::from_secs(30);

/// Why a session ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Postgres said no, or the connection broke.
    #[error("Postgres: {0}")]
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
    /// Kafka did not acknowledge a record in time, or refused it after it was sent.
    #[error("Kafka did not take a record: {0}")]
    Delivery(KafkaError),
    /// The producer could not be made, or is of no use any more.
    #[error("the producer failed: {0}")]
    Producer(KafkaError),
    /// A topic could not be looked at or made.
    #[error("topic '{topic}' could not be made: {error}")]
    Topic {
        /// Its name.
        topic: String,
        /// What the brokers say.
        error: KafkaError,
    },
    /// A topic takes smaller batches than this session's producer makes.
    #[error("a topic takes batches of at most {0} bytes")]
    SmallerBatches(usize),
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
            Self::Topic { .. } => "topic",
            Self::SmallerBatches(_) => "smaller_batches",
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

impl From<Failure> for SessionError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Kafka(error) => Self::Delivery(error),
            Failure::Topic { topic, error } => Self::Topic { topic, error },
            Failure::SmallerBatches(bytes) => Self::SmallerBatches(bytes),
        }
    }
}

/// What one session has learned for the next.
#[derive(Debug, Clone)]
pub struct Lessons {
    /// Bytes that a batch may have.
    pub(crate) batch_bytes: usize,
    /// Rows (lane and outbox id) that a broker has refused, perhaps only for the company in their batch.
    suspects: HashSet<(i16, i64)>,
    /// Topics that a broker refuses records of.
    pub(crate) denied: Denied,
    /// Parked events that were tried again together failed: they are to go alone.
    retry_alone: bool,
}

impl Default for Lessons {
    fn default() -> Self {
        Self { batch_bytes: 1_000_000, suspects: HashSet::new(), denied: Denied::new(), retry_alone: false }
    }
}

impl Lessons {
    /// Whether the next session sends some records one at a time.
    #[must_use]
    pub fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// The suspects were looked at: those that were refused are parked now.
    pub fn forget_suspects(&mut self) {
        self.suspects.clear();
    }

    /// A topic takes batches of so many bytes, whose framing is part of it. From then on all topics get such batches: librdkafka has one
    /// `batch.size` for a producer, not one for a topic. A second producer for that topic could keep the others' batches large, but would
    /// need its own thread, share of memory and end of a session, for a topic that is better given its usual `max.message.bytes`.
    pub fn shrink_batches(&mut self, bytes: usize) {
        self.batch_bytes = self.batch_bytes.min(bytes.saturating_sub(512)).max(1);
    }

    fn learn(&mut self, refused: Vec<Refused>, lanes: &HeldLanes) {
        for Refused { ticket, code, topic } in refused {
            if is_of_topic(code) {
                self.denied.insert(topic, (format!("a broker said: {code}"), Instant::now()));
            } else if let Some(row) = lanes.row_of(ticket) {
                self.suspects.insert(row);
            }
        }
    }
}

/// The state of one session.
pub struct Session<'a> {
    config: &'a RelayConfig,
    metrics: &'a Metrics,
    connection: PoolConnection<Postgres>,
    outcomes: Arc<Outcomes>,
    lease: Arc<Lease>,
    pipe: Pipe,
    system_identifier: i64,
    lanes: HeldLanes,
    next_balance: Instant,
    next_settle: Instant,
    next_sequence_check: Instant,
    /// Whether Kafka has acknowledged something since the last settle.
    unsettled: bool,
    /// New rows to ask for of each lane: fewer when they are large.
    lane_rows: i64,
    begun: Instant,
    /// Parked keys that an operator wants to be published again.
    retries: VecDeque<RetryRequest>,
    /// Whether some of them are under way.
    retrying: bool,
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
        pool: &PgPool,
        metrics: &'a Metrics,
        lessons: &Lessons,
    ) -> Result<Self, SessionError> {
        let mut connection = pool.acquire().await?;
        // A connection that was given up in the middle of a statement must not be used again.
        connection.close_on_drop();
        // A connection stays at its server, and a server that was promoted never becomes a standby without a restart, which ends the
        // connection: so once a session is enough. Behind a pooler that leads each statement elsewhere, the renewal, which writes, fails
        // on a standby.
        let Server { system_identifier, in_recovery } = outbox::server(&mut connection).await?;
        if in_recovery {
            return Err(SessionError::Standby);
        }
        let (outcomes, lease) = (Arc::new(Outcomes::default()), Arc::new(Lease::new()));
        let limits = &config.limits;
        let batching = if lessons.has_suspects() { Batching::Single } else { Batching::Full(lessons.batch_bytes) };
        let producer = config.kafka.producer("outrider-relay", limits.message_timeout());
        let publisher = Publisher::new(producer, batching, Arc::clone(&outcomes), shared::telemetry::spans())?;
        let routes = config.routes.with_table(outbox::routes::routes(&mut connection).await?);
        let destinations = Destinations::new(config, routes, lessons);
        let pipe = Pipe::start(Sender {
            publisher,
            outcomes: Arc::clone(&outcomes),
            read_age: metrics.ages.at(Stage::Read),
            lease: Arc::clone(&lease),
            destinations,
            lease_needed: limits.lease_needed_to_send(),
            suspects: lessons.suspects.clone(),
            retry_alone: lessons.retry_alone,
        });
        let now = Instant::now();
        let mut session = Self {
            config,
            metrics,
            connection,
            outcomes,
            lease,
            pipe: pipe.map_err(SessionError::Thread)?,
            system_identifier,
            lanes: HeldLanes::default(),
            next_balance: now,
            next_settle: now,
            next_sequence_check: now,
            unsettled: false,
            lane_rows: limits.lane_rows_max,
            begun: now,
            retries: VecDeque::new(),
            retrying: false,
            acknowledged: Vec::new(),
            acknowledged_age: metrics.ages.at(Stage::Acknowledged),
        };
        session.keep_leases().await?;
        Ok(session)
    }

    /// Ends the session, and notes for the next one what brokers have refused. What the producer has not sent is thrown away, which
    /// takes up to half a second.
    pub async fn end(self, lessons: &mut Lessons) {
        let Self { pipe, outcomes, lanes, retrying, .. } = self;
        lessons.retry_alone = retrying;
        let _ = tokio::task::spawn_blocking(move || pipe.close()).await;
        lessons.learn(outcomes.take_refused(), &lanes);
    }

    /// Takes what Kafka has acknowledged, and writes what it refuses into `relay_parked`. Returns whether anything was acknowledged.
    ///
    /// # Errors
    /// When a record has failed, or Postgres does.
    pub async fn collect(&mut self) -> Result<bool, SessionError> {
        self.outcomes.take_acknowledged(&mut self.acknowledged);
        let now = spans::now();
        for Acknowledged { ticket, trace_id } in &self.acknowledged {
            if let Some(occurred_us) = self.lanes.acknowledge(*ticket) {
                self.acknowledged_age.observe(since_1970(occurred_us), now, *trace_id);
            }
        }
        self.metrics.published.inc_by(self.acknowledged.len() as u64);
        self.unsettled |= !self.acknowledged.is_empty();
        self.park().await?;
        self.outcomes.failure().map_or(Ok(!self.acknowledged.is_empty()), |failure| Err(failure.into()))
    }

    /// Whether a session that sends some records one at a time has done so, or did not meet them again for long.
    #[must_use]
    pub fn has_no_suspects(&self) -> bool {
        self.outcomes.is_clear() || self.begun.elapsed() > SUSPICION_MAX
    }

    /// Records that Kafka has yet to acknowledge.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.lanes.in_flight()
    }

    /// Whether another read must wait: for acknowledgements, or for the sender.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.in_flight() >= self.config.limits.in_flight_max || self.pipe.is_full()
    }

    /// Resolves when Kafka has acknowledged or refused something, or the sender has room.
    pub async fn outcome(&self) {
        self.outcomes.changed().await;
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
