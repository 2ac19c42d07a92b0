//! SQL of the order handler.

use sqlx::PgConnection;
use uuid::Uuid;

/// Orders to be Processed, as columns.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Sorted, so that transactions which change the same orders come to them in the same order.
    pub(crate) order_ids: Vec<i64>,
    /// The version that each must still have, or have had before it became Failed: that of its event.
    pub(crate) versions: Vec<i64>,
    /// Id of the event that announces each change.
    pub(crate) event_ids: Vec<Uuid>,
    /// Headers of that event, JSON objects.
    pub(crate) headers: Vec<serde_json::Value>,
}

/// An order that was processed.
#[derive(Debug)]
pub(crate) struct Processed {
    /// The order.
    pub(crate) id: i64,
    /// The version at which the event found it that changed it.
    pub(crate) event_version: i64,
}

/// An order that was changed.
#[derive(Debug)]
pub(crate) struct Changed {
    /// The order.
    pub(crate) id: i64,
    /// Its version now.
    pub(crate) version: i64,
    /// Id of the event that is to announce it.
    pub(crate) event_id: Uuid,
    /// The order as JSON.
    pub(crate) document: String,
}

/// Makes those orders Processed that are Pending at the given version, or became Failed from there, and writes the transition and the event
/// `order.processed` of each.
pub(crate) async fn process(connection: &mut PgConnection, changes: &Changes) -> Result<Vec<Processed>, sqlx::Error> {
    // Locks the orders that it changes, by the primary key. A concurrent change of one is waited for, and the WHERE is then
    // evaluated on what that left. An order that is given twice is changed once.
    //
    // One statement for order and event, so that the document never leaves the database. An event's id is drawn for a row that has come
    // out of the UPDATE, and so is locked: the append rule.
    sqlx::query_as!(
        Processed,
        r#"-- process_orders
        WITH changed AS (
            UPDATE orders AS o
            SET status = 'Processed', failure_reason = NULL, version = o.version + 1, updated_at = now()
            FROM UNNEST($1::bigint[], $2::bigint[], $3::uuid[], $4::jsonb[]) AS due (id, version, event_id, headers)
            WHERE o.id = due.id AND (
                (o.status = 'Pending' AND o.version = due.version)
                OR (o.status = 'Failed' AND o.version = due.version + 1))
            RETURNING o.id, o.version, due.version AS event_version, due.event_id, due.headers,
                row_to_json(ROW(o.id, o.user_id, o.product_id, o.quantity, o.status, o.version, o.created_at,
                    o.updated_at, o.failure_reason)::order_document) AS document
        ), history AS (
            INSERT INTO order_transitions (order_id, version, from_status, to_status, event_id)
            SELECT id, version, CASE WHEN version = event_version + 1 THEN 'Pending' ELSE 'Failed' END, 'Processed', event_id
            FROM changed
        ), appended AS (
            INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, headers)
            SELECT event_id, 'order', id::text, version, 'order.processed', document, headers FROM changed
        )
        SELECT id AS "id!", event_version AS "event_version!" FROM changed"#,
        &changes.order_ids,
        &changes.versions,
        &changes.event_ids,
        &changes.headers,
    )
    .fetch_all(connection)
    .await
}

/// Makes an order Failed that is Pending at `version`, and writes the transition, with the id of the event that is to announce it and the
/// reason. None: it is not there, or not so.
pub(crate) async fn fail(
    connection: &mut PgConnection,
    order_id: i64,
    version: i64,
    (event_id, reason): (Uuid, &str),
) -> Result<Option<Changed>, sqlx::Error> {
    // Locks the order by the primary key, as above. Postgres cannot store U+0000 in a text.
    let reason = reason.replace('\0', "\\u0000");
    sqlx::query_as!(
        Changed,
        r#"-- fail_order
        WITH changed AS (
            UPDATE orders AS o
            SET status = 'Failed', failure_reason = $4, version = o.version + 1, updated_at = now()
            WHERE o.id = $1 AND o.version = $2 AND o.status = 'Pending'
            RETURNING o.id, o.version,
                row_to_json(ROW(o.id, o.user_id, o.product_id, o.quantity, o.status, o.version, o.created_at,
                    o.updated_at, o.failure_reason)::order_document)::text AS document
        ), history AS (
            INSERT INTO order_transitions (order_id, version, from_status, to_status, event_id, reason)
            SELECT id, version, 'Pending', 'Failed', $3, $4 FROM changed
        )
        SELECT id AS "id!", version AS "version!", $3::uuid AS "event_id!", document AS "document!" FROM changed"#,
        order_id,
        version,
        event_id,
        reason,
    )
    .fetch_optional(connection)
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
