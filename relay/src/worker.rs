//! The relay's loop: look at the outbox, publish, settle, and begin anew when something fails.
//!
//! Every bound is in [`crate::config::Limits`]: rows a read, records in flight, times. A failure ends the session; the next one is
//! begun after a backoff, from what is settled in Postgres.

use std::time::Duration;

use shared::backoff::Backoff;
use shared::db::Database;
use shared::health::Readiness;
use shared::shutdown::Shutdown;
use shared::throttle::Throttle;

use crate::config::RelayConfig;
use crate::metrics::Metrics;
use crate::outbox::cluster::ForeignCursors;
use crate::polling::Polling;
use crate::session::{PublishConstraints, Served, Session, SessionError};
use crate::{KAFKA, POSTGRES};

/// One relay.
#[derive(Debug)]
pub struct Worker {
    config: RelayConfig,
    database: Database,
    metrics: Metrics,
    readiness: Readiness,
}

impl Worker {
    /// A relay that has not begun yet.
    #[must_use]
    pub const fn new(config: RelayConfig, database: Database, metrics: Metrics, readiness: Readiness) -> Self {
        Self { config, database, metrics, readiness }
    }

    /// Works until the shutdown is asked for, then waits for what is in flight and gives its lanes back.
    ///
    /// # Errors
    /// When going on would publish events without end: the database is a restored copy whose cursors do not hold in this cluster.
    pub async fn run(&self, shutdown: &Shutdown) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let log = Throttle::new();
        let mut constraints = PublishConstraints::default();
        while !shutdown.is_requested() {
            let started = Session::start(&self.config, &self.database, &self.metrics, &constraints);
            let ended = match self.database.watch().bound(started).await {
                Ok(mut session) => {
                    let worked = self.work(&mut session, shutdown, &mut backoff).await;
                    if let Err(SessionError::Delivery(_)) = &worked {
                        // Postgres is well: what Kafka did acknowledge need not be published again. If this fails too, it will be.
                        let _ = session.keep_leases().await;
                    }
                    session.end(&mut constraints).await;
                    worked
                }
                Err(error) => Err(error),
            };
            self.metrics.lanes_held.set(0);
            match ended {
                Ok(()) => {}
                Err(error @ SessionError::OtherCluster(ForeignCursors::Restored { .. })) => return Err(error.into()),
                Err(error) => self.recover(&error, shutdown, (&mut backoff, &log)).await,
            }
        }
        Ok(())
    }

    async fn recover(&self, error: &SessionError, shutdown: &Shutdown, (backoff, log): (&mut Backoff, &Throttle)) {
        self.metrics.session_failed(error.class());
        let condition = match error {
            SessionError::Delivery(_) | SessionError::Producer(_) => KAFKA,
            _ => POSTGRES,
        };
        self.readiness.missing(condition, error.to_string());
        let delay = backoff.random_delay();
        if let Some(others) = log.pass(error.class()) {
            tracing::warn!(
                error = %error,
                attempt = backoff.attempts(),
                retry_in_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
                others_since_the_last = others,
                "the relay begins anew from what is settled"
            );
        }
        shutdown.sleep(delay).await;
    }

    /// One session's work: returns when the shutdown is asked for and all is given back.
    async fn work(
        &self,
        session: &mut Session<'_>,
        shutdown: &Shutdown,
        backoff: &mut Backoff,
    ) -> Result<(), SessionError> {
        let limits = &self.config.limits;
        let (shortest, longest) =
            (Duration::from_millis(limits.poll_min_ms), Duration::from_millis(limits.poll_max_ms));
        let mut polling = Polling::new(shortest);
        while !shutdown.is_requested() {
            session.keep_leases_if_due().await?;
            let acknowledged = session.collect().await?;
            let served = session.serve_waiting().await?;
            let pause = if served == Served::Busy { shortest } else { longest };
            if session.has_retries() {
                if session.in_flight() > 0 {
                    let _ = tokio::time::timeout(pause, session.outcome()).await;
                    continue;
                }
                // Then one read, so that nobody waits long for a key with many parked events.
                session.retry().await?;
            }
            if session.is_full() || session.reads_rest() {
                let _ = tokio::time::timeout(pause, session.outcome()).await;
                continue;
            }
            let found = session.read_and_publish().await?;
            if acknowledged || session.in_flight() == 0 {
                // Both servers are well. Not only once all that was read has been taken: while others write without a pause, something is
                // always in flight, and a relay that works would be called not ready for as long.
                self.readiness.met(POSTGRES);
                self.readiness.met(KAFKA);
            }
            let Some(wait) = polling.after(found, session.events_read(), pause) else { continue };
            if session.in_flight() == 0 {
                // All that was read has been taken.
                backoff.reset();
            }
            // A quarter more or less keeps several relays from looking in step.
            if !shutdown.sleep(wait.mul_f64(0.75 + rand::random::<f64>() / 2.0)).await {
                break;
            }
        }
        session.drain().await?;
        session.leave().await
    }
}
