//! SQL of the life of one order.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Orders, StoreError};
use crate::feed::event::Transition;
use crate::feed::hub::Settled;

/// An order that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// Whose it is.
    pub user_id: i64,
    /// What has become of it so far, by version.
    pub transitions: Vec<Past>,
}

/// A change of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Past {
    /// The order's version after it.
    pub version: i64,
    /// Status after it; `Deleted` for the deletion.
    pub status: String,
    /// Why, for a change to Failed.
    pub reason: Option<String>,
    /// The event that announces it.
    pub event_id: Uuid,
    /// Database time of its transaction.
    pub occurred_at: DateTime<Utc>,
}

/// A change of an order on its way.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// The change.
    pub change: Past,
    /// `outbox.id` of its event, while that is kept.
    pub outbox_id: Option<i64>,
    /// W3C trace context of the event.
    pub traceparent: Option<String>,
    /// When it was committed, if Postgres keeps that.
    pub committed_at: Option<DateTime<Utc>>,
    /// Whether the relays have published its event, if that is known.
    pub published: Option<bool>,
    /// Since when the event is parked by the relay, and why; null if it waits behind an elder one.
    pub parked: Option<(DateTime<Utc>, Option<String>)>,
    /// What consumer groups did with it: an array of objects.
    pub consumers: Value,
}

impl Past {
    /// What watchers are told of it.
    #[must_use]
    pub fn of(&self, order_id: i64, user_id: i64) -> Transition<'_> {
        Transition {
            r#type: self.kind(),
            event_id: self.event_id,
            order_id,
            user_id,
            version: self.version,
            status: &self.status,
            reason: self.reason.as_deref(),
            occurred_at: self.occurred_at,
        }
    }

    /// The type of its event.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.status.as_str() {
            "Pending" => "order.created",
            "Processed" => "order.processed",
            "Failed" => "order.failed",
            "Cancelled" => "order.cancelled",
            _ => "order.deleted",
        }
    }
}

impl Orders {
    /// An order's past, if there is one that is this user's, or anybody's.
    ///
    /// # Errors
    /// When Postgres does not say.
    pub async fn watched(&self, order_id: i64, user_id: Option<i64>) -> Result<Option<Watched>, StoreError> {
        self.on_connection(async |connection| watched_order(connection, order_id, user_id).await).await
    }

    /// An order that is Pending no more, or deleted.
    ///
    /// # Errors
    /// When Postgres does not say.
    pub async fn settled(&self, order_id: i64) -> Result<Option<Settled>, StoreError> {
        self.on_connection(async |connection| settled_order(connection, order_id).await).await
    }

    /// The changes of an order, by version, if there is one that is this user's, or anybody's; else none.
    ///
    /// # Errors
    /// When Postgres does not say.
    pub async fn timeline(&self, order_id: i64, user_id: Option<i64>) -> Result<Vec<Stage>, StoreError> {
        self.on_connection(async |connection| timeline(connection, order_id, user_id).await).await
    }
}

async fn watched_order(
    connection: &mut PgConnection,
    order_id: i64,
    user_id: Option<i64>,
) -> Result<Option<Watched>, sqlx::Error> {
    // By both primary keys. No lock.
    let rows = sqlx::query!(
        r#"-- watched_order
        SELECT o.user_id, t.version, t.to_status, t.reason, t.event_id, t.occurred_at
        FROM orders o JOIN order_transitions t ON t.order_id = o.id
        WHERE o.id = $1 AND o.deleted_at IS NULL AND ($2::bigint IS NULL OR o.user_id = $2)
        ORDER BY t.version"#,
        order_id,
        user_id,
    )
    .fetch_all(connection)
    .await?;
    let Some(user_id) = rows.first().map(|row| row.user_id) else { return Ok(None) };
    let transitions = rows.into_iter().map(|row| Past {
        version: row.version,
        status: row.to_status,
        reason: row.reason,
        event_id: row.event_id,
        occurred_at: row.occurred_at,
    });
    Ok(Some(Watched { user_id, transitions: transitions.collect() }))
}

async fn settled_order(connection: &mut PgConnection, order_id: i64) -> Result<Option<Settled>, sqlx::Error> {
    // By the primary key. No lock.
    let row = sqlx::query!(
        r#"-- settled_order
        SELECT version, row_to_json(ROW(id, user_id, product_id, quantity, status, version, created_at, updated_at,
            failure_reason)::order_document)::text AS "document!"
        FROM orders WHERE id = $1 AND (status <> 'Pending' OR deleted_at IS NOT NULL)"#,
        order_id,
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| Settled { version: row.version, document: row.document.into() }))
}

async fn timeline(
    connection: &mut PgConnection,
    order_id: i64,
    user_id: Option<i64>,
) -> Result<Vec<Stage>, sqlx::Error> {
    // The function reads by primary keys and by a short range of the outbox's (txid, id). No lock.
    let rows = sqlx::query!(
        r#"-- timeline
        SELECT t.version AS "version!", t.to_status AS "to_status!", t.event_id AS "event_id!", t.occurred_at AS "occurred_at!",
            t.reason, t.outbox_id, t.traceparent, t.committed_at, t.published, t.parked_at, t.parked_reason,
            t.consumers AS "consumers!"
        FROM orders o CROSS JOIN LATERAL order_timeline(o.id) t
        WHERE o.id = $1 AND o.deleted_at IS NULL AND ($2::bigint IS NULL OR o.user_id = $2)"#,
        order_id,
        user_id,
    )
    .fetch_all(connection)
    .await?;
    let stages = rows.into_iter().map(|row| Stage {
        change: Past {
            version: row.version,
            status: row.to_status,
            reason: row.reason,
            event_id: row.event_id,
            occurred_at: row.occurred_at,
        },
        outbox_id: row.outbox_id,
        traceparent: row.traceparent,
        committed_at: row.committed_at,
        published: row.published,
        parked: row.parked_at.map(|at| (at, row.parked_reason)),
        consumers: row.consumers,
    });
    Ok(stages.collect())
}
