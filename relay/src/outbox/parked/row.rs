//! Parked events as they are read again.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{HEADERS_STORED_MAX, HeldKey, PAYLOAD_BYTES_MAX};
use crate::batch::Event;

/// Bytes of payloads with which a read ends; the last one may be as large as [`PAYLOAD_BYTES_MAX`].
const READ_BYTES: i64 = 32 * 1024 * 1024;

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
    /// `outbox.payload`; none if the row is parked by reference.
    pub payload: Option<String>,
    /// `outbox.payload_bytes`.
    pub payload_bytes: i64,
    /// `outbox.headers`.
    pub headers: String,
    /// `outbox.occurred_at`; none if it is outside of the years 1 to 9999.
    pub occurred_at: Option<DateTime<Utc>>,
    /// Why Kafka refused it; none if an elder of its key was refused.
    pub reason: Option<String>,
}

impl ParkedRow {
    /// Why it cannot be published, whatever Kafka would say; none if it can. The session asks before it hands rows to the sender.
    #[must_use]
    pub fn unpublishable(&self) -> Option<String> {
        if self.payload.is_none() {
            let bytes = self.payload_bytes;
            return Some(if bytes > i64::from(PAYLOAD_BYTES_MAX) {
                format!("its payload has {bytes} bytes; at most {PAYLOAD_BYTES_MAX} can be published")
            } else {
                "its headers are too large to be published".to_owned()
            });
        }
        if self.occurred_at.is_none() {
            return Some("its time (occurred_at) is outside of the years 1 to 9999".to_owned());
        }
        None
    }

    /// As it is to be published. Of a row that is [`Self::unpublishable`], payload and time are not its own: it must not be sent.
    #[must_use]
    pub fn event(&self) -> Event<'_> {
        Event {
            event_id: self.event_id,
            aggregate_type: &self.aggregate_type,
            aggregate_id: &self.aggregate_id,
            aggregate_version: self.aggregate_version,
            event_type: &self.event_type,
            payload: self.payload.as_deref().unwrap_or_default(),
            headers: &self.headers,
            occurred_at: self.occurred_at.unwrap_or_default(),
            fault: None,
        }
    }
}

/// The first parked rows of a key, by id: `rows_max` at most, and fewer when their payloads come to 32 MiB before.
///
/// # Errors
/// What the database says.
pub async fn parked_rows(
    connection: &mut PgConnection,
    key: &HeldKey<'_>,
    rows_max: i64,
) -> Result<Vec<ParkedRow>, sqlx::Error> {
    // Goes over relay_parked_key_idx. No lock: under its token, only this relay writes rows of the lane, and no operator discards one of
    // a key that is begun. A relay that did not know payload_bytes parked every row whole: what such a row takes in the table says enough.
    // A time beyond those of chrono would not fail to be decoded, it would panic.
    sqlx::query_as!(
        ParkedRow,
        r#"-- parked_rows
        SELECT id AS "id!", event_id AS "event_id!", aggregate_type AS "aggregate_type!", aggregate_id AS "aggregate_id!",
            aggregate_version AS "aggregate_version!", type AS "event_type!",
            CASE WHEN fits THEN payload::text END AS payload, bytes AS "payload_bytes!",
            CASE WHEN fits THEN headers::text ELSE '{}' END AS "headers!",
            CASE WHEN occurred_at >= '0001-01-01 00:00:00+00' AND occurred_at < '10000-01-01 00:00:00+00' THEN occurred_at END AS occurred_at,
            reason
        FROM (
            SELECT sized.*, bytes <= $5 AND headers_bytes <= $6 AS fits,
                sum(bytes) FILTER (WHERE bytes <= $5) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING EXCLUDE CURRENT ROW) AS bytes_before
            FROM (
                SELECT p.*, coalesce(p.payload_bytes, pg_column_size(p.payload), 0)::bigint AS bytes,
                    pg_column_size(p.headers) AS headers_bytes
                FROM relay_parked p
                WHERE lane = $1 AND key_hash = relay_key_hash($2, $3) AND aggregate_type = $2 AND aggregate_id = $3
                ORDER BY id
                LIMIT $4
            ) sized
        ) summed
        WHERE coalesce(bytes_before, 0)::bigint < $7
        ORDER BY id"#,
        key.lane,
        key.aggregate_type,
        key.aggregate_id,
        rows_max,
        i64::from(PAYLOAD_BYTES_MAX),
        HEADERS_STORED_MAX,
        READ_BYTES,
    )
    .fetch_all(connection)
    .await
}
