//! The section `RELAY_*`, and the rules that its times must keep among each other.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use shared::config::{ConfigError, Env};
use shared::db::DatabaseConfig;
use shared::kafka::KafkaConfig;

use crate::routes::{self, Routes};

pub use shared::duration::{self, Retention};

/// Everything a relay is told.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// Health and metrics port.
    pub admin_bind: SocketAddr,
    /// The database with the outbox: its primary, never a replica, where commits can become visible in another order.
    pub database: DatabaseConfig,
    /// Where to publish.
    pub kafka: KafkaConfig,
    /// Name of this relay among the others, in `relay_lanes.owner`: new with every process.
    pub relay: String,
    /// Topics by aggregate type, as far as the environment names them.
    pub routes: Routes,
    /// The `RELAY_*` section.
    pub limits: Limits,
}

/// The section `RELAY_*`.
#[derive(Debug, Clone, Deserialize)]
pub struct Limits {
    /// How long a lane stays this relay's without renewal: also how long events wait for another relay after a crash.
    #[serde(default = "lease_ms")]
    pub lease_ms: u64,
    /// How long Kafka may take to acknowledge one record, retries included.
    #[serde(default = "message_timeout_ms")]
    pub message_timeout_ms: u64,
    /// Spare time between the last moment a record may be sent and the end of the lease.
    #[serde(default = "lease_margin_ms")]
    pub lease_margin_ms: u64,
    /// Least time between two writes of the cursors. After a crash, what was acknowledged since the last one is published again.
    #[serde(default = "settle_ms")]
    pub settle_ms: u64,
    /// Shortest wait between two looks at the outbox.
    #[serde(default = "poll_min_ms")]
    pub poll_min_ms: u64,
    /// Longest wait between two looks at an idle outbox.
    #[serde(default = "poll_max_ms")]
    pub poll_max_ms: u64,
    /// New rows of one lane in one read.
    #[serde(default = "lane_rows_max")]
    pub lane_rows_max: i64,
    /// Rows that committed late, of all lanes, in one read.
    #[serde(default = "late_rows_max")]
    pub late_rows_max: i64,
    /// Records that Kafka has not acknowledged yet; nothing is read beyond that. With the rows of one read this bounds the memory.
    #[serde(default = "in_flight_max")]
    pub in_flight_max: usize,
    /// For how long published events stay in the outbox.
    #[serde(default = "retention")]
    pub retention: Retention,
    /// How old an open transaction must be to be named in the log.
    #[serde(default = "holder_age", deserialize_with = "duration::deserialize")]
    pub holder_age: Duration,
    /// `ce_source` of the records, before `/` and the aggregate type.
    #[serde(default = "source")]
    pub source: String,
}

const fn lease_ms() -> u64 {
    10_000
}
const fn message_timeout_ms() -> u64 {
    5_000
}
const fn lease_margin_ms() -> u64 {
    1_000
}
const fn settle_ms() -> u64 {
    250
}
const fn poll_min_ms() -> u64 {
    2
}
const fn poll_max_ms() -> u64 {
    50
}
const fn lane_rows_max() -> i64 {
    500
}
const fn late_rows_max() -> i64 {
    16_000
}
const fn in_flight_max() -> usize {
    10_000
}
const fn retention() -> Retention {
    Retention::For(Duration::from_hours(24))
}
const fn holder_age() -> Duration {
    Duration::from_mins(1)
}
fn source() -> String {
    "/outrider".to_owned()
}

impl RelayConfig {
    /// Reads all of it.
    ///
    /// # Errors
    /// When a setting is missing, makes no sense, or the times would let a record be sent after its lease has ended.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let limits: Limits = env.section("RELAY_")?;
        limits.check()?;
        // The reads are short and very many, so what a planner may try for long scans only costs: compiling, parallel workers, and planning
        // each one anew (1.3 ms, against 0.5 ms to run it). A plan that is kept must not scan a partition whole because that one
        // was empty when the plan was made.
        let settings = [
            ("jit", "off"),
            ("max_parallel_workers_per_gather", "0"),
            ("plan_cache_mode", "force_generic_plan"),
            ("enable_seqscan", "off"),
            // A bitmap would have all of a backlog's rows sorted to give the first thousand.
            ("enable_bitmapscan", "off"),
        ];
        Ok(Self {
            admin_bind: env.admin_bind("127.0.0.1:9081")?,
            database: DatabaseConfig::from_env(env, "outrider-relay")?.with_settings(settings),
            kafka: KafkaConfig::from_env(env)?,
            relay: format!("{}-{}", std::process::id(), uuid::Uuid::now_v7().simple()),
            routes: Routes::parse(env.var(routes::VARIABLE))?,
            limits,
        })
    }
}

impl Limits {
    fn check(&self) -> Result<(), ConfigError> {
        let at_least_one = [
            ("RELAY_SETTLE_MS", self.settle_ms),
            ("RELAY_POLL_MIN_MS", self.poll_min_ms),
            ("RELAY_MESSAGE_TIMEOUT_MS", self.message_timeout_ms),
            ("RELAY_LANE_ROWS_MAX", u64::try_from(self.lane_rows_max).unwrap_or(0)),
            ("RELAY_LATE_ROWS_MAX", u64::try_from(self.late_rows_max).unwrap_or(0)),
            ("RELAY_IN_FLIGHT_MAX", self.in_flight_max as u64),
        ];
        for (variable, value) in at_least_one {
            if value < 1 {
                return Err(ConfigError::new(variable, "must be at least 1"));
            }
        }
        if self.holder_age < Duration::from_secs(1) {
            return Err(ConfigError::new("RELAY_HOLDER_AGE", "must be at least 1s"));
        }
        if self.poll_max_ms < self.poll_min_ms {
            return Err(ConfigError::new(
                "RELAY_POLL_MAX_MS",
                format!("must be at least RELAY_POLL_MIN_MS ({})", self.poll_min_ms),
            ));
        }
        let needed = self.message_timeout_ms.saturating_add(self.lease_margin_ms).saturating_add(self.lease_ms / 4);
        if self.lease_ms <= needed {
            let problem = format!(
                "is {}, but must be more than RELAY_MESSAGE_TIMEOUT_MS + RELAY_LEASE_MARGIN_MS + a quarter of itself ({needed}): a record \
                 must not be sent after its lane's lease has ended",
                self.lease_ms
            );
            return Err(ConfigError::new("RELAY_LEASE_MS", problem));
        }
        if self.in_flight_max > 400_000 {
            return Err(ConfigError::new(
                "RELAY_IN_FLIGHT_MAX",
                "must be at most 400000: the producer's own queue holds 500000",
            ));
        }
        Ok(())
    }

    /// Length of a lease.
    #[must_use]
    pub const fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    /// How often leases are renewed when there is nothing to settle.
    #[must_use]
    pub const fn renewal(&self) -> Duration {
        Duration::from_millis(self.lease_ms / 4)
    }

    /// How long Kafka may take for one record.
    #[must_use]
    pub const fn message_timeout(&self) -> Duration {
        Duration::from_millis(self.message_timeout_ms)
    }

    /// How long a record may be in flight before its topic is looked into: far longer than it should be, and before other topics' events
    /// wait for long, which a broker may answer on the same connection only after this one's.
    #[must_use]
    pub fn slow_after(&self) -> Duration {
        (self.message_timeout() / 10).max(Duration::from_millis(500)).min(self.message_timeout() / 3)
    }

    /// How much of its lease a lane must still have when a record of it is handed to the producer.
    #[must_use]
    pub const fn lease_needed_to_send(&self) -> Duration {
        Duration::from_millis(self.message_timeout_ms + self.lease_margin_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(pairs: &[(&str, &str)]) -> String {
        let base = [("DATABASE_URL", "postgres://u@db/n"), ("KAFKA_BROKERS", "k:9092")];
        let env = Env::from_pairs(base.iter().chain(pairs).copied());
        RelayConfig::from_env(&env).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_hold_together() {
        let env = Env::from_pairs([("DATABASE_URL", "postgres://u@db/n"), ("KAFKA_BROKERS", "k:9092")]);
        assert_eq!(RelayConfig::from_env(&env).expect("defaults").limits.lease(), Duration::from_secs(10));
    }

    #[test]
    fn a_lease_that_may_end_before_its_records_is_refused() {
        assert!(refused(&[("RELAY_LEASE_MS", "7000")]).starts_with("RELAY_LEASE_MS: is 7000, but must be more than"));
        assert!(refused(&[("RELAY_MESSAGE_TIMEOUT_MS", "9000")]).starts_with("RELAY_LEASE_MS: "));
        assert!(
            refused(&[("RELAY_ROUTES", "order")]).starts_with("RELAY_ROUTES: 'order' is not of the form type=topic")
        );
        assert!(refused(&[("RELAY_IN_FLIGHT_MAX", "0")]).starts_with("RELAY_IN_FLIGHT_MAX: must be at least 1"));
        assert!(
            refused(&[("RELAY_POLL_MAX_MS", "1")]).starts_with("RELAY_POLL_MAX_MS: must be at least RELAY_POLL_MIN_MS")
        );
    }

    #[test]
    fn retention_and_holder_age_are_lengths_of_time() {
        let limits = |pairs: &[(&str, &str)]| {
            let base = [("DATABASE_URL", "postgres://u@db/n"), ("KAFKA_BROKERS", "k:9092")];
            RelayConfig::from_env(&Env::from_pairs(base.iter().chain(pairs).copied())).expect("good").limits
        };
        assert_eq!(limits(&[]).retention, Retention::For(Duration::from_hours(24)));
        assert_eq!(limits(&[("RELAY_RETENTION", "7d")]).retention, Retention::For(Duration::from_hours(168)));
        assert_eq!(limits(&[("RELAY_RETENTION", "forever")]).retention, Retention::Forever);
        assert_eq!(limits(&[("RELAY_HOLDER_AGE", "90s")]).holder_age, Duration::from_secs(90));
        assert_eq!(
            refused(&[("RELAY_RETENTION", "24")]),
            "RELAY_RETENTION: is neither a length of time such as 30s, 15m, 24h or 7d, nor the word forever ('24' given)"
        );
        assert_eq!(
            refused(&[("RELAY_HOLDER_AGE", "soon")]),
            "RELAY_HOLDER_AGE: is not a length of time such as 30s, 15m, 24h or 7d ('soon' given)"
        );
        assert!(refused(&[("RELAY_HOLDER_AGE", "0s")]).starts_with("RELAY_HOLDER_AGE: must be at least 1s"));
    }
}
