//! How much watching and waiting there may be.

use std::time::Duration;

use serde::Deserialize;
use shared::config::ConfigError;

use crate::config::within;

/// The names are those of the variables without their `API_`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(default)]
pub struct Watching {
    /// Event streams that are open at once; the next one is answered 503.
    pub sse_readers_max: usize,
    /// Seconds after which a silent stream gets a comment.
    pub sse_heartbeat_secs: u64,
    /// Events that may wait for one reader; with one more it is cut off.
    pub sse_buffer_events: usize,
    /// Milliseconds between two looks at the outbox while something happens.
    pub feed_poll_min_ms: u64,
    /// Milliseconds between two looks at the outbox while nothing happens.
    pub feed_poll_max_ms: u64,
    /// The longest that a request waits for its order, whatever it prefers, in seconds.
    pub wait_max_secs: u64,
}

impl Default for Watching {
    fn default() -> Self {
        Self {
            sse_readers_max: 10_000,
            sse_heartbeat_secs: 15,
            sse_buffer_events: 1_000,
            feed_poll_min_ms: 5,
            feed_poll_max_ms: 50,
            wait_max_secs: 30,
        }
    }
}

impl Watching {
    /// Whether all of it is within its bounds.
    ///
    /// # Errors
    /// The error names the first variable that is not.
    pub fn check(&self) -> Result<(), ConfigError> {
        within("API_SSE_READERS_MAX", &self.sse_readers_max, 0..=1_000_000)?;
        within("API_SSE_HEARTBEAT_SECS", &self.sse_heartbeat_secs, 1..=3_600)?;
        within("API_SSE_BUFFER_EVENTS", &self.sse_buffer_events, 1..=1_000_000)?;
        within("API_FEED_POLL_MIN_MS", &self.feed_poll_min_ms, 1..=1_000)?;
        within("API_FEED_POLL_MAX_MS", &self.feed_poll_max_ms, self.feed_poll_min_ms..=10_000)?;
        within("API_WAIT_MAX_SECS", &self.wait_max_secs, 0..=600)
    }

    /// The time after which a silent stream gets a comment.
    #[must_use]
    pub const fn heartbeat(&self) -> Duration {
        Duration::from_secs(self.sse_heartbeat_secs)
    }

    /// The shortest time between two looks.
    #[must_use]
    pub const fn poll_min(&self) -> Duration {
        Duration::from_millis(self.feed_poll_min_ms)
    }

    /// The longest time between two looks.
    #[must_use]
    pub const fn poll_max(&self) -> Duration {
        Duration::from_millis(self.feed_poll_max_ms)
    }
}
