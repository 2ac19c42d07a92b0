//! Lines of the log that would come again and again while something is wrong: one now and then, with how many were left out.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// At most one line of each kind in so long.
pub const LOG_EVERY: Duration = Duration::from_secs(10);

/// What was logged last, by kind: the name of a reason, or of an error's class. There are a handful.
#[derive(Debug, Default)]
pub struct Throttle(Mutex<Vec<(&'static str, Instant, u64)>>);

impl Throttle {
    /// Nothing was logged yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// If a line of this kind is to be logged now: how many of its like were not, since the last one that was.
    pub fn pass(&self, kind: &'static str) -> Option<u64> {
        self.pass_at(kind, Instant::now())
    }

    fn pass_at(&self, kind: &'static str, now: Instant) -> Option<u64> {
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((_, last, others)) = logged.iter_mut().find(|(known, ..)| *known == kind) else {
            logged.push((kind, now, 0));
            return Some(0);
        };
        if now.duration_since(*last) < LOG_EVERY {
            *others += 1;
            return None;
        }
        *last = now;
        Some(std::mem::take(others))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_line_now_and_then() {
        let throttle = Throttle::new();
        let now = Instant::now();
        let passed = |later| throttle.pass_at("postgres", now + later);
        assert_eq!([Duration::ZERO; 3].map(passed), [Some(0), None, None]);
        assert_eq!(throttle.pass_at("kafka", now), Some(0), "each kind by itself");
        assert_eq!(passed(LOG_EVERY), Some(2));
        assert_eq!(passed(LOG_EVERY * 2), Some(0));
    }
}
