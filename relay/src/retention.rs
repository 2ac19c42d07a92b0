//! Keeps partitions of the outbox ahead of its writers, whose inserts fail without one, and drops those whose events are published
//! and older than the retention.

use std::time::{Duration, Instant};

use shared::backoff::Backoff;
use shared::db::{Database, words};
use shared::shutdown::Shutdown;

use crate::metrics::Upkeep;
use crate::outbox::retention::{self as sql, Outcome};

/// How many partitions lie ahead: ten million events and more.
const PARTITIONS_AHEAD: i32 = 2;

/// Between two looks ahead. A writer would have to insert a million rows a second to fill what is ahead meanwhile.
const LOOK_AHEAD: Duration = Duration::from_secs(10);

/// Between two alarms that partitions are missing.
const ALARM: Duration = Duration::from_mins(1);

/// Longest wait after a try that found a lock in its way.
const DROP_BACKOFF_MAX: Duration = Duration::from_mins(10);

/// Makes partitions until the shutdown is asked for. Any number of relays may do so.
pub async fn keep_partitions_ahead(database: Database, metrics: Upkeep, shutdown: Shutdown) {
    let mut alarmed: Option<Instant> = None;
    loop {
        match database.with(async |connection| sql::make_partitions(connection, PARTITIONS_AHEAD).await).await {
            Ok(0) => {}
            Ok(made) => tracing::info!(outbox.partitions.made = made, "outbox partitions made"),
            Err(error) => {
                tracing::warn!(error = words(&error), "outbox partitions could not be made ahead, will try again");
            }
        }
        // A failure here has the same cause as one above, which is logged.
        if let Ok(room) = database.with(sql::room).await {
            metrics.partitions.set(room.partitions);
            metrics.ids_ahead.set(room.ids_ahead);
            if room.whole_ahead >= 1 {
                alarmed = None;
            } else if alarmed.is_none_or(|at| at.elapsed() >= ALARM) {
                alarmed = Some(Instant::now());
                tracing::error!(
                    outbox.ids_ahead = room.ids_ahead,
                    "less than one outbox partition lies ahead: when its ids are used up, every insert into the outbox fails. Look above for why \
                     none could be made, end what holds a lock on outbox (pg_locks), and run `SELECT outbox_make_partitions(2)` as its owner"
                );
            }
        }
        if !shutdown.sleep(LOOK_AHEAD).await {
            return;
        }
    }
}

/// Drops partitions until the shutdown is asked for. Any number of relays may do so: they do not try at the same time.
pub async fn drop_partitions(database: Database, retention: Duration, metrics: Upkeep, shutdown: Shutdown) {
    // Events may stay four hundredths longer than the retention, and a minute at most.
    let interval = (retention / 24).clamp(Duration::from_secs(1), Duration::from_mins(1));
    let mut backoff = Backoff::new(interval, DROP_BACKOFF_MAX);
    loop {
        let wait = match try_to_drop(&database, retention, &metrics).await {
            Tried::Dropped => {
                backoff.reset();
                // There may be another one.
                Duration::ZERO
            }
            Tried::Nothing => {
                backoff.reset();
                interval
            }
            Tried::Failed => interval + backoff.random_delay(),
        };
        if !shutdown.sleep(wait).await {
            return;
        }
    }
}

enum Tried {
    Dropped,
    /// There was nothing that could go.
    Nothing,
    /// Something could go, but did not.
    Failed,
}

async fn try_to_drop(database: &Database, retention: Duration, metrics: &Upkeep) -> Tried {
    let attempt = match database.with(async |connection| sql::drop_oldest_partition(connection, retention).await).await
    {
        Ok(Some(attempt)) => attempt,
        Ok(None) => return Tried::Nothing,
        Err(error) => {
            tracing::warn!(error = words(&error), "an outbox partition could not be dropped, will try again");
            return Tried::Failed;
        }
    };
    let name = attempt.partition;
    match attempt.outcome {
        Outcome::Dropped => {
            metrics.partitions_dropped.inc();
            tracing::info!(
                outbox.partition = name,
                "outbox partition dropped: all of it was published and past the retention"
            );
            return Tried::Dropped;
        }
        Outcome::Stays(reason) => {
            tracing::debug!(outbox.partition = name, reason, "the oldest outbox partition stays");
            return Tried::Nothing;
        }
        Outcome::Held(culprit) => tracing::warn!(
            outbox.partition = name,
            db.session.pid = culprit.pid,
            db.session.application = culprit.application,
            db.session.user = culprit.user,
            "an outbox partition was not dropped, since this transaction has a lock on the outbox and all writers would have waited for it; will try \
             again. No session: a prepared transaction, see pg_prepared_xacts"
        ),
        Outcome::Busy => {
            tracing::info!(
                outbox.partition = name,
                "an outbox partition was not dropped for want of a lock, will try again"
            );
        }
    }
    metrics.drops_failed.inc();
    Tried::Failed
}
