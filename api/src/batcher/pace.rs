//! How long a job waits for each one before it. Pure: the caller brings the time.

use std::time::{Duration, Instant};

/// How much the newest measurement counts.
const NEWEST: f64 = 0.2;

/// What taking a job off the queue has cost lately, while it had more than one statement takes.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When jobs were taken and others were left; nothing while the writers keep up.
    since: Option<Instant>,
    job_secs: Option<f64>,
}

impl Pace {
    /// Takes note that `count` jobs were taken and `left` were not. Only what lies between two takes of a queue that never ran empty is
    /// a measure of the writers; otherwise it is one of those who send orders.
    pub(super) fn taken(&mut self, now: Instant, count: usize, left: usize) {
        if let Some(since) = self.since.filter(|_| count > 0) {
            #[expect(clippy::cast_precision_loss, reason = "a queue has a million jobs at most")]
            let newest = now.duration_since(since).as_secs_f64() / count as f64;
            // The mean of a few, since two writers take turns: one interval is short and the next one long.
            self.job_secs = Some(self.job_secs.map_or(newest, |secs| secs + NEWEST * (newest - secs)));
        }
        self.since = (left > 0).then_some(now);
    }

    /// How long a job would wait behind `count` others; nothing while that is not known.
    pub(super) fn expected(&self, count: usize) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "a queue has a million jobs at most")]
        let secs = self.job_secs.unwrap_or_default() * count as f64;
        Duration::try_from_secs_f64(secs).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_follows_the_rate_at_which_a_full_queue_is_emptied() {
        let mut pace = Pace::default();
        let start = Instant::now();
        assert_eq!(pace.expected(1_000_000), Duration::ZERO, "nothing is known yet");
        for turn in 0..50 {
            pace.taken(start + Duration::from_millis(20 * turn), 500, 100);
        }
        // 500 in 20 ms.
        let expected = pace.expected(1_000).as_secs_f64();
        assert!((expected - 0.040).abs() < 0.001, "{expected}");
        for turn in 50..100 {
            pace.taken(start + Duration::from_millis(200 * turn), 500, 100);
        }
        let expected = pace.expected(1_000).as_secs_f64();
        assert!((expected - 0.400).abs() < 0.01, "{expected}");
    }

    #[test]
    fn a_pause_in_which_nobody_ordered_says_nothing_of_the_writers() {
        let mut pace = Pace::default();
        let start = Instant::now();
        pace.taken(start, 500, 0);
        pace.taken(start + Duration::from_mins(1), 1, 0);
        pace.taken(start + Duration::from_mins(2), 500, 500);
        assert_eq!(pace.expected(1_000), Duration::ZERO);
        pace.taken(start + Duration::from_secs(121), 0, 500);
        assert_eq!(pace.expected(1_000), Duration::ZERO, "nothing was taken, so nothing is known");
    }
}
