//! When a key that failed is tried again, and when it is given up. Pure.

use std::time::Duration;

use crate::handler::FailureKind;

/// The limits on the attempts at one event.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    /// Longest wait after the first failure; doubles with each further one.
    pub(crate) first: Duration,
    /// Longest wait of all.
    pub(crate) max: Duration,
    /// So many attempts are made at one event.
    pub(crate) attempts_max: u32,
    /// For so long after its first failure.
    pub(crate) age_max: Duration,
}

/// What is to become of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// It is tried again after this time.
    Again(Duration),
    /// It is parked.
    Park,
}

impl Schedule {
    /// What is to become of a key whose first event has now failed for the `attempts`th time, `age` after the first time; `unit` is a
    /// random number in `0.0..1.0`. The wait has full jitter, as in [`shared::backoff`], so that keys which failed together do
    /// not come back together.
    ///
    /// An event that came too early is limited by its age alone: its elder may be a long time coming, and to look again costs next
    /// to nothing.
    pub(crate) fn next(&self, kind: FailureKind, attempts: u32, age: Duration, unit: f64) -> Next {
        let exhausted = match kind {
            FailureKind::Permanent => true,
            FailureKind::Retryable => attempts >= self.attempts_max || age >= self.age_max,
            FailureKind::TooEarly => age >= self.age_max,
        };
        if exhausted {
            return Next::Park;
        }
        let doublings = attempts.saturating_sub(1);
        let cap = self.first.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX)).min(self.max);
        // Not beyond its age: the last attempt, after which it is parked, is then.
        Next::Again(cap.mul_f64(unit.clamp(0.0, 1.0)).min(self.age_max.saturating_sub(age)))
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const SCHEDULE: Schedule = Schedule {
        first: Duration::from_millis(200),
        max: Duration::from_mins(1),
        attempts_max: 10,
        age_max: Duration::from_mins(15),
    };

    fn next(kind: FailureKind, attempts: u32, age_secs: u64, unit: f64) -> Next {
        SCHEDULE.next(kind, attempts, Duration::from_secs(age_secs), unit)
    }

    #[test]
    fn the_wait_doubles_up_to_the_longest() {
        let waits: Vec<Next> = [1, 2, 3, 9].map(|attempts| next(FailureKind::Retryable, attempts, 0, 1.0)).into();
        assert_eq!(waits, [200, 400, 800, 51_200].map(|millis| Next::Again(Duration::from_millis(millis))));
        assert_eq!(next(FailureKind::TooEarly, u32::MAX, 0, 1.0), Next::Again(Duration::from_mins(1)));
    }

    #[test]
    fn what_is_exhausted_or_permanent_is_parked() {
        assert_eq!(next(FailureKind::Permanent, 1, 0, 0.5), Next::Park);
        assert_eq!(next(FailureKind::Retryable, 10, 0, 0.5), Next::Park);
        assert_eq!(next(FailureKind::Retryable, 2, 900, 0.5), Next::Park);
        assert_eq!(next(FailureKind::TooEarly, 2, 900, 0.5), Next::Park);
    }

    #[test]
    fn every_key_is_given_up_within_its_limits_whatever_the_schedule() {
        for seed in 0..5_000 {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let mut upto = |limit: u32| random.random_range(1..=limit);
            let max = Duration::from_millis(upto(60_000).into());
            let schedule = Schedule {
                first: Duration::from_millis(upto(1_000).into()),
                max,
                attempts_max: upto(20),
                age_max: max * upto(50),
            };
            let kind = if upto(2) == 1 { FailureKind::Retryable } else { FailureKind::TooEarly };
            let (mut age, mut attempts) = (Duration::ZERO, 1);
            while let Next::Again(wait) = schedule.next(kind, attempts, age, random.random()) {
                assert!(wait <= schedule.max, "seed {seed}: waits {wait:?}");
                age += wait;
                attempts += 1;
                assert!(age <= schedule.age_max, "seed {seed}: tried at {age:?}");
                assert!(kind == FailureKind::TooEarly || attempts <= schedule.attempts_max, "seed {seed}");
                assert!(attempts < 1_000_000, "seed {seed}: never given up");
            }
        }
    }
}
