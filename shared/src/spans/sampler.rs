//! The decision at the head of a trace, as `OTEL_TRACES_SAMPLER` says.

use opentelemetry::trace::TraceId;

use crate::config::{ConfigError, Env};
use crate::propagation::TraceContext;

const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";

/// Which traces are recorded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadSampler {
    /// Whether a trace that comes from elsewhere is recorded if it was there.
    by_parent: bool,
    /// The others: of all that there could be, those whose id is below this share.
    ratio: f64,
}

impl HeadSampler {
    /// Records what comes from elsewhere as was decided there, and this share of the others.
    #[must_use]
    pub const fn parent_based(ratio: f64) -> Self {
        Self { by_parent: true, ratio }
    }

    /// Reads the two variables. Without them all traces are recorded, but those that were decided against elsewhere.
    ///
    /// # Errors
    /// When there is no such sampler, or the ratio is none.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let ratio = match env.var(ARGUMENT) {
            None => 1.0,
            Some(value) => value
                .parse()
                .ok()
                .filter(|ratio| (0.0..=1.0).contains(ratio))
                .ok_or_else(|| ConfigError::new(ARGUMENT, format!("is a number from 0 to 1, not '{value}'")))?,
        };
        let name = env.var(SAMPLER).unwrap_or("parentbased_always_on");
        let (by_parent, root) = name.strip_prefix("parentbased_").map_or((false, name), |root| (true, root));
        let ratio = match root {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => ratio,
            _ => {
                return Err(ConfigError::new(
                    SAMPLER,
                    format!(
                        "is always_on, always_off or traceidratio, with parentbased_ before it or not, not '{name}'"
                    ),
                ));
            }
        };
        Ok(Self { by_parent, ratio })
    }

    /// Whether nothing but its parent decides over a trace that has one.
    #[must_use]
    pub const fn goes_by_parent(&self) -> bool {
        self.by_parent
    }

    /// Whether a trace is recorded. By its id, as OpenTelemetry's own samplers do it: whoever has the same ratio decides alike.
    #[must_use]
    pub fn samples(&self, parent: Option<&TraceContext>, trace_id: TraceId) -> bool {
        match parent {
            Some(parent) if self.by_parent => parent.sampled,
            _ if self.ratio >= 1.0 => true,
            _ => share_of(trace_id) < self.ratio,
        }
    }
}

/// Where an id is among all that there could be, from 0 to 1: by the lower 63 bits of its lower half.
#[expect(clippy::cast_precision_loss, reason = "a share need not be exact")]
fn share_of(trace_id: TraceId) -> f64 {
    let low = (u128::from_be_bytes(trace_id.to_bytes()) & u128::from(u64::MAX)) >> 1;
    low as f64 / (1_u64 << 63) as f64
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::SpanId;

    use super::*;

    fn read(sampler: &str, argument: &str) -> Result<HeadSampler, ConfigError> {
        HeadSampler::from_env(&Env::from_pairs([(SAMPLER, sampler), (ARGUMENT, argument)]))
    }

    fn parent(sampled: bool) -> TraceContext {
        TraceContext { trace_id: TraceId::from(u128::MAX), span_id: SpanId::from(1), sampled }
    }

    #[test]
    fn the_standard_samplers_decide_as_their_names_say() {
        let (low, high) = (TraceId::from(5), TraceId::from(u128::MAX));
        for (name, argument, roots, under_sampled, under_unsampled) in [
            ("", "", [true, true], true, false),
            ("parentbased_always_on", "", [true, true], true, false),
            ("parentbased_always_off", "", [false, false], true, false),
            ("parentbased_traceidratio", "0.5", [true, false], true, false),
            ("parentbased_traceidratio", "0", [false, false], true, false),
            ("always_on", "", [true, true], true, true),
            ("always_off", "", [false, false], false, false),
            ("traceidratio", "0.5", [true, false], false, false),
        ] {
            let sampler = read(name, argument).expect("a sampler");
            assert_eq!([low, high].map(|id| sampler.samples(None, id)), roots, "{name} {argument}");
            assert_eq!(sampler.samples(Some(&parent(true)), high), under_sampled, "{name} {argument}");
            assert_eq!(sampler.samples(Some(&parent(false)), high), under_unsampled, "{name} {argument}");
        }
    }

    #[test]
    fn what_is_no_sampler_is_refused() {
        let refused = |sampler, argument| read(sampler, argument).unwrap_err().to_string();
        assert!(refused("sometimes", "").starts_with("OTEL_TRACES_SAMPLER: is always_on, always_off or"));
        assert!(refused("traceidratio", "2").starts_with("OTEL_TRACES_SAMPLER_ARG: is a number from 0 to 1, not '2'"));
        assert!(refused("traceidratio", "many").starts_with("OTEL_TRACES_SAMPLER_ARG: "));
    }
}
