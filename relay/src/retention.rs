//! Keeps partitions of the outbox ahead of its writers: without one, their inserts fail.

use std::time::Duration;

use shared::shutdown::Shutdown;
use sqlx::PgPool;

use crate::outbox;

/// How many partitions lie ahead: ten million events and more.
const PARTITIONS_AHEAD: i32 = 2;

/// Between two looks. A writer would have to insert a million rows a second to fill what is ahead meanwhile.
const INTERVAL: Duration = Duration::from_secs(10);

/// Makes partitions until the shutdown is asked for. Any number of relays may do so.
pub async fn keep_partitions_ahead(pool: PgPool, shutdown: Shutdown) {
    loop {
        match outbox::make_partitions(&pool, PARTITIONS_AHEAD).await {
            Ok(0) => {}
            Ok(made) => tracing::info!(outbox.partitions.made = made, "outbox partitions made"),
            Err(error) => tracing::warn!(error = %error, "outbox partitions could not be made ahead, will try again"),
        }
        if !shutdown.sleep(INTERVAL).await {
            return;
        }
    }
}
