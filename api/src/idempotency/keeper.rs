//! The upkeep of idempotency keys: a partition for each of the next days is made ahead, and those of days that are over are dropped.

use std::time::Duration;

use shared::backoff::Backoff;
use shared::db::{Database, words};
use shared::shutdown::Shutdown;
use sqlx::PgConnection;
use tokio::task::JoinSet;

use crate::metrics::Metrics;
use crate::store::keys as sql;

/// Wait between two rounds.
const INTERVAL: Duration = Duration::from_mins(1);

/// Longest wait on top of that after a round that failed, or found a lock in its way.
const BUSY_MAX: Duration = Duration::from_mins(10);

/// Days for which there are partitions beyond those that keys are written to: how long nobody need do a round.
const SPARE_DAYS: u64 = 2;

/// Partitions that one round may make, or do away with.
const PARTITIONS_MAX: usize = 100;

const DAY_SECS: u64 = 86_400;

/// Keeps partitions. Any number of processes may do it: they do not get into each other's way.
#[derive(Debug)]
pub struct Keeper {
    database: Database,
    days_ahead: i32,
    metrics: Metrics,
}

impl Keeper {
    /// For keys that are kept for `retention`.
    #[must_use]
    pub fn new(database: Database, retention: Duration, metrics: Metrics) -> Self {
        let days = retention.as_secs().div_ceil(DAY_SECS) + SPARE_DAYS;
        Self { database, days_ahead: i32::try_from(days).unwrap_or(i32::MAX), metrics }
    }

    /// Does a first round, so that keys find the partitions of their days, and more until the shutdown.
    pub async fn start(
        database: Database,
        retention: Duration,
        metrics: Metrics,
        shutdown: &Shutdown,
        tasks: &mut JoinSet<()>,
    ) {
        let keeper = Self::new(database, retention, metrics);
        if let Err(error) = keeper.round().await {
            tracing::warn!(error = words(&error), "idempotency keys could not be kept up, will try again");
        }
        tasks.spawn(keeper.run(shutdown.clone()));
    }

    async fn run(self, shutdown: Shutdown) {
        let mut backoff = Backoff::new(INTERVAL, BUSY_MAX);
        let mut wait = INTERVAL;
        while shutdown.sleep(wait).await {
            wait = match self.round().await {
                Ok(true) => {
                    backoff.reset();
                    INTERVAL
                }
                // Whoever waits for the lock keeps all requests with keys waiting, so not again at once.
                Ok(false) => INTERVAL + backoff.random_delay(),
                Err(error) => {
                    tracing::warn!(error = words(&error), "idempotency keys could not be kept up, will try again");
                    INTERVAL
                }
            };
        }
    }

    /// Does all there is to do. Returns false if a lock was in the way of some of it.
    ///
    /// # Errors
    /// When Postgres does not do it.
    pub async fn round(&self) -> Result<bool, sqlx::Error> {
        self.database.with(async |connection| self.round_on(connection).await).await
    }

    async fn round_on(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        for _ in 0..PARTITIONS_MAX {
            let Some(name) = sql::make_partition(connection, self.days_ahead).await? else { break };
            tracing::info!(idempotency.partition = name, "idempotency partition made");
        }
        let mut done = true;
        for _ in 0..PARTITIONS_MAX {
            let Some(attempt) = sql::drop_partition(connection).await? else { break };
            tracing::info!(
                idempotency.partition = attempt.name,
                outcome = attempt.outcome,
                "idempotency partition of a day that is over"
            );
            match attempt.outcome.as_str() {
                "busy" => {
                    done = false;
                    break;
                }
                "dropped" => self.metrics.key_partitions_dropped.inc(),
                _ => 0,
            };
        }
        self.metrics.key_partitions.set(sql::partitions(connection).await?);
        Ok(done)
    }
}
