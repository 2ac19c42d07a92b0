//! How many spans there may be, and which: read from the environment.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::sampler::HeadSampler;
use crate::config::{ConfigError, Env};

/// What is recorded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpanLimits {
    /// Which traces.
    pub sampler: HeadSampler,
    /// Of those, how many requests or events of this process in a second.
    pub per_second_max: u32,
    /// What takes so long is recorded in any case; none: nothing is.
    pub slow: Option<Duration>,
}

impl SpanLimits {
    /// Reads `OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG`, `TRACES_PER_SECOND_MAX` and `TRACES_SLOW_MS`.
    ///
    /// # Errors
    /// When one of them makes no sense.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let number = |variable: &str, default: u32| match env.var(variable) {
            None => Ok(default),
            Some(value) => value
                .parse()
                .map_err(|error| ConfigError::new(variable, format!("is a whole number: {error} ('{value}' given)"))),
        };
        let slow_ms = number("TRACES_SLOW_MS", 5_000)?;
        Ok(Self {
            sampler: HeadSampler::from_env(env)?,
            per_second_max: number("TRACES_PER_SECOND_MAX", 2_000)?,
            slow: (slow_ms > 0).then(|| Duration::from_millis(slow_ms.into())),
        })
    }
}

/// So many a second, and no more.
#[derive(Debug)]
pub struct Budget {
    per_second: u32,
    begun: Instant,
    /// The second that is counted, since `begun`.
    second: AtomicU64,
    taken: AtomicU32,
    missed: Arc<AtomicU64>,
}

impl Budget {
    /// A budget that nobody has taken from.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        Self {
            per_second,
            begun: Instant::now(),
            second: AtomicU64::new(0),
            taken: AtomicU32::new(0),
            missed: Arc::default(),
        }
    }

    /// Whether there is some left. Threads that begin a second at the same time may get a few more out of it.
    #[must_use]
    pub fn has_some(&self) -> bool {
        let second = self.begun.elapsed().as_secs();
        if self.second.load(Ordering::Relaxed) != second {
            self.second.store(second, Ordering::Relaxed);
            self.taken.store(0, Ordering::Relaxed);
        }
        self.taken.load(Ordering::Relaxed) < self.per_second
    }

    /// Takes one, if there is one left.
    #[must_use]
    pub fn take(&self) -> bool {
        let taken = self.has_some() && self.taken.fetch_add(1, Ordering::Relaxed) < self.per_second;
        if !taken {
            self.miss();
        }
        taken
    }

    /// Counts one that was not there.
    pub fn miss(&self) {
        self.missed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts those that were not there.
    #[must_use]
    pub fn missed(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.missed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_taken_than_there_are_and_the_rest_is_counted() {
        let budget = Budget { begun: Instant::now() + Duration::from_hours(1), ..Budget::new(2) };
        assert_eq!([budget.take(), budget.take(), budget.take()], [true, true, false]);
        assert!(!budget.has_some());
        assert_eq!(budget.missed().load(Ordering::Relaxed), 1);
        // Another second.
        budget.second.store(7, Ordering::Relaxed);
        assert!(budget.has_some() && budget.take());
    }

    #[test]
    fn what_is_recorded_is_read_from_the_environment() {
        let read = |pairs: &[(&str, &str)]| SpanLimits::from_env(&Env::from_pairs(pairs.iter().copied()));
        let limits = read(&[]).expect("defaults");
        assert_eq!((limits.per_second_max, limits.slow), (2_000, Some(Duration::from_secs(5))));
        let limits = read(&[("TRACES_PER_SECOND_MAX", "7"), ("TRACES_SLOW_MS", "0")]).expect("good");
        assert_eq!((limits.per_second_max, limits.slow), (7, None));
        let error = read(&[("TRACES_SLOW_MS", "soon")]).unwrap_err().to_string();
        assert!(error.starts_with("TRACES_SLOW_MS: is a whole number"), "{error}");
    }
}
