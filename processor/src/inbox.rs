//! The upkeep of the inbox: partitions are made ahead of the events, and done away with when nothing of their day can come again.

use std::time::Duration;

use rdkafka::error::KafkaError;
use shared::backoff::Backoff;
use shared::config::ConfigError;
use shared::db::{Database, words};
use shared::duration::Retention;
use shared::kafka::{KafkaConfig, TopicRetention};
use shared::shutdown::Shutdown;
use sqlx::PgConnection;

use crate::config::{Settings, Shorter};
use crate::metrics::Metrics;
use crate::store::inbox as sql;

/// Name of the variable, for errors.
const VARIABLE: &str = "PROCESSOR_INBOX_RETENTION";

/// Longest wait between two rounds.
const INTERVAL_MAX: Duration = Duration::from_mins(1);

/// Longest wait after a round that found a lock in its way.
const BUSY_MAX: Duration = Duration::from_mins(10);

/// Partitions that one round may make, or do away with.
const PARTITIONS_MAX: usize = 100;

/// Rows that one statement deletes, of each kind: a few dozen milliseconds.
const ROWS_MAX: i32 = 5_000;

/// Statements of one round that delete rows.
const CLEANS_MAX: usize = 100;

/// Refuses a retention that is shorter than that of the topics, unless that is allowed. Waits for brokers that do not answer. Returns
/// whether to go on: not if the shutdown came first.
pub(crate) async fn check_retention(
    kafka: &KafkaConfig,
    client_id: &str,
    settings: &Settings,
    shutdown: &Shutdown,
) -> Result<bool, ConfigError> {
    let mut backoff = Backoff::new(Duration::from_millis(200), settings.retry_max());
    loop {
        let error = match short_retentions(kafka, client_id, settings).await {
            Ok(short) => return short.into_iter().next().map_or(Ok(true), Err),
            Err(error) => error,
        };
        let delay = backoff.random_delay();
        let retry_in_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(error = %error, retry_in_ms, "waiting for the retention of the topics");
        if !shutdown.sleep(delay).await {
            return Ok(false);
        }
    }
}

/// What is wrong with a retention that has an end, and is not allowed to be shorter than that of topics: an error for each topic that keeps its
/// records for longer.
///
/// # Errors
/// When the brokers do not answer within ten seconds, or have no such topic.
pub async fn short_retentions(
    kafka: &KafkaConfig,
    client_id: &str,
    settings: &Settings,
) -> Result<Vec<ConfigError>, KafkaError> {
    let (Retention::For(ours), Shorter::Refuse) = (settings.inbox_retention, settings.inbox_retention_shorter) else {
        return Ok(Vec::new());
    };
    let topics: Vec<&str> = settings.topics.iter().map(String::as_str).collect();
    let retentions = kafka.retentions(client_id, &topics).await?;
    let judged = topics.iter().zip(retentions).map(|(topic, theirs)| judge(ours, topic, theirs));
    Ok(judged.filter_map(Result::err).collect())
}

fn judge(ours: Duration, topic: &str, theirs: TopicRetention) -> Result<(), ConfigError> {
    let problem = match theirs {
        TopicRetention::For(theirs) if ours >= theirs => return Ok(()),
        TopicRetention::For(theirs) => {
            format!(
                "is shorter ({} s) than the topic {topic} keeps its records ({} s)",
                ours.as_secs(),
                theirs.as_secs()
            )
        }
        TopicRetention::Forever => format!("has an end, and the topic {topic} keeps records for ever"),
        TopicRetention::Unknown => {
            tracing::warn!(
                messaging.destination.name = topic,
                "the brokers do not tell us for how long the topic keeps its records: {VARIABLE} must not be shorter"
            );
            return Ok(());
        }
    };
    Err(ConfigError::new(
        VARIABLE,
        format!(
            "{problem}, so a record that is read again could have a second effect; raise it, set it to forever, or set \
             {VARIABLE}_SHORTER=allow"
        ),
    ))
}

/// The upkeep of the inbox. Any number of processors may do it: they do not get into each other's way.
pub(crate) struct Upkeep {
    database: Database,
    group: String,
    retention: Retention,
    metrics: Metrics,
}

impl Upkeep {
    /// Does a first round, so that events find the partitions of their days.
    pub(crate) async fn begin(database: &Database, settings: &Settings, metrics: &Metrics) -> Self {
        let upkeep = Self {
            database: database.clone(),
            group: settings.group.clone(),
            retention: settings.inbox_retention,
            metrics: metrics.clone(),
        };
        if let Err(error) = upkeep.database.with(async |connection| upkeep.prepare(connection).await).await {
            // Without partitions all goes to the default one.
            tracing::warn!(error = words(&error), "inbox partitions could not be made, will try again");
        }
        upkeep
    }

    /// Does rounds until the shutdown is asked for.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let interval = match self.retention {
            Retention::For(length) => (length / 24).clamp(Duration::from_secs(1), INTERVAL_MAX),
            Retention::Forever => INTERVAL_MAX,
        };
        let mut backoff = Backoff::new(interval, BUSY_MAX);
        loop {
            let wait = match self.database.with(async |connection| self.round(connection).await).await {
                Ok(true) => {
                    backoff.reset();
                    interval
                }
                // Whoever waits for the lock on the inbox keeps all batches waiting, so not again at once.
                Ok(false) => interval + backoff.random_delay(),
                Err(error) => {
                    tracing::warn!(error = words(&error), "the inbox could not be kept up, will try again");
                    interval + backoff.random_delay()
                }
            };
            if !shutdown.sleep(wait).await {
                return;
            }
        }
    }

    /// Says for how long this group needs rows, and makes partitions.
    async fn prepare(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        sql::register_group(connection, &self.group, self.retention).await?;
        for _ in 0..PARTITIONS_MAX {
            let Some(name) = sql::make_partition(connection).await? else { break };
            tracing::info!(inbox.partition = name, "inbox partition made");
        }
        Ok(())
    }

    /// Does all there is to do. Returns false if a lock was in the way of some of it.
    async fn round(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        self.prepare(connection).await?;
        let mut done = true;
        for _ in 0..PARTITIONS_MAX {
            let Some(attempt) = sql::drop_partition(connection).await? else { break };
            if attempt.outcome == "busy" {
                tracing::info!(
                    inbox.partition = attempt.name,
                    "an inbox partition was not dropped for want of a lock, will try again"
                );
                done = false;
                break;
            }
            if attempt.outcome == "dropped" {
                self.metrics.inbox_partitions_dropped.inc();
            }
            tracing::info!(
                inbox.partition = attempt.name,
                outcome = attempt.outcome,
                "inbox partition past the retention"
            );
        }
        for _ in 0..CLEANS_MAX {
            if sql::clean(connection, ROWS_MAX).await? < i64::from(ROWS_MAX) {
                break;
            }
        }
        self.metrics.inbox_partitions.set(sql::partitions(connection).await?);
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retention_shorter_than_that_of_a_topic_is_refused() {
        let hours = Duration::from_hours;
        assert!(judge(hours(2), "t", TopicRetention::For(hours(2))).is_ok());
        assert!(judge(hours(2), "t", TopicRetention::Unknown).is_ok());
        let text = judge(hours(2), "t", TopicRetention::For(hours(3))).unwrap_err().to_string();
        let start = "PROCESSOR_INBOX_RETENTION: is shorter (7200 s) than the topic t keeps its records (10800 s)";
        assert!(text.starts_with(start) && text.lines().count() == 1, "{text}");
        assert!(judge(hours(2), "t", TopicRetention::Forever).is_err());
    }
}
