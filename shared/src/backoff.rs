//! Exponential backoff with full jitter, as pure arithmetic: the caller brings the randomness and does the waiting.
//!
//! Full jitter (a delay drawn evenly between zero and the exponential cap) spreads clients that failed together better than
//! any other variant: AWS Architecture Blog, "Exponential Backoff And Jitter", 2015.

use std::time::Duration;

/// A schedule of delays: the cap doubles with each attempt, from `first` up to `max`.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    attempt: u32,
}

impl Backoff {
    /// A schedule that has not failed yet.
    #[must_use]
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, attempt: 0 }
    }

    /// The delay before the next attempt; `unit` is a random number in `0.0..1.0`.
    pub fn delay(&mut self, unit: f64) -> Duration {
        let cap = self.first.saturating_mul(1_u32.checked_shl(self.attempt).unwrap_or(u32::MAX)).min(self.max);
        self.attempt = self.attempt.saturating_add(1);
        cap.mul_f64(unit.clamp(0.0, 1.0))
    }

    /// The delay before the next attempt, with a random number of the thread's generator.
    pub fn random_delay(&mut self) -> Duration {
        self.delay(rand::random::<f64>())
    }

    /// How many delays were handed out since the last success.
    #[must_use]
    pub const fn attempts(&self) -> u32 {
        self.attempt
    }

    /// Starts again from `first`, after a success.
    pub const fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_doubles_and_stays_below_the_maximum() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let caps: Vec<u128> = (0..6).map(|_| backoff.delay(1.0).as_millis()).collect();
        assert_eq!(caps, [100, 200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.delay(0.5), Duration::from_millis(50));
    }

    #[test]
    fn a_thousand_failures_do_not_overflow() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        for _ in 0..1_000 {
            assert!(backoff.delay(1.0) <= Duration::from_secs(30));
        }
        assert_eq!(backoff.attempts(), 1_000);
    }
}
