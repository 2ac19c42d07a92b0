//! SQL of lists of orders.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Postgres, QueryBuilder, Row};

use super::{Orders, StoreError};
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

impl Orders {
    /// Orders as `filter` says, the newest first.
    ///
    /// # Errors
    /// When Postgres does not say.
    pub async fn list(&self, filter: &Filter) -> Result<Page, StoreError> {
        self.on_connection(async |connection| list_orders(connection, filter).await).await
    }
}

/// The statement of a page. One of the indexes by time is walked backwards from the cursor, which costs the rows of the page; with a filter that has no index of
/// its own, the rows that are passed over too. No lock is taken.
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
        FROM orders o WHERE o.deleted_at IS NULL",
    );
    if let Some(user_id) = filter.user_id {
        query.push(" AND o.user_id = ").push_bind(user_id);
    }
    if let Some(product_id) = filter.product_id {
        query.push(" AND o.product_id = ").push_bind(product_id);
    }
    if let Some(from) = filter.created_from {
        query.push(" AND o.created_at >= ").push_bind(from);
    }
    if let Some(before) = filter.created_before {
        query.push(" AND o.created_at < ").push_bind(before);
    }
    if let Some(status) = filter.status {
        let name = status.name();
        query.push(format_args!(" AND o.status = '{name}'"));
        if matches!(status, Status::Failed | Status::Cancelled) {
            query.push(format_args!(
                " AND o.id IN (SELECT t.order_id FROM order_transitions t WHERE t.to_status = '{name}')"
            ));
        }
    }
    if let Some(cursor) = filter.cursor {
        query
            .push(" AND (o.created_at, o.id) < (")
            .push_bind(cursor.created_at)
            .push(", ")
            .push_bind(cursor.id)
            .push(")");
    }
    // One more than the page, to know whether there is another.
    query.push(" ORDER BY o.created_at DESC, o.id DESC LIMIT ").push_bind(filter.limit + 1);
    query
}

async fn list_orders(connection: &mut PgConnection, filter: &Filter) -> Result<Page, sqlx::Error> {
    let rows = statement(filter, "").build().fetch_all(connection).await?;
    let limit = usize::try_from(filter.limit).unwrap_or(usize::MAX);
    let next = match rows.get(limit.saturating_sub(1)) {
        Some(last) if rows.len() > limit => {
            Some(Cursor { created_at: last.try_get::<DateTime<Utc>, _>(1)?, id: last.try_get(2)? })
        }
        _ => None,
    };
    let documents = rows.iter().take(limit).map(|row| row.try_get::<String, _>(0).map(OrderDocument::from));
    Ok(Page { documents: documents.collect::<Result<_, _>>()?, next })
}
