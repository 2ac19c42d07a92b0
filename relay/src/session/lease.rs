//! Until when this relay may send, as the thread that sends sees it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The end of the leases, by this process's clock and at the worst.
#[derive(Debug)]
pub(super) struct Lease {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    until: Instant,
    closed: bool,
}

impl Lease {
    pub(super) fn new() -> Self {
        Self { state: Mutex::new(State { until: Instant::now(), closed: false }), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The leases were renewed.
    pub(super) fn extend(&self, until: Instant) {
        self.lock().until = until;
        self.changed.notify_all();
    }

    /// The session has ended: nothing more may be sent.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Whether the session has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Returns as soon as a record that may take as long as `needed` can be sent under the leases, or whether it cannot any more.
    ///
    /// A relay that was frozen between reading and sending waits here when it wakes: its session's next renewal finds out that the lanes
    /// are another's and closes this.
    pub(super) fn allows(&self, needed: Duration) -> bool {
        let mut state = self.lock();
        loop {
            if state.closed {
                return false;
            }
            if Instant::now() + needed < state.until {
                return true;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
