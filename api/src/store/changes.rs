//! SQL of changes of one order.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Orders, StoreError};
use crate::domain::OrderId;
use crate::representation::OrderDocument;

/// What to do with an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Take it back, if it is Pending.
    Cancel,
    /// Take it out of all answers.
    Delete,
}

/// Which order to change.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The order.
    pub id: OrderId,
    /// Only if it is this user's; none: whosever it is.
    pub user_id: Option<i64>,
    /// Only at one of these versions; none: at any.
    pub expected: Option<&'a [i64]>,
}

/// An order and its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// `orders.version`.
    pub version: i64,
    /// The order.
    pub document: OrderDocument,
}

/// What came of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// It was made; the order as it is now.
    Done(Versioned),
    /// There is no such order.
    NotFound,
    /// The order is at this version, which is none of those that were expected.
    OtherVersion(i64),
    /// The order is in this state, in which it cannot be cancelled.
    OtherStatus(String),
}

/// Tries of one change: an order that becomes visible between a change that misses it and the look for the reason is changed by the next.
const TRIES_MAX: usize = 3;

impl Orders {
    /// Changes an order, and writes the event of that, with `headers`, a JSON object.
    ///
    /// # Errors
    /// When Postgres does not say; in doubt, the change may have been made.
    pub async fn change(
        &self,
        change: Change,
        target: Target<'_>,
        headers: Option<&str>,
    ) -> Result<Changed, StoreError> {
        self.on_connection(async |connection| {
            for _ in 0..TRIES_MAX {
                let done = match change {
                    Change::Cancel => cancel_order(connection, target, headers).await?,
                    Change::Delete => delete_order(connection, target, headers).await?,
                };
                if let Some(done) = done {
                    return Ok(Changed::Done(done));
                }
                let Some((version, status)) = order_state(connection, target).await? else {
                    return Ok(Changed::NotFound);
                };
                if target.expected.is_some_and(|expected| !expected.contains(&version)) {
                    return Ok(Changed::OtherVersion(version));
                }
                if change == Change::Cancel && status != "Pending" {
                    return Ok(Changed::OtherStatus(status));
                }
            }
            Ok(Changed::NotFound)
        })
        .await
    }
}

// Both lock the order by its primary key, and a concurrent change is waited for: the WHERE is then evaluated on what that left. The
// event's id is drawn for a row that is locked already, so events of one order have ids in the order of its versions: the append rule.

async fn cancel_order(
    connection: &mut PgConnection,
    target: Target<'_>,
    headers: Option<&str>,
) -> Result<Option<Versioned>, sqlx::Error> {
    let row = sqlx::query!(
        r#"-- cancel_order
        WITH changed AS (
            UPDATE orders AS o SET status = 'Cancelled', version = o.version + 1, updated_at = now()
            WHERE o.id = $1 AND o.deleted_at IS NULL AND o.status = 'Pending'
                AND ($2::bigint[] IS NULL OR o.version = ANY ($2)) AND ($5::bigint IS NULL OR o.user_id = $5)
            RETURNING o.id, o.version, row_to_json(ROW(o.id, o.user_id, o.product_id, o.quantity, o.status, o.version, o.created_at,
                o.updated_at, o.failure_reason)::order_document) AS document
        ), history AS (
            INSERT INTO order_transitions (order_id, version, from_status, to_status, event_id)
            SELECT id, version, 'Pending', 'Cancelled', $3 FROM changed
        ), event AS (
            INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, headers)
            SELECT $3, 'order', id::text, version, 'order.cancelled', document, coalesce($4::text::jsonb, '{}') FROM changed
        )
        SELECT version AS "version!", document::text AS "document!" FROM changed"#,
        target.id.get(),
        target.expected,
        Uuid::now_v7(),
        headers,
        target.user_id,
    )
    .fetch_all(connection)
    .await?;
    Ok(row.into_iter().next().map(|row| Versioned { version: row.version, document: row.document.into() }))
}

async fn delete_order(
    connection: &mut PgConnection,
    target: Target<'_>,
    headers: Option<&str>,
) -> Result<Option<Versioned>, sqlx::Error> {
    let row = sqlx::query!(
        r#"-- delete_order
        WITH changed AS (
            UPDATE orders AS o SET version = o.version + 1, updated_at = now(), deleted_at = now()
            WHERE o.id = $1 AND o.deleted_at IS NULL AND ($2::bigint[] IS NULL OR o.version = ANY ($2))
                AND ($5::bigint IS NULL OR o.user_id = $5)
            RETURNING o.id, o.version, o.status, row_to_json(ROW(o.id, o.user_id, o.product_id, o.quantity, o.status, o.version,
                o.created_at, o.updated_at, o.failure_reason)::order_document) AS document
        ), history AS (
            INSERT INTO order_transitions (order_id, version, from_status, to_status, event_id)
            SELECT id, version, status, 'Deleted', $3 FROM changed
        ), event AS (
            INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, headers)
            SELECT $3, 'order', id::text, version, 'order.deleted', document, coalesce($4::text::jsonb, '{}') FROM changed
        )
        SELECT version AS "version!", document::text AS "document!" FROM changed"#,
        target.id.get(),
        target.expected,
        Uuid::now_v7(),
        headers,
        target.user_id,
    )
    .fetch_all(connection)
    .await?;
    Ok(row.into_iter().next().map(|row| Versioned { version: row.version, document: row.document.into() }))
}

async fn order_state(connection: &mut PgConnection, target: Target<'_>) -> Result<Option<(i64, String)>, sqlx::Error> {
    let row = sqlx::query!(
        r#"-- order_state
        SELECT version, status FROM orders WHERE id = $1 AND deleted_at IS NULL AND ($2::bigint IS NULL OR user_id = $2)"#,
        target.id.get(),
        target.user_id,
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| (row.version, row.status)))
}
