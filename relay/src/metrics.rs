//! Every instrument of the relay, with its unit and its meaning, in one place. `deploy/METRICS.md` has the same list.
//! No ids in labels: each value of a label is a time series.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use shared::ages::EventAges;

use crate::backlog::Look;

/// Rows of a read.
const ROWS: [f64; 9] = [0.0, 1.0, 10.0, 100.0, 1_000.0, 5_000.0, 10_000.0, 20_000.0, 50_000.0];

/// What sessions fail of: see [`crate::session::SessionError`].
const CLASSES: [&str; 10] = [
    "postgres",
    "standby",
    "postgres_stalled",
    "lane_lost",
    "delivery",
    "producer",
    "thread",
    "other_cluster",
    "sequence",
    "snapshot",
];

/// A figure that is not whole.
type GaugeF64 = Gauge<f64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Class {
    class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfLane {
    lane: i16,
}

/// What a relay does. Cheap to clone, as are the others.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// How old events are when they have been read, and when Kafka has them.
    pub ages: EventAges,
    /// Events acknowledged by Kafka, repeats included.
    pub published: Counter,
    /// Events that committed late: behind the position of their lane.
    pub late: Counter,
    /// Events put into `relay_parked`.
    pub parked: Counter,
    /// Lanes held.
    pub lanes_held: Gauge,
    sessions_failed: Family<Class, Counter>,
    read_rows: Histogram,
    /// Time spent settling.
    pub settle_seconds: Counter<f64, AtomicU64>,
    /// What it does beside publishing.
    pub upkeep: Upkeep,
    /// What is still to be published.
    pub backlog: BacklogGauges,
}

/// What a relay does beside publishing: partitions, and who holds transactions open.
#[derive(Debug, Clone, Default)]
pub struct Upkeep {
    /// Partitions of the outbox.
    pub partitions: Gauge,
    /// Ids that can be given out before an insert finds no partition.
    pub ids_ahead: Gauge,
    /// Partitions dropped by this relay.
    pub partitions_dropped: Counter,
    /// Tries to drop a partition that could go, which ended without a lock.
    pub drops_failed: Counter,
    /// Age of the oldest open transaction.
    pub oldest_transaction_age: GaugeF64,
    /// Transactions begun since the oldest one that a replication slot holds.
    pub slot_transactions: Gauge,
    /// Bytes of the server's log that a replication slot keeps.
    pub slot_wal_bytes: Gauge,
}

/// What is still to be published, as Postgres has it: every relay shows all lanes, those that nobody holds included.
#[derive(Debug, Clone, Default)]
pub struct BacklogGauges {
    rows: Family<OfLane, Gauge>,
    oldest_age: Family<OfLane, GaugeF64>,
    parked_keys: Gauge,
    parked_events: Gauge,
    waiting_types: Gauge,
}

impl Metrics {
    /// Makes the instruments known to `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            ages: EventAges::register(registry),
            published: Counter::default(),
            late: Counter::default(),
            parked: Counter::default(),
            lanes_held: Gauge::default(),
            sessions_failed: Family::default(),
            read_rows: Histogram::new(ROWS),
            settle_seconds: Counter::default(),
            upkeep: Upkeep::register(registry),
            backlog: BacklogGauges::register(registry),
        };
        registry.register(
            "outbox_published",
            "Events acknowledged by Kafka, repeats included",
            metrics.published.clone(),
        );
        registry.register(
            "outbox_late",
            "Events that committed behind the position of their lane",
            metrics.late.clone(),
        );
        registry.register(
            "outbox_parked",
            "Events put aside because Kafka refuses them or an elder of their key",
            metrics.parked.clone(),
        );
        registry.register("outbox_read_rows", "Rows of a read of the outbox", metrics.read_rows.clone());
        registry.register("relay_lanes_held", "Lanes that this relay holds", metrics.lanes_held.clone());
        registry.register(
            "relay_sessions_failed",
            "Sessions that failed and were begun anew, by what failed; lane_lost: another relay has taken a lane of this one",
            metrics.sessions_failed.clone(),
        );
        for class in CLASSES {
            // Known before it first happens, so that its first time is an increase.
            let _ = metrics.sessions_failed.get_or_create(&Class { class });
        }
        registry.register_with_unit(
            "relay_settle",
            "Time spent renewing leases and writing cursors",
            Unit::Seconds,
            metrics.settle_seconds.clone(),
        );
        metrics
    }

    /// A session has failed and is begun anew.
    pub fn session_failed(&self, class: &'static str) {
        self.sessions_failed.get_or_create(&Class { class }).inc();
    }

    /// The outbox was read.
    pub fn read(&self, rows: usize) {
        #[expect(clippy::cast_precision_loss, reason = "a read has far fewer than 2^52 rows")]
        self.read_rows.observe(rows as f64);
    }
}

impl Upkeep {
    fn register(registry: &mut Registry) -> Self {
        let upkeep = Self::default();
        registry.register("outbox_partitions", "Partitions of the outbox", upkeep.partitions.clone());
        registry.register(
            "outbox_ids_ahead",
            "Ids that can be given out before an insert finds no partition",
            upkeep.ids_ahead.clone(),
        );
        registry.register(
            "outbox_partitions_dropped",
            "Partitions that this relay has dropped",
            upkeep.partitions_dropped.clone(),
        );
        registry.register(
            "outbox_partition_drops_failed",
            "Tries to drop a published partition that a lock was in the way of",
            upkeep.drops_failed.clone(),
        );
        registry.register_with_unit(
            "outbox_oldest_transaction_age",
            "Age of the oldest open transaction of the server that holds a transaction id or a snapshot, or is idle; 0 below a second",
            Unit::Seconds,
            upkeep.oldest_transaction_age.clone(),
        );
        registry.register(
            "outbox_replication_slot_transactions",
            "Transactions begun since the oldest xmin or catalog_xmin of the server's replication slots",
            upkeep.slot_transactions.clone(),
        );
        registry.register_with_unit(
            "outbox_replication_slot_wal",
            "Log that the server keeps for the replication slot that is furthest behind",
            Unit::Bytes,
            upkeep.slot_wal_bytes.clone(),
        );
        upkeep
    }
}

impl BacklogGauges {
    fn register(registry: &mut Registry) -> Self {
        let gauges = Self::default();
        registry.register(
            "outbox_backlog",
            "Events of a lane that are still to be published, late ones included; an estimate beyond 20,000",
            gauges.rows.clone(),
        );
        registry.register_with_unit(
            "outbox_oldest_age",
            "How long ago the oldest event of a lane occurred that is still to be published; 0 for none",
            Unit::Seconds,
            gauges.oldest_age.clone(),
        );
        registry.register(
            "outbox_parked_keys",
            "Keys whose events wait because Kafka refuses one of them",
            gauges.parked_keys.clone(),
        );
        registry.register("outbox_parked_events", "Events of those keys", gauges.parked_events.clone());
        registry.register(
            "outbox_waiting_types",
            "Aggregate types whose events wait because their topic takes no records",
            gauges.waiting_types.clone(),
        );
        gauges
    }

    /// Shows what was found.
    pub fn set(&self, look: &Look) {
        for (lane, backlog) in look.lanes.iter().zip(&look.backlogs) {
            let label = OfLane { lane: lane.lane };
            self.rows.get_or_create(&label).set(backlog.rows);
            self.oldest_age.get_or_create(&label).set(backlog.oldest_age_secs.unwrap_or(0.0));
        }
        self.parked_keys.set(look.parked.keys);
        self.parked_events.set(look.parked.events);
        let types: BTreeSet<&str> = look.waiting.iter().map(|of| of.aggregate_type.as_str()).collect();
        self.waiting_types.set(i64::try_from(types.len()).unwrap_or(i64::MAX));
    }
}
