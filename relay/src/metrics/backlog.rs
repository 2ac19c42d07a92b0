//! Instruments of what is still to be published, as Postgres has it: every relay shows all lanes, those that nobody holds included.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::backlog::Look;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfLane {
    lane: i16,
}

/// The instruments. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct BacklogGauges {
    rows: Family<OfLane, Gauge>,
    oldest_age: Family<OfLane, Gauge<f64, AtomicU64>>,
    parked_keys: Gauge,
    parked_events: Gauge,
}

impl BacklogGauges {
    /// Makes the instruments known to `registry`.
    pub fn register(registry: &mut Registry) -> Self {
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
    }
}
