//! The API's settings. Every limit of the service is here, with its bounds.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Deserialize;
use shared::config::{ConfigError, Env};
use shared::db::DatabaseConfig;
use shared::http::listener::{ConnectionLimits, Deadlines};

use crate::auth::settings::AuthConfig;
use crate::edge::settings::Edge;
use crate::feed::settings::Watching;

/// The longest retention of idempotency keys.
const RETENTION_MAX: Duration = Duration::from_hours(7 * 24);

/// All that the API reads from its environment.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where orders are taken: `API_BIND`.
    pub bind: SocketAddr,
    /// Where health and metrics are answered: `ADMIN_BIND`.
    pub admin_bind: SocketAddr,
    /// The database, without the settings that the API wants of its connections.
    pub database: DatabaseConfig,
    /// How the API is reached: `API_TLS_*`, `API_CORS_ORIGINS`.
    pub edge: Edge,
    /// How much of everything: `API_*`.
    pub limits: Limits,
    /// Who may do what: `API_AUTH`, `API_JWT_*`, `API_RATE_*`.
    pub auth: AuthConfig,
}

/// How much of everything. The names are those of the variables without their `API_`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Threads that serve HTTP; 0 for one a core.
    pub workers: usize,
    /// Connections of clients that are open at once, over all workers.
    pub connections_max: usize,
    /// Seconds that an idle connection is kept.
    pub keep_alive_secs: u64,
    /// Milliseconds that a client may take to send a request's head.
    pub head_timeout_ms: u64,
    /// Milliseconds that a request's body may take to arrive; then the answer is 408.
    pub body_timeout_ms: u64,
    /// Milliseconds that a client may take nothing of an answer that waits to be sent; then its connection is closed.
    pub send_timeout_ms: u64,
    /// Milliseconds that a request may take, with its body and without what it prefers to wait; then the answer is 503.
    pub request_timeout_ms: u64,
    /// Milliseconds that a TLS handshake may take.
    pub tls_handshake_timeout_ms: u64,
    /// Orders that one statement may write.
    pub batch_rows_max: usize,
    /// Statements that may write orders at the same time, each on a connection of its own.
    pub statements_max: usize,
    /// Orders that may wait for a statement; the next one is answered 503.
    pub queue_max: usize,
    /// Milliseconds that an order may wait for a statement; then it is answered 503, and those that come meanwhile at once.
    pub queue_age_max_ms: u64,
    /// How long an idempotency key is known: a key takes one row for each day of it.
    #[serde(deserialize_with = "shared::duration::deserialize")]
    pub idempotency_retention: Duration,
    /// Milliseconds to wait for a connection to Postgres before a request is answered 503.
    pub connect_timeout_ms: u64,
    /// Milliseconds that a statement may take before its requests are answered 503.
    pub statement_timeout_ms: u64,
    /// Seconds that requests under way have to end after a shutdown was asked for. Not a variable of its own: a little less
    /// than `SHUTDOWN_TIMEOUT_SECS`, after which the process ends whatever is left.
    #[serde(skip)]
    pub drain_secs: u64,
    /// How much watching and waiting.
    #[serde(skip)]
    pub watching: Watching,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            workers: 0,
            connections_max: 12_000,
            keep_alive_secs: 75,
            head_timeout_ms: 5_000,
            body_timeout_ms: 10_000,
            send_timeout_ms: 30_000,
            request_timeout_ms: 30_000,
            tls_handshake_timeout_ms: 5_000,
            batch_rows_max: 500,
            statements_max: 2,
            queue_max: 5_000,
            queue_age_max_ms: 1_000,
            idempotency_retention: Duration::from_hours(24),
            connect_timeout_ms: 1_000,
            statement_timeout_ms: 5_000,
            drain_secs: 20,
            watching: Watching::default(),
        }
    }
}

impl Config {
    /// Reads all of it.
    ///
    /// # Errors
    /// When a variable is missing, cannot be parsed or is out of its bounds; the error names it.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let mut limits: Limits = env.section("API_")?;
        limits.check()?;
        limits.watching = env.section("API_")?;
        limits.watching.check()?;
        if let Some(Ok(secs)) = env.var("SHUTDOWN_TIMEOUT_SECS").map(str::parse::<u64>) {
            limits.drain_secs = secs.saturating_sub(5).max(1);
        }
        Ok(Self {
            bind: env.bind("API_BIND", "127.0.0.1:8080")?,
            admin_bind: env.admin_bind("127.0.0.1:9080")?,
            database: DatabaseConfig::from_env(env, "outrider-api")?,
            edge: Edge::from_env(env)?,
            limits,
            auth: AuthConfig::from_env(env)?,
        })
    }
}

impl Limits {
    fn check(&self) -> Result<(), ConfigError> {
        within("API_WORKERS", &self.workers, 0..=1_024)?;
        within("API_CONNECTIONS_MAX", &self.connections_max, 1..=1_000_000)?;
        within("API_KEEP_ALIVE_SECS", &self.keep_alive_secs, 1..=3_600)?;
        within("API_HEAD_TIMEOUT_MS", &self.head_timeout_ms, 100..=600_000)?;
        within("API_BODY_TIMEOUT_MS", &self.body_timeout_ms, 100..=600_000)?;
        within("API_SEND_TIMEOUT_MS", &self.send_timeout_ms, 100..=600_000)?;
        within("API_REQUEST_TIMEOUT_MS", &self.request_timeout_ms, 100..=600_000)?;
        within("API_TLS_HANDSHAKE_TIMEOUT_MS", &self.tls_handshake_timeout_ms, 100..=600_000)?;
        within("API_BATCH_ROWS_MAX", &self.batch_rows_max, 1..=10_000)?;
        within("API_STATEMENTS_MAX", &self.statements_max, 1..=64)?;
        within("API_QUEUE_MAX", &self.queue_max, 1..=1_000_000)?;
        within("API_QUEUE_AGE_MAX_MS", &self.queue_age_max_ms, 10..=600_000)?;
        if !(Duration::from_mins(1)..=RETENTION_MAX).contains(&self.idempotency_retention) {
            return Err(ConfigError::new("API_IDEMPOTENCY_RETENTION", "must be from 1m to 7d"));
        }
        within("API_CONNECT_TIMEOUT_MS", &self.connect_timeout_ms, 10..=60_000)?;
        within("API_STATEMENT_TIMEOUT_MS", &self.statement_timeout_ms, 100..=600_000)
    }

    /// What connections may take.
    #[must_use]
    pub fn connections(&self) -> ConnectionLimits {
        ConnectionLimits {
            workers: self.worker_count(),
            connections_max: self.connections_max,
            handshake: Duration::from_millis(self.tls_handshake_timeout_ms),
            deadlines: Deadlines {
                head: Duration::from_millis(self.head_timeout_ms),
                keep_alive: Duration::from_secs(self.keep_alive_secs),
                send: Duration::from_millis(self.send_timeout_ms),
            },
            drain_secs: self.drain_secs,
        }
    }

    /// Requests that are served at once. Over HTTP/1.1 there cannot be more than connections; over HTTP/2 one connection could bring any number.
    #[must_use]
    pub fn requests_max(&self) -> usize {
        let workers = self.worker_count();
        self.connections_max.div_ceil(workers).saturating_mul(workers)
    }

    /// Threads that serve HTTP.
    #[must_use]
    pub fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            count => count,
        }
    }

    /// How long to wait for a connection to Postgres.
    #[must_use]
    pub const fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    /// How long to wait for a statement. A little longer than Postgres itself allows it: when Postgres gives up first, the
    /// connection stays whole and the outcome is known.
    #[must_use]
    pub const fn statement_patience(&self) -> Duration {
        Duration::from_millis(self.statement_timeout_ms + 500)
    }
}

/// Whether a variable's value is within its bounds.
///
/// # Errors
/// When it is not; the error names the variable.
pub fn within<T: PartialOrd + std::fmt::Display>(
    variable: &str,
    value: &T,
    bounds: RangeInclusive<T>,
) -> Result<(), ConfigError> {
    if bounds.contains(value) {
        return Ok(());
    }
    Err(ConfigError::new(variable, format!("must be from {} to {} ('{value}' given)", bounds.start(), bounds.end())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let database = [("DATABASE_URL", "postgres://u@localhost/n")];
        Config::from_env(&Env::from_pairs(database.iter().chain(pairs).copied()))
    }

    #[test]
    fn only_the_database_has_no_default() {
        let config = read(&[]).expect("complete");
        assert_eq!(config.bind.to_string(), "127.0.0.1:8080");
        assert_eq!(config.admin_bind.to_string(), "127.0.0.1:9080");
        assert_eq!((config.limits.batch_rows_max, config.limits.statements_max), (500, 2));
        assert_eq!(Config::from_env(&Env::default()).unwrap_err().variable, "DATABASE_URL");
    }

    #[test]
    fn a_limit_out_of_its_bounds_is_named() {
        let error = read(&[("API_BATCH_ROWS_MAX", "0")]).unwrap_err().to_string();
        assert_eq!(error, "API_BATCH_ROWS_MAX: must be from 1 to 10000 ('0' given)");
        assert_eq!(read(&[("API_QUEUE_MAX", "lots")]).unwrap_err().variable, "API_QUEUE_MAX");
        let error = read(&[("API_IDEMPOTENCY_RETENTION", "8d")]).unwrap_err().to_string();
        assert_eq!(error, "API_IDEMPOTENCY_RETENTION: must be from 1m to 7d");
        assert_eq!(read(&[("API_IDEMPOTENCY_RETENTION", "24")]).unwrap_err().variable, "API_IDEMPOTENCY_RETENTION");
        let pairs = [("API_FEED_POLL_MIN_MS", "60"), ("API_SSE_READERS_MAX", "5")];
        let error = read(&pairs).unwrap_err().to_string();
        assert_eq!(error, "API_FEED_POLL_MAX_MS: must be from 60 to 10000 ('50' given)");
        assert_eq!(read(&pairs[1..]).expect("complete").limits.watching.sse_readers_max, 5);
        assert_eq!(read(&[("API_BIND", "8080")]).unwrap_err().variable, "API_BIND");
    }

    #[test]
    fn requests_under_way_end_before_the_process_must() {
        assert_eq!(read(&[("SHUTDOWN_TIMEOUT_SECS", "60")]).expect("complete").limits.drain_secs, 55);
        assert_eq!(read(&[("SHUTDOWN_TIMEOUT_SECS", "2")]).expect("complete").limits.drain_secs, 1);
    }
}
