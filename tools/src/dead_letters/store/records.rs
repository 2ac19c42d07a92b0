//! Single records that wait, and what was done with those of a key before.

use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Uuid;
use sqlx::types::chrono::{DateTime, Utc};

use crate::dead_letters::key::RecordKey;

/// Which records to show.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// Those of this key.
    pub key: Option<&'a [u8]>,
    /// The one of this `dead_letters.id`.
    pub id: Option<i64>,
    /// Only of this consumer group.
    pub group: Option<&'a str>,
    /// Only of this topic.
    pub topic: Option<&'a str>,
}

/// A record that waits.
#[derive(Debug, Clone)]
pub struct WaitingRecord {
    /// `dead_letters.id`.
    pub id: i64,
    /// Consumer group.
    pub group_id: String,
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Its place in the partition.
    pub record_offset: i64,
    /// Its key, if it has one.
    pub record_key: Option<RecordKey>,
    /// The key of a record that is no event, and in no key's order.
    pub unordered_key: Option<RecordKey>,
    /// Identity of the event, if it can be read.
    pub event_id: Option<Uuid>,
    /// Its type, if it can be read.
    pub event_type: Option<String>,
    /// Its version, if it can be read.
    pub aggregate_version: Option<i64>,
    /// Array of [name, value].
    pub headers: Value,
    /// Its value as it was.
    pub payload: Option<Vec<u8>>,
    /// Why it failed; none if it waits behind another one.
    pub reason: Option<String>,
    /// Kind of the failure.
    pub fingerprint: Option<String>,
    /// When it was put aside.
    pub created_at: DateTime<Utc>,
}

/// Reads records that wait, in the order in which those of a key are applied, at most `rows_max`.
pub async fn waiting_records(
    connection: &mut PgConnection,
    wanted: &Wanted<'_>,
    rows_max: i64,
) -> Result<Vec<WaitingRecord>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"-- waiting_records
        SELECT id, group_id, topic, partition, record_offset, record_key, unordered_key, event_id, event_type, aggregate_version,
            headers, payload, reason, fingerprint, created_at
        FROM dead_letters
        WHERE ($1::bytea IS NULL OR record_key = $1) AND ($2::bigint IS NULL OR id = $2)
            AND ($3::text IS NULL OR group_id = $3) AND ($4::text IS NULL OR topic = $4)
        ORDER BY group_id, topic, record_key, aggregate_version NULLS FIRST, partition, record_offset
        LIMIT $5"#,
        wanted.key,
        wanted.id,
        wanted.group,
        wanted.topic,
        rows_max,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| WaitingRecord {
            id: row.id,
            group_id: row.group_id,
            topic: row.topic,
            partition: row.partition,
            record_offset: row.record_offset,
            record_key: row.record_key.map(RecordKey),
            unordered_key: row.unordered_key.map(RecordKey),
            event_id: row.event_id,
            event_type: row.event_type,
            aggregate_version: row.aggregate_version,
            headers: row.headers,
            payload: row.payload,
            reason: row.reason,
            fingerprint: row.fingerprint,
            created_at: row.created_at,
        })
        .collect())
}

/// What an operator did.
#[derive(Debug, Clone, Serialize)]
pub struct LogEntry {
    /// When.
    pub logged_at: DateTime<Utc>,
    /// `replay` or `discard`.
    pub action: String,
    /// Consumer group.
    pub group_id: String,
    /// Topic.
    pub topic: String,
    /// The event that was discarded.
    pub event_id: Option<Uuid>,
    /// Its version.
    pub aggregate_version: Option<i64>,
    /// How many records of the key waited then.
    pub waiting: i64,
    /// Why it, or the first event of the key, had failed.
    pub reason: Option<String>,
    /// Who was logged in to Postgres.
    pub db_user: String,
    /// Who ran the command.
    pub os_user: String,
    /// Why, in that person's words.
    pub why: Option<String>,
}

/// The latest of what operators did with a key, or with an event, the latest first, at most `rows_max`.
pub async fn history(
    connection: &mut PgConnection,
    key: Option<&[u8]>,
    event_id: Option<Uuid>,
    rows_max: i64,
) -> Result<Vec<LogEntry>, sqlx::Error> {
    sqlx::query_as!(
        LogEntry,
        r#"-- dead_letter_history
        SELECT logged_at, action, group_id, topic, event_id, aggregate_version, waiting, reason, db_user, os_user, why
        FROM dead_letter_log WHERE record_key = $1 OR (record_key IS NULL AND event_id = $2)
        ORDER BY id DESC LIMIT $3"#,
        key,
        event_id,
        rows_max,
    )
    .fetch_all(connection)
    .await
}
