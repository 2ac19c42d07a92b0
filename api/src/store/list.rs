//! SQL of lists of orders.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Postgres, QueryBuilder, Row};
use tokio::time::timeout;

use super::{Orders, StoreError, timed_out};
use crate::listing::{Cursor, Filter, Status};
use crate::representation::OrderDocument;

/// A page of a list.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    /// The orders, the newest first.
    pub documents: Vec<OrderDocument>,
    /// Where the next page begins, if there is one.
    pub next: Option<Cursor>,
}

/// Orders that one page may pass over in search of those that it is to hold.
pub const WALK_ROWS_MAX: i64 = 10_000;

impl Orders {
    /// Orders as `filter` says, the newest first. Fewer than asked for, though there are more, if those are behind many others.
    ///
    /// # Errors
    /// When Postgres does not say.
    pub async fn list(&self, filter: &Filter) -> Result<Page, StoreError> {
        // Not all of the pool: every request with an API key that was not seen lately needs a connection too.
        let turn = timeout(self.connect_timeout, self.listing.acquire()).await;
        let _turn = turn.map_err(|_| StoreError::Unavailable(timed_out("no turn to read a list")))?;
        self.on_connection(async |connection| list_orders(connection, filter).await).await
    }
}

/// The statement of a page. One of the indexes by time is walked backwards from the cursor. Conditions that it does not have are looked at on
/// the way, for [`WALK_ROWS_MAX`] rows at most. No lock is taken.
///
/// An index for each combination would cost each insert, and one on `status` would end the cheap updates (HOT) of processing.
///
/// `prefix` is for an EXPLAIN.
///
/// Not one of the checked queries: a condition that might be there or not would keep its index from being used, so each set of
/// conditions is a statement of its own. Nothing of the request is in its text.
#[must_use]
pub fn statement(filter: &Filter, prefix: &str) -> QueryBuilder<Postgres> {
    let mut query = QueryBuilder::<Postgres>::new(prefix);
    query.push(
        "-- list_orders
        SELECT row_to_json(ROW(o.id, o.user_id, o.product_id, o.quantity, o.status, o.version, o.created_at, o.updated_at,
            o.failure_reason)::order_document)::text, o.created_at, o.id
        FROM (SELECT * FROM orders",
    );
    push_walk(&mut query, filter);
    query.push(" LIMIT ").push_bind(WALK_ROWS_MAX).push(") o WHERE true");
    if let (Some(_), Some(product_id)) = (filter.user_id, filter.product_id) {
        query.push(" AND o.product_id = ").push_bind(product_id);
    }
    if let Some(status) = filter.status {
        query.push(format_args!(" AND o.status = '{}'", status.name()));
    }
    // One more than the page, to know whether there is another.
    query.push(" ORDER BY o.created_at DESC, o.id DESC LIMIT ").push_bind(filter.limit + 1);
    query
}

/// What an index by time finds, in its order.
fn push_walk(query: &mut QueryBuilder<Postgres>, filter: &Filter) {
    query.push(" WHERE deleted_at IS NULL");
    if let Some(user_id) = filter.user_id {
        query.push(" AND user_id = ").push_bind(user_id);
    } else if let Some(product_id) = filter.product_id {
        query.push(" AND product_id = ").push_bind(product_id);
    }
    if let Some(from) = filter.created_from {
        query.push(" AND created_at >= ").push_bind(from);
    }
    if let Some(before) = filter.created_before {
        query.push(" AND created_at < ").push_bind(before);
    }
    // These are few, and have an index of their own.
    if let Some(status @ (Status::Failed | Status::Cancelled)) = filter.status {
        let name = status.name();
        query
            .push(format_args!(" AND id IN (SELECT t.order_id FROM order_transitions t WHERE t.to_status = '{name}')"));
    }
    if let Some(cursor) = filter.cursor {
        query.push(" AND (created_at, id) < (").push_bind(cursor.created_at).push(", ").push_bind(cursor.id).push(")");
    }
    query.push(" ORDER BY created_at DESC, id DESC");
}

async fn list_orders(connection: &mut PgConnection, filter: &Filter) -> Result<Page, sqlx::Error> {
    let rows = statement(filter, "").build().fetch_all(&mut *connection).await?;
    let limit = usize::try_from(filter.limit).unwrap_or(usize::MAX);
    let next = match rows.get(limit.saturating_sub(1)) {
        Some(last) if rows.len() > limit => Some(place(last)?),
        _ => walk_end(connection, filter).await?,
    };
    let documents = rows.iter().take(limit).map(|row| row.try_get::<String, _>(0).map(OrderDocument::from));
    Ok(Page { documents: documents.collect::<Result<_, _>>()?, next })
}

/// Where a walk that found less than a page has ended, unless all rows were walked.
async fn walk_end(connection: &mut PgConnection, filter: &Filter) -> Result<Option<Cursor>, sqlx::Error> {
    if filter.status.is_none() && (filter.user_id.is_none() || filter.product_id.is_none()) {
        return Ok(None);
    }
    let mut query = QueryBuilder::<Postgres>::new("-- list_orders_end\nSELECT id, created_at, id FROM orders");
    push_walk(&mut query, filter);
    query.push(" OFFSET ").push_bind(WALK_ROWS_MAX - 1).push(" LIMIT 1");
    query.build().fetch_optional(connection).await?.as_ref().map(place).transpose()
}

fn place(row: &PgRow) -> Result<Cursor, sqlx::Error> {
    Ok(Cursor { created_at: row.try_get::<DateTime<Utc>, _>(1)?, id: row.try_get(2)? })
}
