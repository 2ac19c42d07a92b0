//! Says once that Postgres is away and once that it is back, however many orders are refused meanwhile; and why the last ones were.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use shared::db::sql_state;

use crate::store::StoreError;

/// What the writers know of Postgres together.
#[derive(Debug, Default)]
pub struct Outage {
    is_on: AtomicBool,
    /// When orders were last refused, and why, since any was taken.
    last: Mutex<Option<(Instant, String)>>,
}

impl Outage {
    /// Takes note of how a statement ended.
    pub(super) fn note<T>(&self, result: &Result<T, StoreError>) {
        match result {
            Ok(_) => {
                // Read first: a swap on each statement would send the cache line to and fro for nothing.
                if self.is_on.load(Ordering::Relaxed) && self.is_on.swap(false, Ordering::Relaxed) {
                    *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    tracing::info!("orders are accepted again");
                }
            }
            Err(error @ (StoreError::Unreachable(_) | StoreError::Unavailable(_) | StoreError::InDoubt(_))) => {
                let why = sql_state(error.postgres()).map_or_else(
                    || "Postgres does not answer".to_owned(),
                    |state| format!("Postgres refuses orders (SQLSTATE {state})"),
                );
                *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), why));
                if !self.is_on.swap(true, Ordering::Relaxed) {
                    tracing::warn!(error = %error, "orders are refused until Postgres is back");
                }
            }
            // Postgres answered. Whoever handles the error says so.
            Err(StoreError::Refused(_) | StoreError::Key(_) | StoreError::Broken(_)) => {}
        }
    }

    /// Why orders were refused, if any was within `time` and none was taken since.
    #[must_use]
    pub fn within(&self, time: Duration) -> Option<String> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().filter(|(at, _)| at.elapsed() < time).map(|(_, why)| why.clone())
    }
}
