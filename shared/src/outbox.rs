//! Appending to the outbox from inside the caller's transaction.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::propagation::TraceHeaders;

/// Events of one aggregate type, as columns: one array a column is one statement, however many events.
#[derive(Debug, Default)]
pub struct NewEvents {
    event_ids: Vec<Uuid>,
    aggregate_ids: Vec<String>,
    aggregate_versions: Vec<i64>,
    types: Vec<String>,
    payloads: Vec<String>,
    headers: Vec<serde_json::Value>,
}

/// One event to append.
#[derive(Debug)]
pub struct NewEvent<'a> {
    /// Identity, a UUID v7.
    pub event_id: Uuid,
    /// Which aggregate changed.
    pub aggregate_id: String,
    /// Number of the change, from 1 without gaps.
    pub aggregate_version: i64,
    /// What happened, for example `order.processed`.
    pub event_type: &'a str,
    /// JSON text: the value of the record, byte for byte.
    pub payload: String,
    /// Trace context to travel with it.
    pub trace: &'a TraceHeaders,
}

impl NewEvents {
    /// No events yet, with room for `capacity`.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            event_ids: Vec::with_capacity(capacity),
            aggregate_ids: Vec::with_capacity(capacity),
            aggregate_versions: Vec::with_capacity(capacity),
            types: Vec::with_capacity(capacity),
            payloads: Vec::with_capacity(capacity),
            headers: Vec::with_capacity(capacity),
        }
    }

    /// Adds one.
    pub fn push(&mut self, event: NewEvent<'_>) {
        self.event_ids.push(event.event_id);
        self.aggregate_ids.push(event.aggregate_id);
        self.aggregate_versions.push(event.aggregate_version);
        self.types.push(event.event_type.to_owned());
        self.payloads.push(event.payload);
        self.headers.push(event.trace.to_json());
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.event_ids.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.event_ids.is_empty()
    }
}

/// Appends the events, in their order. **Append rule**: call it last in the transaction, after the aggregates are locked or
/// changed, or ids can contradict the order of commits.
///
/// # Errors
/// What the database says, for example a payload that is no JSON.
pub async fn append(
    connection: &mut PgConnection,
    aggregate_type: &str,
    events: &NewEvents,
) -> Result<(), sqlx::Error> {
    if events.is_empty() {
        return Ok(());
    }
    // The payload goes in as text and is cast, so that its bytes stay as they are.
    let written = sqlx::query!(
        r#"-- append_events
        INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, headers)
        SELECT event_id, $1, aggregate_id, aggregate_version, type, payload::json, headers
        FROM UNNEST($2::uuid[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::jsonb[]) WITH ORDINALITY
            AS new (event_id, aggregate_id, aggregate_version, type, payload, headers, place)
        ORDER BY place"#,
        aggregate_type,
        &events.event_ids,
        &events.aggregate_ids,
        &events.aggregate_versions,
        &events.types,
        &events.payloads,
        &events.headers,
    )
    .execute(connection)
    .await?;
    debug_assert_eq!(usize::try_from(written.rows_affected()), Ok(events.len()));
    Ok(())
}
