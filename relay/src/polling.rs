//! How long to wait before the next look at the outbox. Pure.
//!
//! A look costs Postgres and Kafka about as much for one event as for ten. So where events come steadily but few at a time, a look waits for some
//! of them; and where none come, it comes seldom.

use std::time::Duration;

use crate::lanes::plan::Found;

/// Events that make a look worth its cost.
const EVENTS_WANTED: u32 = 3;

/// The longest wait while events come.
const STEADY_MAX: Duration = Duration::from_millis(16);

/// See the module.
#[derive(Debug)]
pub(crate) struct Polling {
    shortest: Duration,
    wait: Duration,
}

impl Polling {
    /// Waits at least so long.
    pub(crate) const fn new(shortest: Duration) -> Self {
        Self { shortest, wait: shortest }
    }

    /// How long to wait after a look that found `events`; none: there are more to be read at once. After many looks for nothing it is `longest`.
    pub(crate) fn after(&mut self, found: Found, events: usize, longest: Duration) -> Option<Duration> {
        let events = u32::try_from(events).unwrap_or(u32::MAX);
        self.wait = match found {
            Found::More => return None,
            // So long as it takes until so many have come, if they go on to come as they have.
            Found::All => (self.wait * EVENTS_WANTED / events.max(1)).min(STEADY_MAX).max(self.shortest),
            Found::Nothing => (self.wait * 2).min(longest),
        };
        Some(self.wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_millis(50);

    fn waits(polling: &mut Polling, found: Found, events: usize) -> Vec<u128> {
        (0..6).filter_map(|_| Some(polling.after(found, events, LONGEST)?.as_millis())).collect()
    }

    #[test]
    fn a_look_waits_for_some_events_and_seldom_comes_for_none() {
        let mut polling = Polling::new(Duration::from_millis(2));
        assert_eq!(waits(&mut polling, Found::More, 500), []);
        assert_eq!(waits(&mut polling, Found::All, 5), [2; 6]);
        assert_eq!(waits(&mut polling, Found::All, 1), [6, 16, 16, 16, 16, 16]);
        assert_eq!(waits(&mut polling, Found::All, 3), [16; 6], "as many as are wanted");
        assert_eq!(waits(&mut polling, Found::All, 6), [8, 4, 2, 2, 2, 2]);
        assert_eq!(waits(&mut polling, Found::Nothing, 0), [4, 8, 16, 32, 50, 50]);
        assert_eq!(waits(&mut polling, Found::All, 1), [16; 6], "the next ones come soon");
        assert_eq!(waits(&mut polling, Found::All, 900), [2; 6]);
    }

    #[test]
    fn a_setting_that_is_longer_holds() {
        let mut polling = Polling::new(Duration::from_millis(20));
        assert_eq!(waits(&mut polling, Found::All, 1), [20; 6]);
    }
}
