//! When the next look is due. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// Least time between two looks, so that batches hardly notice.
pub(super) const LOOK_MIN: Duration = Duration::from_millis(100);

/// Most time between two looks: so long an operator's request waits for its turn.
pub(super) const LOOK_MAX: Duration = Duration::from_millis(500);

/// The rest after a look, as a multiple of the time that it took: on a busy database looks must not take turns with batches.
const REST: u32 = 20;

/// The turns of one worker's looks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turns {
    /// When the next one is due while there are records to work on.
    pub(super) among_batches: Instant,
    /// And when there are none: there is no need to rest.
    pub(super) idle: Instant,
    last: Instant,
    /// What `last` has to be followed by, among batches.
    rest: Duration,
}

impl Turns {
    /// The first one is due `now`.
    pub(super) const fn new(now: Instant) -> Self {
        Self { among_batches: now, idle: now, last: now, rest: LOOK_MIN }
    }

    /// A look has found that the next one can wait for `wait`; with no wait at all, it has left something undone.
    pub(super) fn looked(&mut self, started: Instant, ended: Instant, wait: Duration) {
        self.last = ended;
        self.rest = (ended - started).saturating_mul(REST).clamp(LOOK_MIN, LOOK_MAX);
        self.idle = ended + wait;
        self.among_batches = if wait.is_zero() { ended } else { ended + wait.max(self.rest) };
    }

    /// A look has failed, and is tried again after `delay`.
    pub(super) fn failed(&mut self, ended: Instant, delay: Duration) {
        self.last = ended;
        (self.among_batches, self.idle) = (ended + delay, ended + delay);
    }

    /// Has the next one come as soon as it may.
    pub(super) fn soon(&mut self) {
        self.among_batches = self.among_batches.min(self.last + self.rest);
        self.idle = self.idle.min(self.last + LOOK_MIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Duration = Duration::from_millis(22);

    fn after_a_slow_look(wait: Duration) -> (Turns, Instant) {
        let begun = Instant::now();
        let mut turns = Turns::new(begun);
        turns.looked(begun, begun + SLOW, wait);
        (turns, begun + SLOW)
    }

    #[test]
    fn looks_rest_among_batches_and_not_where_there_are_none() {
        let (turns, ended) = after_a_slow_look(LOOK_MIN);
        assert_eq!((turns.among_batches, turns.idle), (ended + SLOW * REST, ended + LOOK_MIN));
    }

    #[test]
    fn a_key_that_has_just_failed_is_looked_for_at_the_next_turn() {
        let (mut turns, ended) = after_a_slow_look(LOOK_MAX);
        assert_eq!((turns.among_batches, turns.idle), (ended + LOOK_MAX, ended + LOOK_MAX));
        turns.soon();
        assert_eq!((turns.among_batches, turns.idle), (ended + SLOW * REST, ended + LOOK_MIN));
        // It comes no later by being asked for once more.
        turns.looked(ended, ended, LOOK_MIN);
        turns.soon();
        assert_eq!((turns.among_batches, turns.idle), (ended + LOOK_MIN, ended + LOOK_MIN));
    }

    #[test]
    fn what_is_left_undone_is_gone_on_with_at_once_and_a_failure_is_waited_for() {
        let (mut turns, ended) = after_a_slow_look(Duration::ZERO);
        assert_eq!((turns.among_batches, turns.idle), (ended, ended));
        turns.failed(ended, LOOK_MAX);
        assert_eq!((turns.among_batches, turns.idle), (ended + LOOK_MAX, ended + LOOK_MAX));
    }
}
