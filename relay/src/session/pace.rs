//! How many records Kafka takes in a moment. Pure.

use std::time::{Duration, Instant};

/// A moment: a new event may wait so long behind those of a bulk.
const MOMENT: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub(super) struct Pace {
    since: Instant,
    /// Acknowledged since then.
    count: usize,
    last: usize,
}

impl Pace {
    pub(super) const fn new(now: Instant) -> Self {
        Self { since: now, count: 0, last: 0 }
    }

    /// So many were acknowledged just now. Returns how many were in the last whole moment.
    pub(super) fn acknowledged(&mut self, count: usize, now: Instant) -> usize {
        self.count += count;
        let time = now.saturating_duration_since(self.since);
        if time >= MOMENT {
            let moments = time.as_nanos() / MOMENT.as_nanos();
            self.last = self.count / usize::try_from(moments).unwrap_or(usize::MAX);
            (self.since, self.count) = (now, 0);
        }
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_in_a_moment_counts_until_the_next_one_is_over() {
        let begun = Instant::now();
        let mut pace = Pace::new(begun);
        assert_eq!(pace.acknowledged(500, begun + MOMENT / 2), 0);
        assert_eq!(pace.acknowledged(500, begun + MOMENT), 1_000);
        assert_eq!(pace.acknowledged(300, begun + MOMENT * 3 / 2), 1_000);
        assert_eq!(pace.acknowledged(0, begun + MOMENT * 4), 100, "three moments long");
    }
}
