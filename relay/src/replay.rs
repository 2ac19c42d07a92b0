//! Publishing events again that were published before, from the partitions that are still there.
//!
//! The events go out in the order of each key, with the same event ids, so that consumers that know repeats by their ids stay right. Only
//! what the relays have settled is taken: an event that is still to be published, or that is parked, is left to them, or it would get
//! ahead of its elders.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use rdkafka::error::KafkaError;
use shared::db::{Database, PooledConnection};
use shared::kafka::Topics;
use shared::spans::Spans;

use crate::batch::{Batch, Event};
use crate::config::RelayConfig;
use crate::lanes::cursor::BadSnapshot;
use crate::lanes::plan::ReadPlan;
use crate::lanes::{Cursor, RowKey, Snapshot, Ticket};
use crate::outbox::cluster::ForeignCursors;
use crate::outbox::read::ReadLimits;
use crate::outbox::{self, Server};
use crate::publisher::destinations::{self, Destination, Destinations};
use crate::publisher::flow::FlowControl;
use crate::publisher::outcomes::{Acknowledged, Failure, Outcomes};
use crate::publisher::{Batching, Listener, Publisher, SendError, Unmade};
use crate::session::PublishConstraints;

/// Rows of each lane in one read.
const LANE_ROWS: i64 = 500;

/// Bytes of the texts of one read.
const READ_BYTES: usize = 16 * 1024 * 1024;

/// Records without an acknowledgement, beyond which the next one waits.
const IN_FLIGHT_MAX: u64 = 10_000;

/// Between two looks at what has been acknowledged.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// Which events.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Those of one aggregate: its type and id.
    pub key: Option<(String, String)>,
    /// Those of one aggregate type.
    pub aggregate_type: Option<String>,
    /// Those that occurred then or later.
    pub since: Option<DateTime<Utc>>,
    /// Those with this outbox id or a higher one.
    pub from_id: i64,
    /// Those with this outbox id or a lower one.
    pub to_id: i64,
}

impl Selection {
    fn takes(&self, row: RowKey, event: &Event<'_>) -> bool {
        (self.from_id..=self.to_id).contains(&row.id)
            && self.key.as_ref().is_none_or(|(kind, id)| kind == event.aggregate_type && id == event.aggregate_id)
            && self.aggregate_type.as_ref().is_none_or(|kind| kind == event.aggregate_type)
            && self.since.is_none_or(|since| event.occurred_at >= since)
    }
}

/// What a selection comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events.
    pub events: u64,
    /// Aggregates.
    pub keys: u64,
    /// Lowest and highest outbox id.
    pub ids: Option<(i64, i64)>,
    /// First and last time at which one occurred.
    pub times: Option<(DateTime<Utc>, DateTime<Utc>)>,
    /// Events by aggregate type.
    pub by_type: BTreeMap<String, u64>,
    /// Events of the selection that are left out, since they are still to be published, or parked.
    pub left_out: u64,
}

/// Why a replay did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// Postgres said no, or the connection broke.
    #[error("Postgres: {}", shared::db::words(.0))]
    Database(#[from] sqlx::Error),
    /// The connection has ended at a standby.
    #[error("{}", shared::db::ON_STANDBY)]
    Standby,
    /// A cursor that cannot be read.
    #[error(transparent)]
    Snapshot(#[from] BadSnapshot),
    /// The cursors do not hold in this cluster.
    #[error(transparent)]
    OtherCluster(#[from] ForeignCursors),
    /// Kafka did not take a record.
    #[error("Kafka did not take a record: {0}")]
    Kafka(KafkaError),
    /// There is no thread to hear from Kafka on.
    #[error("no thread to publish from: {0}")]
    Thread(std::io::Error),
    /// An event can have no topic, or is too large for it.
    #[error("event {event_id} (outbox id {id}) cannot be published: {reason}")]
    Refused {
        /// `outbox.event_id`.
        event_id: uuid::Uuid,
        /// `outbox.id`.
        id: i64,
        /// Why.
        reason: String,
    },
    /// A topic takes no records.
    #[error("the topic '{topic}' {reason}")]
    Topic {
        /// Its name.
        topic: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// How a replay publishes.
#[derive(Debug, Clone, Default)]
pub struct Target {
    /// The topic for all events; by default, each goes where the relay sends it.
    pub topic: Option<String>,
    /// Events a second at most.
    pub rate: Option<u32>,
}

/// A selection of events, ready to be looked through and published.
pub struct Replay {
    connection: PooledConnection,
    cursors: Vec<(i16, Cursor)>,
    /// Types that wait for their topic, by lane: less of them is published than of the lane.
    waiting: HashMap<(i16, String), Cursor>,
    parked: HashSet<i64>,
    selection: Selection,
}

impl Replay {
    /// Notes what the relays have settled by now; later events are not part of it.
    ///
    /// # Errors
    /// When Postgres does, or the cursors cannot be used.
    pub async fn open(database: &Database, selection: Selection) -> Result<Self, ReplayError> {
        let mut connection = database.acquire().await?;
        let Server { in_recovery, .. } = outbox::server(&mut connection).await?;
        if in_recovery {
            return Err(ReplayError::Standby);
        }
        let mut cursors = Vec::new();
        let settled = outbox::replay::settled(&mut connection).await?;
        if let Some(foreign) = outbox::cluster::foreign_cursors(&mut connection).await? {
            return Err(foreign.into());
        }
        for lane in settled {
            let seen = lane.seen.map(Snapshot::parse).transpose()?.map(Arc::new);
            cursors.push((lane.lane, Cursor { position: lane.position, seen }));
        }
        let lanes: Vec<i16> = cursors.iter().map(|(lane, _)| *lane).collect();
        let mut waiting = HashMap::new();
        for row in outbox::waiting::waiting_types(&mut connection, &lanes).await? {
            let seen = row.seen.map(Snapshot::parse).transpose()?.map(Arc::new);
            waiting.insert((row.lane, row.aggregate_type), Cursor { position: row.position, seen });
        }
        let parked = outbox::replay::parked_ids(&mut connection).await?.into_iter().collect();
        Ok(Self { connection, cursors, waiting, parked, selection })
    }

    /// Looks through the selection without publishing anything.
    ///
    /// # Errors
    /// When Postgres does.
    pub async fn summarize(&mut self) -> Result<Summary, ReplayError> {
        let (mut summary, mut keys) = (Summary::default(), HashSet::new());
        let hasher = RandomState::new();
        let mut positions = self.start();
        loop {
            let (batch, more) = self.read(&mut positions).await?;
            for (row, _, event) in batch.events().filter(|(row, _, event)| self.selection.takes(*row, event)) {
                if !self.is_published(row, &event) {
                    summary.left_out += 1;
                    continue;
                }
                summary.events += 1;
                keys.insert(hasher.hash_one((event.aggregate_type, event.aggregate_id)));
                *summary.by_type.entry(event.aggregate_type.to_owned()).or_default() += 1;
                let (first, last) = summary.ids.unwrap_or((row.id, row.id));
                summary.ids = Some((first.min(row.id), last.max(row.id)));
                let (first, last) = summary.times.unwrap_or((event.occurred_at, event.occurred_at));
                summary.times = Some((first.min(event.occurred_at), last.max(event.occurred_at)));
            }
            if !more {
                summary.keys = keys.len() as u64;
                return Ok(summary);
            }
        }
    }

    /// Publishes the selection, and tells `progress` from time to time how many events Kafka has acknowledged. Returns how many those are in
    /// the end. After a failure, do it again: what was published is published a second time, with the same event ids.
    ///
    /// # Errors
    /// When Postgres or Kafka do, or an event can have no topic.
    pub async fn publish(
        &mut self,
        config: &RelayConfig,
        target: &Target,
        mut progress: impl FnMut(u64),
    ) -> Result<u64, ReplayError> {
        let routes = config.routes.with_table(outbox::routes::routes(&mut self.connection).await?);
        let mut destinations = Destinations::new(config, routes);
        destinations.send_all_to(target.topic.clone());
        let mut flight = Flight::begin(config, destinations)?;
        let (mut positions, begun) = (self.start(), Instant::now());
        loop {
            let (batch, more) = self.read(&mut positions).await?;
            for (row, _, event) in batch.events() {
                if !self.selection.takes(row, &event) || !self.is_published(row, &event) {
                    continue;
                }
                flight.wait_for_room(IN_FLIGHT_MAX).await?;
                if let Some(rate) = target.rate {
                    let due = Duration::from_nanos(flight.sent.saturating_mul(1_000_000_000 / u64::from(rate)));
                    tokio::time::sleep_until((begun + due).into()).await;
                }
                flight.send(row, &event).await?;
            }
            flight.collect()?;
            progress(flight.acknowledged);
            if !more {
                break;
            }
        }
        flight.wait_for_room(1).await?;
        progress(flight.acknowledged);
        let acknowledged = flight.acknowledged;
        // It waits for the network, if only for a moment.
        let _ = tokio::task::spawn_blocking(move || drop(flight)).await;
        Ok(acknowledged)
    }

    fn is_published(&self, row: RowKey, event: &Event<'_>) -> bool {
        if !self.waiting.is_empty()
            && let Some(cursor) = self.waiting.get(&(row.lane, event.aggregate_type.to_owned()))
            && !cursor.covers(row.id, row.txid)
        {
            return false;
        }
        let cursor = self.cursors.iter().find(|(lane, _)| *lane == row.lane);
        cursor.is_some_and(|(_, cursor)| cursor.covers(row.id, row.txid)) && !self.parked.contains(&row.id)
    }

    /// Lanes and positions to read from.
    fn start(&self) -> Vec<(i16, i64)> {
        self.cursors.iter().map(|(lane, _)| (*lane, self.selection.from_id.saturating_sub(1).max(0))).collect()
    }

    /// Reads the next rows of all lanes, by id within each lane, and whether there may be more.
    async fn read(&mut self, positions: &mut Vec<(i16, i64)>) -> Result<(Batch, bool), ReplayError> {
        let plan =
            ReadPlan { lanes: positions.clone(), late_from: i64::MAX, late_running: Vec::new(), with_hashes: false };
        let limits = ReadLimits { late_rows: 1, lane_rows: LANE_ROWS, id_max: i64::MAX, bytes: READ_BYTES };
        let answer = outbox::read::read(&mut self.connection, &plan, limits, Batch::default()).await?;
        let mut batch = answer.batch;
        batch.tickets = (0..batch.len()).map(|_| Some(Ticket::retry(0))).collect();
        outbox::large::fetch(&mut self.connection, &mut batch).await?;
        for row in batch.keys() {
            if let Some((_, position)) = positions.iter_mut().find(|(lane, _)| *lane == row.lane) {
                *position = row.id;
            }
        }
        // A lane is done when it is beyond what may be replayed.
        let (cursors, to_id) = (&self.cursors, self.selection.to_id);
        positions.retain(|(lane, position)| {
            *position < to_id && cursors.iter().any(|(of, cursor)| of == lane && *position < cursor.position)
        });
        Ok((batch, answer.fresh_cut && !positions.is_empty()))
    }
}

/// A producer, what was handed to it, and what of it Kafka has.
struct Flight {
    publisher: Publisher,
    control: FlowControl,
    outcomes: Arc<Outcomes>,
    topics: Topics,
    destinations: Destinations,
    known: HashMap<String, Destination>,
    batch_bytes: usize,
    sent: u64,
    acknowledged: u64,
    room: Vec<Acknowledged>,
}

impl Flight {
    fn begin(config: &RelayConfig, destinations: Destinations) -> Result<Self, ReplayError> {
        let outcomes = Arc::new(Outcomes::default());
        let batch_bytes = PublishConstraints::default().batch_bytes;
        let control = FlowControl::new(config.limits.message_timeout());
        let listener = Listener { outcomes: Arc::clone(&outcomes), flows: control.flows() };
        let producer = config.kafka.producer("outrider-replay", config.limits.message_timeout());
        let publisher = Publisher::new(producer, Batching::Full(batch_bytes), listener, Spans::default());
        let publisher = publisher.map_err(|unmade| match unmade {
            Unmade::Kafka(error) => ReplayError::Kafka(error),
            Unmade::Thread(error) => ReplayError::Thread(error),
        })?;
        let topics = config.kafka.topics("outrider-replay");
        let (known, room) = (HashMap::new(), Vec::new());
        Ok(Self {
            publisher,
            control,
            outcomes,
            topics,
            destinations,
            known,
            batch_bytes,
            sent: 0,
            acknowledged: 0,
            room,
        })
    }

    async fn send(&mut self, row: RowKey, event: &Event<'_>) -> Result<(), ReplayError> {
        let refused = |reason: String| ReplayError::Refused { event_id: event.event_id, id: row.id, reason };
        if let Some(reason) = event.unpublishable() {
            return Err(refused(reason.to_owned()));
        }
        if !self.known.contains_key(event.aggregate_type) {
            let topic =
                self.destinations.topic_of(event.aggregate_type).map_err(|illegal| refused(illegal.to_string()))?;
            let topic = destinations::open(&self.topics, &topic, self.batch_bytes).await.map_err(failed)?;
            let flows = self.control.of_topic(&topic.name, topic.partitions);
            let to = self.destinations.destination(event.aggregate_type, &topic, flows);
            self.known.insert(event.aggregate_type.to_owned(), to);
        }
        let bytes = event.payload.len() + event.aggregate_id.len();
        loop {
            let Some(to) = self.known.get(event.aggregate_type) else { return Ok(()) };
            let flow = FlowControl::of_key(&to.flows, event.aggregate_id);
            if self.control.is_open(flow) && self.control.has_room(flow, bytes) {
                match self.publisher.send(to, event, Ticket::new(0, self.sent), flow, &mut None) {
                    Ok(()) => {
                        self.control.sent(flow, bytes);
                        break;
                    }
                    Err(SendError::Refused(reason)) => return Err(refused(reason)),
                    Err(SendError::Broken(error)) => return Err(ReplayError::Kafka(error)),
                    Err(SendError::QueueFull) => {}
                }
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
            self.collect()?;
        }
        self.sent += 1;
        Ok(())
    }

    /// Waits until fewer than `limit` records are without an acknowledgement. Each gets one, or fails, within the message time-out.
    async fn wait_for_room(&mut self, limit: u64) -> Result<(), ReplayError> {
        while self.sent - self.acknowledged >= limit {
            self.collect()?;
            if self.sent - self.acknowledged >= limit {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<(), ReplayError> {
        self.outcomes.take_acknowledged(&mut self.room);
        self.acknowledged += self.room.len() as u64;
        self.outcomes.failure().map_or(Ok(()), |failure| Err(failed(failure)))
    }
}

fn failed(failure: Failure) -> ReplayError {
    match failure {
        Failure::Kafka(error) => ReplayError::Kafka(error),
        Failure::Topics(troubles) => {
            let (topic, reason) = troubles
                .into_iter()
                .next()
                .map_or_else(Default::default, |trouble| (trouble.topic.clone(), trouble.reason()));
            ReplayError::Topic { topic, reason }
        }
        Failure::SmallerBatches(bytes) => ReplayError::Topic {
            topic: String::new(),
            reason: format!(
                "takes batches of at most {bytes} bytes, which is too few: its max.message.bytes must be at least 1000000"
            ),
        },
    }
}
