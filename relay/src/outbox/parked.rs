//! Parked keys: events that Kafka refuses for good, all later ones of the same key, and their way back.
//!
//! Who writes what: only the relay that holds a lane parks rows of it, publishes them again and deletes what was acknowledged, each
//! time under its token. An operator asks for a retry by a row in `relay_parked_requests`, or discards an event and asks in the same
//! transaction for the rest.
//!
//! A retry goes: [`retry_requests`], and for each key [`begin_retry`]; then, as long as there is something left, [`parked_rows`],
//! hand them to the producer, wait for *all* of their outcomes, [`settle_retry`]. Meanwhile the key stays parked, so later events of
//! it are parked behind, and are part of the next [`parked_rows`]. When Kafka refuses a row, settle those before it and then
//! [`refuse_retry`]. After either end, nothing of the key may still be under way.
//!
//! The race with an operator who discards an event that a relay is about to publish: [`begin_retry`] marks the request with the token,
//! and is a statement of its own, before [`parked_rows`]. The discard locks the request, looks at the mark, deletes the event and
//! takes the mark away, in one transaction; it refuses when the mark is of the lane's present owner. Whichever of the two comes first,
//! the other sees all that it did: in one statement with the mark, the rows would be read under a snapshot from before the wait for
//! the discard. What is left is what a frozen relay can do anyway: a record that it had handed to its producer before its lane was
//! taken may reach the broker after the event was discarded. And a relay that dies after it has parked an event and before it has settled
//! its cursor lets its successor read that event again: if it was discarded in these few seconds, it is parked once more.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::batch::Event;

/// Keys of `lanes` that are parked: lane, aggregate type, aggregate id.
///
/// # Errors
/// What the database says.
pub async fn parked_keys(
    connection: &mut PgConnection,
    lanes: &[i16],
) -> Result<Vec<(i16, String, String)>, sqlx::Error> {
    let records = sqlx::query!(
        r#"-- parked_keys
        SELECT DISTINCT lane, aggregate_type, aggregate_id FROM relay_parked WHERE lane = ANY ($1)"#,
        lanes
    )
    .fetch_all(connection)
    .await?;
    Ok(records.into_iter().map(|record| (record.lane, record.aggregate_type, record.aggregate_id)).collect())
}

/// Copies rows of one lane into `relay_parked`, `reasons` in their order (null for a key that is parked already). A row that is there
/// already stays as it is: it was parked before a crash. Returns whether the lane is still held under `token`; if not, nothing was
/// written.
///
/// # Errors
/// What the database says.
pub async fn park(
    connection: &mut PgConnection,
    lane: i16,
    token: i64,
    ids: &[i64],
    reasons: &[Option<&str>],
) -> Result<bool, sqlx::Error> {
    // The share lock on the lane keeps a successor from taking it before these rows are there for it to see. Goes over (lane, id) of
    // the outbox.
    sqlx::query_scalar!(
        r#"-- park
        WITH fence AS (
            SELECT lane FROM relay_lanes WHERE lane = $1 AND token = $2 FOR SHARE
        ), parked AS (
            INSERT INTO relay_parked (id, lane, event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, headers,
                occurred_at, reason)
            SELECT o.id, o.lane, o.event_id, o.aggregate_type, o.aggregate_id, o.aggregate_version, o.type, o.payload, o.headers,
                o.occurred_at, p.reason
            FROM fence
            CROSS JOIN UNNEST($3::bigint[], $4::text[]) p (id, reason)
            JOIN outbox o ON o.lane = fence.lane AND o.id = p.id
            ORDER BY o.id
            ON CONFLICT (id) DO NOTHING
        )
        SELECT EXISTS (SELECT FROM fence) AS "held!""#,
        lane,
        token,
        ids,
        reasons as &[Option<&str>],
    )
    .fetch_one(connection)
    .await
}

/// A key that is to be published again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryRequest {
    /// Its lane.
    pub lane: i16,
    /// `outbox.aggregate_type`.
    pub aggregate_type: String,
    /// `outbox.aggregate_id`.
    pub aggregate_id: String,
}

/// The oldest `keys_max` requests of these lanes. Takes no lock and writes nothing, so that it may be asked at each renewal.
///
/// # Errors
/// What the database says.
pub async fn retry_requests(
    connection: &mut PgConnection,
    lanes: &[i16],
    keys_max: i64,
) -> Result<Vec<RetryRequest>, sqlx::Error> {
    sqlx::query_as!(
        RetryRequest,
        r#"-- retry_requests
        SELECT lane, aggregate_type, aggregate_id FROM relay_parked_requests
        WHERE lane = ANY ($1)
        ORDER BY requested_at, lane, aggregate_type, aggregate_id
        LIMIT $2"#,
        lanes,
        keys_max,
    )
    .fetch_all(connection)
    .await
}

/// A parked key of a lane that this relay holds.
#[derive(Debug, Clone, Copy)]
pub struct HeldKey<'a> {
    /// Its lane.
    pub lane: i16,
    /// The lane's fencing token.
    pub token: i64,
    /// `outbox.aggregate_type`.
    pub aggregate_type: &'a str,
    /// `outbox.aggregate_id`.
    pub aggregate_id: &'a str,
}

/// Whether a retry may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// It has: until it ends, nobody discards an event of the key.
    Begun,
    /// The request is there no more.
    Withdrawn,
    /// The lane is another relay's.
    LaneLost,
}

/// Marks the request of a key as begun under the lane's token. Once a session and retry is enough.
///
/// # Errors
/// What the database says.
pub async fn begin_retry(connection: &mut PgConnection, key: &HeldKey<'_>) -> Result<Beginning, sqlx::Error> {
    // Row lock on the request: waits for an operator's discard, and makes a later one wait. A share lock on the lane, as in `park`.
    let record = sqlx::query!(
        r#"-- begin_retry
        WITH fence AS (
            SELECT lane FROM relay_lanes WHERE lane = $1 AND token = $2 FOR SHARE
        ), begun AS (
            UPDATE relay_parked_requests r SET begun_token = $2
            FROM fence
            WHERE r.lane = fence.lane AND r.aggregate_type = $3 AND r.aggregate_id = $4
            RETURNING r.lane
        )
        SELECT EXISTS (SELECT FROM fence) AS "held!", EXISTS (SELECT FROM begun) AS "begun!""#,
        key.lane,
        key.token,
        key.aggregate_type,
        key.aggregate_id,
    )
    .fetch_one(connection)
    .await?;
    Ok(match (record.held, record.begun) {
        (false, _) => Beginning::LaneLost,
        (true, false) => Beginning::Withdrawn,
        (true, true) => Beginning::Begun,
    })
}

/// A parked event.
#[derive(Debug, Clone)]
pub struct ParkedRow {
    /// `outbox.id`.
    pub id: i64,
    /// `outbox.event_id`.
    pub event_id: Uuid,
    /// `outbox.aggregate_type`.
    pub aggregate_type: String,
    /// `outbox.aggregate_id`.
    pub aggregate_id: String,
    /// `outbox.aggregate_version`.
    pub aggregate_version: i64,
    /// `outbox.type`.
    pub event_type: String,
    /// `outbox.payload`.
    pub payload: String,
    /// `outbox.headers`.
    pub headers: String,
    /// `outbox.occurred_at`.
    pub occurred_at: DateTime<Utc>,
    /// Why Kafka refused it; none if an elder of its key was refused.
    pub reason: Option<String>,
}

impl ParkedRow {
    /// As it is to be published.
    #[must_use]
    pub fn event(&self) -> Event<'_> {
        Event {
            event_id: self.event_id,
            aggregate_type: &self.aggregate_type,
            aggregate_id: &self.aggregate_id,
            aggregate_version: self.aggregate_version,
            event_type: &self.event_type,
            payload: &self.payload,
            headers: &self.headers,
            occurred_at: self.occurred_at,
            fault: None,
        }
    }
}

/// The first `rows_max` parked rows of a key, by id. Some are here because they are large, so `rows_max` is what bounds the memory.
///
/// # Errors
/// What the database says.
pub async fn parked_rows(
    connection: &mut PgConnection,
    key: &HeldKey<'_>,
    rows_max: i64,
) -> Result<Vec<ParkedRow>, sqlx::Error> {
    // Goes over relay_parked_key_idx. No lock: under its token, only this relay writes rows of the lane, and no operator discards one of
    // a key that is begun.
    sqlx::query_as!(
        ParkedRow,
        r#"-- parked_rows
        SELECT id, event_id, aggregate_type, aggregate_id, aggregate_version, type AS event_type, payload::text AS "payload!",
            headers::text AS "headers!", occurred_at, reason
        FROM relay_parked
        WHERE lane = $1 AND aggregate_type = $2 AND aggregate_id = $3
        ORDER BY id
        LIMIT $4"#,
        key.lane,
        key.aggregate_type,
        key.aggregate_id,
        rows_max,
    )
    .fetch_all(connection)
    .await
}

/// What is left of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remaining {
    /// Further rows: the key stays parked, and the request stays.
    Rows,
    /// Nothing: the key flows again from now on, and the request is done.
    Nothing,
    /// The lane is another relay's: nothing was written.
    LaneLost,
}

/// Deletes the rows `ids` of a key, which Kafka has acknowledged, and says what is left. When nothing is, the request is deleted too.
///
/// # Errors
/// What the database says.
pub async fn settle_retry(
    connection: &mut PgConnection,
    key: &HeldKey<'_>,
    ids: &[i64],
) -> Result<Remaining, sqlx::Error> {
    // All parts see the same snapshot, in which the rows of `published` are still there. Nobody parks a row of this key meanwhile: only
    // the holder of the token does, over this very connection. So "nothing is left" holds until this relay parks the next one.
    let record = sqlx::query!(
        r#"-- settle_retry
        WITH fence AS (
            SELECT lane FROM relay_lanes WHERE lane = $1 AND token = $2 FOR SHARE
        ), published AS (
            DELETE FROM relay_parked p USING fence
            WHERE p.lane = fence.lane AND p.aggregate_type = $3 AND p.aggregate_id = $4 AND p.id = ANY ($5)
        ), remaining AS (
            SELECT FROM relay_parked p
            WHERE p.lane = $1 AND p.aggregate_type = $3 AND p.aggregate_id = $4 AND p.id <> ALL ($5)
            LIMIT 1
        ), ended AS (
            DELETE FROM relay_parked_requests r USING fence
            WHERE r.lane = fence.lane AND r.aggregate_type = $3 AND r.aggregate_id = $4 AND NOT EXISTS (SELECT FROM remaining)
        )
        SELECT EXISTS (SELECT FROM fence) AS "held!", EXISTS (SELECT FROM remaining) AS "remaining!""#,
        key.lane,
        key.token,
        key.aggregate_type,
        key.aggregate_id,
        ids,
    )
    .fetch_one(connection)
    .await?;
    Ok(match (record.held, record.remaining) {
        (false, _) => Remaining::LaneLost,
        (true, true) => Remaining::Rows,
        (true, false) => Remaining::Nothing,
    })
}

/// Ends a retry because Kafka refuses the row `id` again: writes the new reason to it and deletes the request. The key stays parked.
/// Returns whether the lane is still held; if not, nothing was written.
///
/// # Errors
/// What the database says.
pub async fn refuse_retry(
    connection: &mut PgConnection,
    key: &HeldKey<'_>,
    id: i64,
    reason: &str,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"-- refuse_retry
        WITH fence AS (
            SELECT lane FROM relay_lanes WHERE lane = $1 AND token = $2 FOR SHARE
        ), refused AS (
            UPDATE relay_parked p SET reason = $6
            FROM fence
            WHERE p.lane = fence.lane AND p.aggregate_type = $3 AND p.aggregate_id = $4 AND p.id = $5
        ), ended AS (
            DELETE FROM relay_parked_requests r USING fence
            WHERE r.lane = fence.lane AND r.aggregate_type = $3 AND r.aggregate_id = $4
        )
        SELECT EXISTS (SELECT FROM fence) AS "held!""#,
        key.lane,
        key.token,
        key.aggregate_type,
        key.aggregate_id,
        id,
        reason,
    )
    .fetch_one(connection)
    .await
}
