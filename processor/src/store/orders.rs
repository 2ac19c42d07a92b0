//! SQL of the order handler.

use sqlx::PgConnection;
use uuid::Uuid;

/// Orders to move from Pending to Processed, as columns.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Sorted, so that transactions which change the same orders come to them in the same order.
    pub(crate) order_ids: Vec<i64>,
    /// The version that each must still have.
    pub(crate) versions: Vec<i64>,
    /// Id of the event that will announce each change.
    pub(crate) event_ids: Vec<Uuid>,
}

/// An order that was changed.
#[derive(Debug)]
pub(crate) struct Changed {
    /// The order.
    pub(crate) id: i64,
    /// Its version now.
    pub(crate) version: i64,
    /// Id of the event that announces it.
    pub(crate) event_id: Uuid,
    /// The order as JSON.
    pub(crate) document: String,
}

/// Makes those orders Processed that are Pending at the given version, and writes their transitions.
pub(crate) async fn process(connection: &mut PgConnection, changes: &Changes) -> Result<Vec<Changed>, sqlx::Error> {
    // Locks the orders that it changes, by the primary key. A concurrent change of one is waited for, and the WHERE is then
    // evaluated on what that left. An order that is given twice is changed once.
    sqlx::query_as!(
        Changed,
        r#"-- process_orders
        WITH changed AS (
            UPDATE orders AS o SET status = 'Processed', version = o.version + 1, updated_at = now()
            FROM UNNEST($1::bigint[], $2::bigint[], $3::uuid[]) AS due (id, version, event_id)
            WHERE o.id = due.id AND o.version = due.version AND o.status = 'Pending'
            RETURNING o.id, o.version, due.event_id,
                row_to_json(ROW(o.id, o.user_id, o.product_id, o.quantity, o.status, o.version, o.created_at,
                    o.updated_at, o.failure_reason)::order_document)::text AS document
        ), history AS (
            INSERT INTO order_transitions (order_id, version, from_status, to_status, event_id)
            SELECT id, version, 'Pending', 'Processed', event_id FROM changed
        )
        SELECT id AS "id!", version AS "version!", event_id AS "event_id!", document AS "document!" FROM changed"#,
        &changes.order_ids,
        &changes.versions,
        &changes.event_ids,
    )
    .fetch_all(connection)
    .await
}

/// The present versions of those of the orders that exist.
pub(crate) async fn versions(connection: &mut PgConnection, ids: &[i64]) -> Result<Vec<(i64, i64)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"-- order_versions
        SELECT id, version FROM orders WHERE id = ANY($1)"#,
        ids,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.version)).collect())
}
