//! Figures for people and for programs: latencies, counts by reason, tables.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Recorded latencies, in microseconds, each true to three digits.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        // Three digits is a number of digits that the histogram knows.
        Self(Histogram::new(3).unwrap_or_else(|_| unreachable!("a histogram has one to five digits")))
    }
}

impl Latencies {
    /// Records one.
    pub fn record(&mut self, latency: Duration) {
        // It can fail only when the histogram may not grow, and this one may.
        let _ = self.0.record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    /// Adds those of another part of the same run.
    pub fn merge(&mut self, other: &Self) {
        // As above.
        let _ = self.0.add(&other.0);
    }

    /// How many were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The figures to show; `None` when nothing was recorded.
    #[must_use]
    pub fn summary(&self) -> Option<LatencySummary> {
        if self.0.is_empty() {
            return None;
        }
        let at = |quantile| millis(self.0.value_at_quantile(quantile));
        Some(LatencySummary { p50: at(0.50), p90: at(0.90), p99: at(0.99), max: millis(self.0.max()) })
    }
}

/// Microseconds as milliseconds.
#[expect(clippy::cast_precision_loss, reason = "2^52 microseconds are 142 years")]
fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

/// Percentiles in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LatencySummary {
    /// Half are not above this.
    pub p50: f64,
    /// 90 in 100 are not above this.
    pub p90: f64,
    /// 99 in 100 are not above this.
    pub p99: f64,
    /// The highest.
    pub max: f64,
}

impl Display for LatencySummary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p90, p99, max } = self;
        write!(formatter, "p50 {p50:.1} ms   p90 {p90:.1} ms   p99 {p99:.1} ms   max {max:.1} ms")
    }
}

/// How often each reason occurred.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Reasons(BTreeMap<String, u64>);

impl Reasons {
    /// Counts one.
    pub fn count(&mut self, reason: impl Into<String>) {
        *self.0.entry(reason.into()).or_default() += 1;
    }

    /// Adds those of another part of the same run.
    pub fn merge(&mut self, other: Self) {
        for (reason, count) in other.0 {
            *self.0.entry(reason).or_default() += count;
        }
    }

    /// All of them together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

impl Display for Reasons {
    /// One indented line for each, the most frequent first.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut reasons: Vec<_> = self.0.iter().collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (reason, count) in reasons {
            write!(formatter, "\n{count:>22}  {reason}")?;
        }
        Ok(())
    }
}

/// So many in this time, each second; 0 when no time has passed.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts of a run are far below 2^52")]
pub fn per_second(count: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let mut latencies = Latencies::default();
        for millis in 1..=100 {
            latencies.record(Duration::from_millis(millis));
        }
        let summary = latencies.summary().expect("something was recorded");
        // Three digits: the last one may be off.
        for (found, expected) in [(summary.p50, 50.0), (summary.p90, 90.0), (summary.p99, 99.0), (summary.max, 100.0)] {
            assert!((found - expected).abs() <= expected / 1000.0, "{found} is not {expected}");
        }
        assert_eq!(Latencies::default().summary(), None);
    }

    #[test]
    fn parts_of_a_run_are_added_up() {
        let mut all = Latencies::default();
        let mut part = Latencies::default();
        part.record(Duration::from_secs(100));
        all.merge(&part);
        all.merge(&part);
        assert_eq!(all.count(), 2);

        let mut reasons = Reasons::default();
        let mut part = Reasons::default();
        reasons.count("a");
        part.count("b");
        part.count("b");
        reasons.merge(part);
        assert_eq!(reasons.total(), 3);
        assert_eq!(reasons.to_string(), "\n                     2  b\n                     1  a");
    }

    #[test]
    fn a_rate_is_a_count_over_a_time() {
        assert!((per_second(10, Duration::from_secs(4)) - 2.5).abs() < f64::EPSILON);
        assert!(per_second(10, Duration::ZERO).abs() < f64::EPSILON);
    }
}
