//! How many keys of the group are blocked, counted in Postgres every few seconds, for the metrics.

use std::time::Duration;

use shared::db::{Database, words};
use shared::shutdown::Shutdown;

use crate::metrics::Metrics;
use crate::store::blocked::{self, State};

/// Between two counts.
const INTERVAL: Duration = Duration::from_secs(5);

/// Longest wait between two counts that take long.
const INTERVAL_MAX: Duration = Duration::from_mins(1);

/// A count takes at most this part of the time, however many keys there are.
const SHARE: u32 = 100;

/// Counts until the shutdown is asked for.
pub(crate) async fn run(database: Database, group: String, metrics: Metrics, shutdown: Shutdown) {
    loop {
        let begun = std::time::Instant::now();
        match database.with(async |connection| blocked::count(connection, &group).await).await {
            Ok(found) => {
                // Also those of which there is none any more.
                for state in [State::Retrying, State::Waiting, State::Parked] {
                    let keys = found.iter().find(|(name, _)| name == state.name()).map_or(0, |(_, keys)| *keys);
                    metrics.block(state, keys);
                }
            }
            // Whoever needs the database says it louder.
            Err(error) => tracing::debug!(error = words(&error), "blocked keys not counted"),
        }
        if !shutdown.sleep((begun.elapsed() * SHARE).clamp(INTERVAL, INTERVAL_MAX)).await {
            return;
        }
    }
}
