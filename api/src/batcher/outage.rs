//! Says once that Postgres is away and once that it is back, however many orders are refused meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::store::StoreError;

/// What the writers know of Postgres together.
#[derive(Debug, Default)]
pub(super) struct Outage(AtomicBool);

impl Outage {
    /// Takes note of how a statement ended.
    pub(super) fn note<T>(&self, result: &Result<T, StoreError>) {
        match result {
            Ok(_) => {
                // Read first: a swap on each statement would send the cache line to and fro for nothing.
                if self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed) {
                    tracing::info!("orders are accepted again");
                }
            }
            Err(error @ (StoreError::Unreachable(_) | StoreError::Unavailable(_) | StoreError::InDoubt(_))) => {
                if !self.0.swap(true, Ordering::Relaxed) {
                    tracing::warn!(error = %error, "orders are refused until Postgres is back");
                }
            }
            // Postgres answered. Whoever handles the error says so.
            Err(StoreError::Refused(_) | StoreError::Key(_) | StoreError::Broken(_)) => {}
        }
    }
}
