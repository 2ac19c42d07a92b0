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

use sqlx::PgConnection;

pub use retry::{Beginning, HeldKey, Remaining, RetryRequest, begin_retry, refuse_retry, retry_requests, settle_retry};
pub use row::{ParkedRow, parked_rows};

mod retry;
mod row;

/// Bytes of a payload that the outbox takes today, and that can be published. A larger one may be there from before.
pub const PAYLOAD_BYTES_MAX: i32 = 16 * 1024 * 1024;

/// Bytes of headers as they are stored, above which their text has more than the 32,768 bytes that the outbox takes today: jsonb is at
/// most four times as long as its text.
const HEADERS_STORED_MAX: i32 = 4 * 32_768;

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

/// Copies rows of one lane into `relay_parked`, `reasons` in their order (null for a key that is parked already), each cut to 1,000
/// characters. A row that is there already stays as it is: it was parked before a crash. Returns whether the lane is still held under
/// `token`; if not, nothing was written.
///
/// A row whose payload is above [`PAYLOAD_BYTES_MAX`], or whose headers are too large, is parked by reference: without payload and headers,
/// which are not even read. Its partition is kept (`outbox_keep_reason`).
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
            INSERT INTO relay_parked (id, lane, event_id, aggregate_type, aggregate_id, aggregate_version, type, payload,
                payload_bytes, headers, occurred_at, reason)
            SELECT o.id, o.lane, o.event_id, o.aggregate_type, o.aggregate_id, o.aggregate_version, o.type,
                CASE WHEN whole.fits THEN o.payload END, o.payload_bytes, CASE WHEN whole.fits THEN o.headers ELSE '{}' END,
                o.occurred_at, left(p.reason, 1000)
            FROM fence
            CROSS JOIN UNNEST($3::bigint[], $4::text[]) p (id, reason)
            JOIN outbox o ON o.lane = fence.lane AND o.id = p.id
            CROSS JOIN LATERAL (SELECT o.payload_bytes <= $5 AND pg_column_size(o.headers) <= $6 AS fits) whole
            ORDER BY o.id
            ON CONFLICT (id) DO NOTHING
        )
        SELECT EXISTS (SELECT FROM fence) AS "held!""#,
        lane,
        token,
        ids,
        reasons as &[Option<&str>],
        PAYLOAD_BYTES_MAX,
        HEADERS_STORED_MAX,
    )
    .fetch_one(connection)
    .await
}
