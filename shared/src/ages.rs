//! How old events are when they reach the stages of their way: one histogram by stage, of which each service shows its own stages.
//!
//! The age is told from when the event occurred (for what the pipeline's own services write: its transaction's begin, by the database's
//! clock) to when the stage was reached, by the clock of the service's machine. So that of the last stage is what users wait for, and the
//! difference between two stages is what lies between them.

use std::fmt;
use std::time::SystemTime;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};

use crate::propagation::TraceId;
use crate::spans::seconds_between;

/// From a millisecond to two hours.
const SECONDS: [f64; 18] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0, 7_200.0];

/// A point on an event's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// A relay has it from the outbox.
    Read,
    /// Kafka has it.
    Acknowledged,
    /// A processor has it from Kafka.
    Received,
    /// Its effects are committed.
    Applied,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    stage: Stage,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ExemplarLabels {
    trace_id: String,
}

type Histogram = HistogramWithExemplars<ExemplarLabels>;

/// The ages of events at the stages of a service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventAges(Family<Labels, Histogram>);

/// The ages of events at one stage. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventAge(Histogram);

impl Default for EventAges {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(SECONDS.into_iter())))
    }
}

impl EventAges {
    /// Makes them, known to `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let ages = Self::default();
        ages.show_in(registry);
        ages
    }

    /// Makes them known to `registry`.
    pub fn show_in(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "outrider_event_age",
            "Age of each event when it reached a stage: read, acknowledged (relay), received, applied (processor); since it occurred",
            Unit::Seconds,
            self.0.clone(),
        );
    }

    /// Those at one stage.
    #[must_use]
    pub fn at(&self, stage: Stage) -> EventAge {
        EventAge(self.0.get_or_create_owned(&Labels { stage }))
    }
}

impl EventAge {
    /// An event has reached the stage. With the id of its trace, if that is recorded, it becomes an example of how long it can take.
    pub fn observe(&self, occurred_at: SystemTime, reached_at: SystemTime, trace_id: Option<TraceId>) {
        let labels = trace_id.map(|trace_id| ExemplarLabels { trace_id: trace_id.to_string() });
        let example_at = labels.is_some().then_some(reached_at);
        self.0.observe(seconds_between(occurred_at, reached_at), labels, example_at);
    }
}

impl EncodeLabelValue for Stage {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), fmt::Error> {
        let name = match self {
            Self::Read => "read",
            Self::Acknowledged => "acknowledged",
            Self::Received => "received",
            Self::Applied => "applied",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_age_is_shown_with_the_trace_that_is_an_example_of_it() {
        let mut registry = Registry::default();
        let age = EventAges::register(&mut registry).at(Stage::Acknowledged);
        let occurred_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        age.observe(occurred_at, occurred_at + Duration::from_millis(4), Some(TraceId::from(0xabc)));
        age.observe(occurred_at, occurred_at - Duration::from_secs(1), None);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        for line in [
            "outrider_event_age_seconds_sum{stage=\"acknowledged\"} 0.004\n",
            "outrider_event_age_seconds_bucket{le=\"0.001\",stage=\"acknowledged\"} 1\n",
            "{le=\"0.005\",stage=\"acknowledged\"} 2 # {trace_id=\"00000000000000000000000000000abc\"} 0.004 1700000000.004",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
