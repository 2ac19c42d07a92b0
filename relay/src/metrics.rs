//! Every instrument of the relay, with its unit.

pub mod backlog;
pub mod upkeep;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Class {
    class: &'static str,
}

/// The relay's instruments. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Events acknowledged by Kafka, repeats included.
    pub published: Counter,
    /// Events that committed late: behind the position of their lane.
    pub late: Counter,
    /// Events put into `relay_parked`.
    pub parked: Counter,
    /// Lanes held.
    pub lanes_held: Gauge,
    sessions_failed: Family<Class, Counter>,
    /// Reads of the outbox.
    pub reads: Counter,
    /// Time spent settling.
    pub settle_seconds: Counter<f64, std::sync::atomic::AtomicU64>,
}

impl Metrics {
    /// Makes the instruments known to `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
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
        registry.register("outbox_reads", "Reads of the outbox", metrics.reads.clone());
        registry.register("relay_lanes_held", "Lanes that this relay holds", metrics.lanes_held.clone());
        registry.register(
            "relay_sessions_failed",
            "Sessions that failed and were begun anew, by what failed; lane_lost: another relay has taken a lane of this one",
            metrics.sessions_failed.clone(),
        );
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
}
