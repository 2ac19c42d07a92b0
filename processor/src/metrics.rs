//! Every instrument of the processor, with its unit and its meaning, in one place. `deploy/METRICS.md` has the same list.
//! No ids in labels: each value of a label is a time series.

use std::time::{Instant, SystemTime};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use shared::ages::{EventAge, EventAges, Stage};
use shared::propagation::TraceId;
use shared::spans;

use crate::lag::Lag;
use crate::store::blocked::State;

/// What came of the records of committed batches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Given to their handler, and taken.
    pub applied: usize,
    /// Of those applied: without effect, because a later state had overtaken them.
    pub superseded: usize,
    /// Known from the inbox.
    pub repeated: usize,
    /// Of a type without a handler.
    pub passed_over: usize,
    /// Given up: they wait for an operator.
    pub dead_lettered: usize,
    /// Put behind them, or to be tried again.
    pub waiting: usize,
    /// Keys blocked, because an event of theirs is to be tried again.
    pub keys_retrying: usize,
    /// Keys blocked, because an event of theirs came before its elder.
    pub keys_waiting: usize,
    /// Keys given up: they wait for an operator.
    pub keys_parked: usize,
    /// Keys unblocked, with nothing left that waits.
    pub keys_unblocked: usize,
    /// Attempts at keys that were blocked.
    pub keys_tried: usize,
    /// Keys that are to be tried again at once, since something has come for them.
    pub keys_woken: usize,
    /// Keys of which more waits than one transaction may apply: they go on at once.
    pub keys_resumed: usize,
}

impl Tally {
    /// Counts a key that is blocked now.
    pub(crate) const fn block(&mut self, state: State) {
        match state {
            State::Retrying => self.keys_retrying += 1,
            State::Waiting => self.keys_waiting += 1,
            State::Parked => self.keys_parked += 1,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Change {
    change: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

/// Changes of the assignment.
const REBALANCES: [&str; 2] = ["assign", "revoke"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPartition {
    topic: String,
    partition: i32,
}

/// An event that was applied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Applied {
    /// When it occurred.
    pub(crate) occurred_at: SystemTime,
    /// When it came from Kafka; none if it has waited in the dead letters since.
    pub(crate) received_at: Option<SystemTime>,
    /// Its trace, if that is recorded.
    pub(crate) trace_id: Option<TraceId>,
}

/// The processor's metrics. Cheap to clone: all clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    ages: EventAges,
    received_age: EventAge,
    applied_age: EventAge,
    lag: Family<OfPartition, Gauge>,
    pool_waits: Histogram,
    events: Family<Label, Counter>,
    keys: Family<Change, Counter>,
    keys_blocked: Family<InState, Gauge>,
    pub(crate) retries: Counter,
    pub(crate) fenced: Counter,
    pub(crate) pauses: Counter,
    pub(crate) commit_failures: Counter,
    pub(crate) partitions: Gauge,
    pub(crate) inbox_partitions: Gauge,
    pub(crate) inbox_partitions_dropped: Counter,
    rebalances: Family<Kind, Counter>,
    batch_rows: Histogram,
    batch_seconds: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let ages = EventAges::default();
        Self {
            received_age: ages.at(Stage::Received),
            applied_age: ages.at(Stage::Applied),
            ages,
            lag: Family::default(),
            pool_waits: Histogram::new(exponential_buckets(0.000_1, 4.0, 10)),
            events: Family::default(),
            keys: Family::default(),
            keys_blocked: Family::default(),
            retries: Counter::default(),
            fenced: Counter::default(),
            pauses: Counter::default(),
            commit_failures: Counter::default(),
            partitions: Gauge::default(),
            inbox_partitions: Gauge::default(),
            inbox_partitions_dropped: Counter::default(),
            rebalances: Family::default(),
            batch_rows: Histogram::new(exponential_buckets(1.0, 4.0, 8)),
            batch_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
        }
    }
}

impl Metrics {
    /// Puts all of them into `registry`.
    pub fn register(&self, registry: &mut Registry) {
        self.ages.show_in(registry);
        registry.register_with_unit(
            "db_client_connection_wait_time",
            "Time that batches waited for a connection of the pool, those included that got none",
            Unit::Seconds,
            self.pool_waits.clone(),
        );
        let registry = registry.sub_registry_with_prefix("outrider_processor");
        registry.register(
            "lag",
            "Offsets of an assigned partition between what the group has committed to Kafka and the partition's end, open transactions included",
            self.lag.clone(),
        );
        registry.register("events", "Records of committed batches, by what came of them", self.events.clone());
        registry.register(
            "keys",
            "Keys whose events wait, by what became of them: retrying, waiting (for an elder), parked, tried, unblocked",
            self.keys.clone(),
        );
        registry.register(
            "keys_blocked",
            "Keys of the group that wait now, by state, as Postgres has them: each processor of a group says the same",
            self.keys_blocked.clone(),
        );
        registry.register("retries", "Batches that were rolled back, to be tried again", self.retries.clone());
        registry.register("fenced", "Batches that somebody else had applied already", self.fenced.clone());
        registry.register("pauses", "Times that a partition's queue was full", self.pauses.clone());
        registry.register(
            "kafka_commit_failures",
            "Offset commits to Kafka that failed; Postgres holds the position that counts",
            self.commit_failures.clone(),
        );
        registry.register("partitions", "Partitions that are assigned and worked on", self.partitions.clone());
        registry.register("inbox_partitions", "Days that the inbox has partitions for", self.inbox_partitions.clone());
        registry.register(
            "inbox_partitions_dropped",
            "Days that the inbox has dropped",
            self.inbox_partitions_dropped.clone(),
        );
        // So that each is there before it first happens, and its first time is an increase.
        self.count(&Tally::default());
        for kind in REBALANCES {
            let _ = self.rebalances.get_or_create(&Kind { kind });
        }
        registry.register("rebalances", "Changes of the assignment", self.rebalances.clone());
        registry.register("batch_rows", "Records of a batch", self.batch_rows.clone());
        registry.register_with_unit(
            "batch_duration",
            "Time from the first attempt at a batch to its commit",
            Unit::Seconds,
            self.batch_seconds.clone(),
        );
    }

    /// Events were applied, and that was committed just now.
    pub(crate) fn applied(&self, events: &[Applied]) {
        let now = spans::now();
        for Applied { occurred_at, received_at, trace_id } in events {
            if let Some(received_at) = received_at {
                self.received_age.observe(*occurred_at, *received_at, *trace_id);
            }
            self.applied_age.observe(*occurred_at, now, *trace_id);
        }
    }

    /// Somebody has a connection of the pool, or got none.
    pub(crate) fn waited_for_connection(&self, start: Instant) {
        self.pool_waits.observe(start.elapsed().as_secs_f64());
    }

    /// How far behind the group is in the partitions that this member has.
    pub(crate) fn lag(&self, lags: &[Lag<'_>]) {
        // A scrape between these two sees fewer partitions than there are: the next one does not.
        self.lag.clear();
        for Lag { topic, partition, records } in lags {
            self.lag.get_or_create(&OfPartition { topic: (*topic).to_owned(), partition: *partition }).set(*records);
        }
    }

    /// How far behind the end of a partition its position is, as of the last time that Kafka's client said so.
    #[must_use]
    pub fn lag_of(&self, topic: &str, partition: i32) -> Option<i64> {
        let label = OfPartition { topic: topic.to_owned(), partition };
        self.lag.get(&label).map(|lag| lag.get())
    }

    /// Counts a committed batch of `rows` records.
    pub(crate) fn record(&self, tally: &Tally, rows: usize, seconds: f64) {
        self.count(tally);
        #[expect(clippy::cast_precision_loss, reason = "a batch has far fewer than 2^52 rows")]
        self.batch_rows.observe(rows as f64);
        self.batch_seconds.observe(seconds);
    }

    /// Counts what has committed.
    pub(crate) fn count(&self, tally: &Tally) {
        for (outcome, count) in [
            ("applied", tally.applied),
            ("superseded", tally.superseded),
            ("repeated", tally.repeated),
            ("passed_over", tally.passed_over),
            ("dead_lettered", tally.dead_lettered),
            ("waiting", tally.waiting),
        ] {
            self.events.get_or_create(&Label { outcome }).inc_by(count as u64);
        }
        for (change, count) in [
            ("retrying", tally.keys_retrying),
            ("waiting", tally.keys_waiting),
            ("parked", tally.keys_parked),
            ("unblocked", tally.keys_unblocked),
            ("tried", tally.keys_tried),
            ("woken", tally.keys_woken),
            ("resumed", tally.keys_resumed),
        ] {
            self.keys.get_or_create(&Change { change }).inc_by(count as u64);
        }
    }

    /// Counts a change of the assignment, one of [`REBALANCES`].
    pub(crate) fn rebalanced(&self, kind: &'static str) {
        self.rebalances.get_or_create(&Kind { kind }).inc();
    }

    /// How many keys of the group wait now in `state`.
    pub(crate) fn block(&self, state: State, keys: i64) {
        self.keys_blocked.get_or_create(&InState { state: state.name() }).set(keys);
    }

    /// How many keys of the group wait in a state: `retrying`, `waiting` or `parked`, as of a few seconds ago.
    #[must_use]
    pub fn keys_blocked(&self, state: &'static str) -> i64 {
        self.keys_blocked.get_or_create(&InState { state }).get()
    }

    /// What came of all records so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let count =
            |outcome| usize::try_from(self.events.get_or_create(&Label { outcome }).get()).unwrap_or(usize::MAX);
        let keys = |change| usize::try_from(self.keys.get_or_create(&Change { change }).get()).unwrap_or(usize::MAX);
        Tally {
            applied: count("applied"),
            superseded: count("superseded"),
            repeated: count("repeated"),
            passed_over: count("passed_over"),
            dead_lettered: count("dead_lettered"),
            waiting: count("waiting"),
            keys_retrying: keys("retrying"),
            keys_waiting: keys("waiting"),
            keys_parked: keys("parked"),
            keys_unblocked: keys("unblocked"),
            keys_tried: keys("tried"),
            keys_woken: keys("woken"),
            keys_resumed: keys("resumed"),
        }
    }

    /// How many attempts at a batch were rolled back.
    #[must_use]
    pub fn retries(&self) -> u64 {
        self.retries.get()
    }

    /// How many batches somebody else had applied already.
    #[must_use]
    pub fn fenced(&self) -> u64 {
        self.fenced.get()
    }

    /// How many changes of the assignment there were.
    #[must_use]
    pub fn rebalances(&self) -> u64 {
        REBALANCES.map(|kind| self.rebalances.get_or_create(&Kind { kind }).get()).iter().sum()
    }

    /// How many times a partition was paused because its queue was full.
    #[must_use]
    pub fn pauses(&self) -> u64 {
        self.pauses.get()
    }
}
