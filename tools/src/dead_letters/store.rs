//! All SQL of `outrider dead-letters`. The processor's half is the crate `processor`: its key work holds a key's row in `blocked_keys`
//! while it works on the key, and its batches hold it while they put an event behind the key.

use serde::Serialize;
use sqlx::PgConnection;
use sqlx::types::Uuid;
use sqlx::types::chrono::{DateTime, Utc};

use super::key::RecordKey;

pub mod discard;
pub mod records;
pub mod requests;

/// Which keys, and single records without one, are meant; all that is given must fit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Selection<'a> {
    /// Consumer group.
    pub group: Option<&'a str>,
    /// Topic.
    pub topic: Option<&'a str>,
    /// Key of the records; leaves out those without one.
    pub key: Option<&'a [u8]>,
    /// Type of the event that failed.
    pub event_type: Option<&'a str>,
    /// What the reason holds, in any case.
    pub reason: Option<&'a str>,
    /// Kind of the failure.
    pub fingerprint: Option<&'a str>,
    /// Only what failed last at this time or later.
    pub since: Option<DateTime<Utc>>,
    /// `retrying`, `waiting` or `parked`.
    pub state: Option<&'a str>,
    /// `dead_letters.id` of the first record.
    pub id: Option<i64>,
}

/// A key that waits, or a single record without one. What is said of an event is said of its first one, which is the one that failed.
#[derive(Debug, Clone, Serialize)]
pub struct WaitingKey {
    /// Consumer group.
    pub group_id: String,
    /// Topic.
    pub topic: String,
    /// Whose worker tries it.
    pub partition: i32,
    /// Key of the records; none for a record without one.
    pub record_key: Option<RecordKey>,
    /// `dead_letters.id` of the first record.
    pub dead_letter_id: Option<i64>,
    /// `retrying`, `waiting` or `parked`.
    pub state: String,
    /// How often the first event was tried.
    pub attempts: i32,
    /// When it is tried again; none if nobody does.
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// When it first failed.
    pub first_failed_at: DateTime<Utc>,
    /// When it last failed.
    pub last_failed_at: DateTime<Utc>,
    /// Events that wait.
    pub waiting: i64,
    /// Identity of the event, if it can be read.
    pub event_id: Option<Uuid>,
    /// Its type, if it can be read.
    pub event_type: Option<String>,
    /// Its version, if it can be read.
    pub aggregate_version: Option<i64>,
    /// Kind of its failure.
    pub fingerprint: String,
    /// Why it failed.
    pub reason: String,
}

/// Keys that were looked for.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Those that failed first, no more than were asked for.
    pub rows: Vec<WaitingKey>,
    /// How many there are in all.
    pub keys: i64,
    /// How many events wait of them, in all.
    pub events: i64,
}

/// Looks for keys that wait, those that failed first before the others, at most `keys_max`.
pub async fn waiting_keys(
    connection: &mut PgConnection,
    selection: &Selection<'_>,
    keys_max: i64,
) -> Result<Found, sqlx::Error> {
    // Each key's first record and count walk dead_letters_key_idx. A record without a key counts as one that is parked.
    let records = sqlx::query!(
        r#"-- waiting_keys
        SELECT group_id AS "group_id!", topic AS "topic!", partition AS "partition!", record_key, dead_letter_id, state AS "state!",
            attempts AS "attempts!", next_attempt_at, first_failed_at AS "first_failed_at!", last_failed_at AS "last_failed_at!",
            waiting AS "waiting!", event_id, event_type, aggregate_version, fingerprint AS "fingerprint!", reason AS "reason!",
            count(*) OVER () AS "keys!", (sum(waiting) OVER ())::bigint AS "events!"
        FROM (
            SELECT b.group_id, b.topic, b.partition, b.record_key, head.id AS dead_letter_id, b.state, b.attempts, b.next_attempt_at,
                b.first_failed_at, b.last_failed_at, b.reason, b.fingerprint, head.event_id, head.event_type, head.aggregate_version,
                (SELECT count(*) FROM dead_letters d
                    WHERE d.group_id = b.group_id AND d.topic = b.topic AND d.key_hash = b.key_hash) AS waiting
            FROM blocked_keys b
            LEFT JOIN LATERAL (
                SELECT d.id, d.event_id, d.event_type, d.aggregate_version FROM dead_letters d
                WHERE d.group_id = b.group_id AND d.topic = b.topic AND d.key_hash = b.key_hash
                ORDER BY d.reason IS NULL, d.aggregate_version NULLS FIRST, d.partition, d.record_offset LIMIT 1
            ) AS head ON true
            UNION ALL
            SELECT d.group_id, d.topic, d.partition, NULL, d.id, 'parked', 1, NULL, d.created_at, d.created_at, d.reason,
                coalesce(d.fingerprint, ''), d.event_id, d.event_type, d.aggregate_version, 1
            FROM dead_letters d WHERE d.record_key IS NULL
        ) AS k
        WHERE ($1::text IS NULL OR group_id = $1) AND ($2::text IS NULL OR topic = $2)
            AND ($3::bytea IS NULL OR record_key = $3) AND ($4::text IS NULL OR event_type = $4)
            AND ($5::text IS NULL OR position(lower($5) IN lower(reason)) > 0)
            AND ($6::text IS NULL OR fingerprint = $6) AND ($7::timestamptz IS NULL OR last_failed_at >= $7)
            AND ($8::text IS NULL OR state = $8) AND ($9::bigint IS NULL OR dead_letter_id = $9)
        ORDER BY first_failed_at, group_id, topic, record_key, dead_letter_id
        LIMIT $10"#,
        selection.group,
        selection.topic,
        selection.key,
        selection.event_type,
        selection.reason,
        selection.fingerprint,
        selection.since,
        selection.state,
        selection.id,
        keys_max,
    )
    .fetch_all(connection)
    .await?;
    let (keys, events) = records.first().map_or((0, 0), |record| (record.keys, record.events));
    let rows = records.into_iter().map(|record| WaitingKey {
        group_id: record.group_id,
        topic: record.topic,
        partition: record.partition,
        record_key: record.record_key.map(RecordKey),
        dead_letter_id: record.dead_letter_id,
        state: record.state,
        attempts: record.attempts,
        next_attempt_at: record.next_attempt_at,
        first_failed_at: record.first_failed_at,
        last_failed_at: record.last_failed_at,
        waiting: record.waiting,
        event_id: record.event_id,
        event_type: record.event_type,
        aggregate_version: record.aggregate_version,
        fingerprint: record.fingerprint,
        reason: record.reason,
    });
    Ok(Found { rows: rows.collect(), keys, events })
}

/// Failures of one kind.
#[derive(Debug, Clone, Serialize)]
pub struct FailureGroup {
    /// The kind.
    pub fingerprint: String,
    /// Type of the events that failed, if it can be read.
    pub event_type: Option<String>,
    /// Why the latest of them failed.
    pub reason: String,
    /// How many keys wait because of it; a record without a key counts as one.
    pub keys: i64,
    /// How many events wait with them.
    pub events: i64,
    /// When the first of them failed.
    pub first_failed_at: DateTime<Utc>,
    /// When one of them last failed.
    pub last_failed_at: DateTime<Utc>,
}

/// Counts keys that wait by the kind of their failure, those of which most wait first, at most `groups_max` kinds.
pub async fn failure_groups(
    connection: &mut PgConnection,
    selection: &Selection<'_>,
    groups_max: i64,
) -> Result<Vec<FailureGroup>, sqlx::Error> {
    // As waiting_keys: a checked query cannot be put together of parts.
    sqlx::query_as!(
        FailureGroup,
        r#"-- failure_groups
        SELECT fingerprint AS "fingerprint!", event_type, (array_agg(reason ORDER BY last_failed_at DESC))[1] AS "reason!",
            count(*) AS "keys!", sum(waiting)::bigint AS "events!", min(first_failed_at) AS "first_failed_at!",
            max(last_failed_at) AS "last_failed_at!"
        FROM (
            SELECT b.group_id, b.topic, b.record_key, b.state, b.first_failed_at, b.last_failed_at, b.reason, b.fingerprint,
                head.event_type, head.id AS dead_letter_id,
                (SELECT count(*) FROM dead_letters d
                    WHERE d.group_id = b.group_id AND d.topic = b.topic AND d.key_hash = b.key_hash) AS waiting
            FROM blocked_keys b
            LEFT JOIN LATERAL (
                SELECT d.id, d.event_type FROM dead_letters d
                WHERE d.group_id = b.group_id AND d.topic = b.topic AND d.key_hash = b.key_hash
                ORDER BY d.reason IS NULL, d.aggregate_version NULLS FIRST, d.partition, d.record_offset LIMIT 1
            ) AS head ON true
            UNION ALL
            SELECT d.group_id, d.topic, NULL, 'parked', d.created_at, d.created_at, d.reason, coalesce(d.fingerprint, ''),
                d.event_type, d.id, 1
            FROM dead_letters d WHERE d.record_key IS NULL
        ) AS k
        WHERE ($1::text IS NULL OR group_id = $1) AND ($2::text IS NULL OR topic = $2)
            AND ($3::bytea IS NULL OR record_key = $3) AND ($4::text IS NULL OR event_type = $4)
            AND ($5::text IS NULL OR position(lower($5) IN lower(reason)) > 0)
            AND ($6::text IS NULL OR fingerprint = $6) AND ($7::timestamptz IS NULL OR last_failed_at >= $7)
            AND ($8::text IS NULL OR state = $8) AND ($9::bigint IS NULL OR dead_letter_id = $9)
        GROUP BY fingerprint, event_type
        ORDER BY count(*) DESC, min(first_failed_at), fingerprint
        LIMIT $10"#,
        selection.group,
        selection.topic,
        selection.key,
        selection.event_type,
        selection.reason,
        selection.fingerprint,
        selection.since,
        selection.state,
        selection.id,
        groups_max,
    )
    .fetch_all(connection)
    .await
}
