//! The section `PROCESSOR_*`, beside the database and Kafka.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use shared::config::{ConfigError, Env};
use shared::db::DatabaseConfig;
use shared::duration::Retention;
use shared::kafka::KafkaConfig;

use crate::failpoint::Failpoint;
use crate::membership::{self, Assignment, GroupProtocol};
use crate::retry::Schedule;
use crate::store::letters::Page;

/// All that the processor is told from outside.
#[derive(Debug, Clone)]
pub struct ProcessorConfig {
    /// `ADMIN_BIND`: health and metrics.
    pub admin_bind: SocketAddr,
    /// Where Postgres is.
    pub database: DatabaseConfig,
    /// Where Kafka is.
    pub kafka: KafkaConfig,
    /// The section `PROCESSOR_*`.
    pub settings: Settings,
}

/// The section `PROCESSOR_*`.
#[derive(Debug, Clone, Deserialize)]
pub struct Settings {
    /// `PROCESSOR_TOPICS`: comma-separated.
    #[serde(default = "orders")]
    pub topics: Vec<String>,
    /// `PROCESSOR_GROUP`: consumer group; also the key of its rows in Postgres.
    #[serde(default = "group")]
    pub group: String,
    /// `PROCESSOR_INSTANCE_ID`: a name that stays over restarts, each processor its own. Then one that is back within the session's
    /// time-out gets its partitions again, and the others do not notice.
    pub instance_id: Option<String>,
    /// `PROCESSOR_GROUP_PROTOCOL`: `classic` or `consumer`.
    #[serde(default)]
    pub group_protocol: GroupProtocol,
    /// `PROCESSOR_ASSIGNMENT`: `cooperative-sticky` (also if it is not given), `range` or `roundrobin`.
    pub assignment: Option<Assignment>,
    /// `PROCESSOR_BATCH_ROWS_MAX`: records in one transaction.
    #[serde(default = "thousand")]
    pub batch_rows_max: usize,
    /// `PROCESSOR_QUEUE_ROWS_MAX`: records that wait for one partition's transaction; then the partition is paused.
    ///
    /// With `queue_bytes_max` this bounds the memory: each assigned partition holds at most one queue and one batch, that
    /// is `queue_bytes_max` and once more as much, and one record above each; and all of them together
    /// [`Settings::PREFETCH_KIB_MAX`] in librdkafka's own queue.
    #[serde(default = "four_thousand")]
    pub queue_rows_max: usize,
    /// `PROCESSOR_QUEUE_BYTES_MAX`: the same in bytes of keys, headers and payloads.
    #[serde(default = "eight_mebibytes")]
    pub queue_bytes_max: usize,
    /// `PROCESSOR_SESSION_TIMEOUT_MS`: how long the group waits for a member that is silent. With the
    /// protocol `consumer` it is for the broker to say (`group.consumer.session.timeout.ms`).
    #[serde(default = "forty_five_seconds")]
    pub session_timeout_ms: u64,
    /// `PROCESSOR_POLL_INTERVAL_MS`: after that long without a poll the group gives our partitions to others. Slow handlers do not
    /// count: polling never waits for them, so this is only about a processor that hangs altogether.
    #[serde(default = "five_minutes")]
    pub poll_interval_ms: u64,
    /// `PROCESSOR_DRAIN_TIMEOUT_MS`: how long a partition that is taken away, or the shutdown, waits for a transaction that
    /// is under way; then it is rolled back.
    #[serde(default = "ten_seconds")]
    pub drain_timeout_ms: u64,
    /// `PROCESSOR_RETRY_MAX_MS`: longest wait between two attempts at a batch.
    #[serde(default = "five_seconds")]
    pub retry_max_ms: u64,
    /// `PROCESSOR_RETRY_FIRST_MS`: longest wait before a key whose event failed is tried again; it doubles with each failure.
    #[serde(default = "two_hundred")]
    pub retry_first_ms: u64,
    /// `PROCESSOR_KEY_RETRY_MAX_MS`: longest wait between two attempts at a key.
    #[serde(default = "one_minute")]
    pub key_retry_max_ms: u64,
    /// `PROCESSOR_KEY_ATTEMPTS_MAX`: after so many attempts at one event its key is parked.
    #[serde(default = "ten")]
    pub key_attempts_max: u32,
    /// `PROCESSOR_KEY_AGE_MAX_S`: so long after the first attempt at an event its key is parked, also one that waits for an elder.
    #[serde(default = "fifteen_minutes")]
    pub key_age_max_s: u64,
    /// `PROCESSOR_TRANSACTION_IDLE_MS`: after that long without a statement Postgres ends a transaction. A processor that is
    /// frozen in the middle of one would otherwise hold its locks, and with them its partition, for as long as it is frozen.
    #[serde(default = "one_minute")]
    pub transaction_idle_ms: u64,
    /// `PROCESSOR_INBOX_RETENTION`: for how long an event that was taken in is known when it comes again. Counts from when the last
    /// record of it came.
    #[serde(default = "seven_days")]
    pub inbox_retention: Retention,
    /// `PROCESSOR_INBOX_RETENTION_SHORTER`: what to do if topics keep their records for longer than that.
    #[serde(default)]
    pub inbox_retention_shorter: Shorter,
    /// `PROCESSOR_FAILPOINT`: for tests only, where the process aborts.
    #[serde(default)]
    pub failpoint: Option<Failpoint>,
}

/// What to do if topics keep their records for longer than the inbox remembers them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shorter {
    /// Do not start: a record that is read again after that long would have a second effect.
    #[default]
    Refuse,
    /// Start.
    Allow,
}

fn orders() -> Vec<String> {
    vec!["orders".to_owned()]
}

fn group() -> String {
    "outrider-processor".to_owned()
}

const fn thousand() -> usize {
    1_000
}

const fn four_thousand() -> usize {
    4_000
}

const fn eight_mebibytes() -> usize {
    8 << 20
}

const fn forty_five_seconds() -> u64 {
    45_000
}

const fn five_minutes() -> u64 {
    300_000
}

const fn ten_seconds() -> u64 {
    10_000
}

const fn five_seconds() -> u64 {
    5_000
}

const fn two_hundred() -> u64 {
    200
}

const fn ten() -> u32 {
    10
}

const fn fifteen_minutes() -> u64 {
    900
}

const fn seven_days() -> Retention {
    Retention::For(Duration::from_hours(7 * 24))
}

const fn one_minute() -> u64 {
    60_000
}

impl ProcessorConfig {
    /// Reads all sections.
    ///
    /// # Errors
    /// When a setting is missing or makes no sense.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let settings = Settings::from_env(env)?;
        let idle = settings.transaction_idle_ms.to_string();
        Ok(Self {
            admin_bind: env.admin_bind("127.0.0.1:9082")?,
            database: DatabaseConfig::from_env(env, "outrider-processor")?.with_settings([
                ("idle_in_transaction_session_timeout", &idle),
                // Effects look rows up by key. A plan that was made while a table was small and is kept would scan it whole for every
                // batch until the next ANALYZE: measured, 3,900 orders/s fell to 2,500 within 80,000 orders. A handler that wants a
                // scan can SET LOCAL.
                ("enable_seqscan", "off"),
            ]),
            kafka: KafkaConfig::from_env(env)?,
            settings,
        })
    }
}

impl Settings {
    /// Records that librdkafka fetches ahead, for all partitions together, in KiB.
    pub const PREFETCH_KIB_MAX: u32 = 16 * 1024;

    fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let mut settings: Self = env.section("PROCESSOR_")?;
        for topic in &mut settings.topics {
            topic.truncate(topic.trim_end().len());
            topic.drain(..topic.len() - topic.trim_start().len());
        }
        let bad = |variable: &str, problem: &str| Err(ConfigError::new(format!("PROCESSOR_{variable}"), problem));
        if settings.topics.iter().any(String::is_empty) {
            return bad("TOPICS", "has an empty name in its list");
        }
        membership::check(&settings)?;
        if settings.batch_rows_max == 0 {
            return bad("BATCH_ROWS_MAX", "must be at least 1");
        }
        if settings.queue_rows_max < settings.batch_rows_max {
            return bad("QUEUE_ROWS_MAX", "must be at least PROCESSOR_BATCH_ROWS_MAX");
        }
        if settings.queue_bytes_max == 0 {
            return bad("QUEUE_BYTES_MAX", "must be at least 1");
        }
        if settings.session_timeout_ms == 0 {
            return bad("SESSION_TIMEOUT_MS", "must be at least 1");
        }
        if settings.transaction_idle_ms == 0 {
            return bad(
                "TRANSACTION_IDLE_MS",
                "must be at least 1: without it a frozen processor stops its partitions",
            );
        }
        if settings.retry_max_ms == 0 {
            return bad("RETRY_MAX_MS", "must be at least 1: without a wait a failing batch would busy the database");
        }
        if settings.retry_first_ms == 0 || settings.retry_first_ms > settings.key_retry_max_ms {
            return bad("RETRY_FIRST_MS", "must be at least 1 and at most PROCESSOR_KEY_RETRY_MAX_MS");
        }
        if settings.key_attempts_max == 0 {
            return bad("KEY_ATTEMPTS_MAX", "must be at least 1");
        }
        Ok(settings)
    }

    /// When keys that failed are tried again.
    pub(crate) const fn key_schedule(&self) -> Schedule {
        Schedule {
            first: Duration::from_millis(self.retry_first_ms),
            max: Duration::from_millis(self.key_retry_max_ms),
            attempts_max: self.key_attempts_max,
            age_max: Duration::from_secs(self.key_age_max_s),
        }
    }

    /// What one transaction reads back of the records that wait: as much as a batch, and of bytes as much as a queue.
    pub(crate) const fn page(&self) -> Page {
        Page { rows_max: self.batch_rows_max, bytes_max: self.queue_bytes_max }
    }

    /// How long a transaction under way is waited for.
    #[must_use]
    pub const fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms)
    }

    /// Longest wait between two attempts.
    #[must_use]
    pub const fn retry_max(&self) -> Duration {
        Duration::from_millis(self.retry_max_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Settings, ConfigError> {
        Settings::from_env(&Env::from_pairs(pairs.iter().copied()))
    }

    #[test]
    fn everything_has_a_default() {
        let settings = read(&[]).expect("defaults");
        assert_eq!((settings.topics, settings.group.as_str()), (vec!["orders".to_owned()], "outrider-processor"));
    }

    #[test]
    fn topics_are_a_list() {
        let settings = read(&[("PROCESSOR_TOPICS", "orders, invoices")]).expect("a list");
        assert_eq!(settings.topics, ["orders", "invoices"]);
        assert!(read(&[("PROCESSOR_TOPICS", "orders,,x")]).unwrap_err().to_string().starts_with("PROCESSOR_TOPICS: "));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (name, value) in [
            ("PROCESSOR_BATCH_ROWS_MAX", "0"),
            ("PROCESSOR_QUEUE_ROWS_MAX", "999"),
            ("PROCESSOR_TRANSACTION_IDLE_MS", "0"),
            ("PROCESSOR_INBOX_RETENTION", "7"),
            ("PROCESSOR_INBOX_RETENTION_SHORTER", "yes"),
            ("PROCESSOR_FAILPOINT", "somewhere"),
            ("PROCESSOR_RETRY_FIRST_MS", "60001"),
            ("PROCESSOR_KEY_ATTEMPTS_MAX", "0"),
        ] {
            assert_eq!(read(&[(name, value)]).unwrap_err().variable, name);
        }
    }
}
