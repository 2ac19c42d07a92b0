//! What readers are sent: server-sent events, as text. <https://html.spec.whatwg.org/multipage/server-sent-events.html>

use std::fmt::Display;

use actix_web::web::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::store::feed::Row;

/// One change of one order. The field names are what clients read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = OrderEvent)]
pub struct Transition<'a> {
    /// What happened, as in `order.created`: the type of the event on the topic.
    pub r#type: &'a str,
    /// Identity of the event on the topic.
    pub event_id: Uuid,
    /// The order.
    pub order_id: i64,
    /// Whose order it is.
    pub user_id: i64,
    /// The order's version after the change.
    pub version: i64,
    /// Its status after the change; `Deleted` after a deletion.
    pub status: &'a str,
    /// Why, for a change to Failed.
    #[schema(required)]
    pub reason: Option<&'a str>,
    /// Database time of the change.
    pub occurred_at: DateTime<Utc>,
}

/// What is read of an order's JSON.
#[derive(Debug, Deserialize)]
struct Document<'a> {
    user_id: i64,
    #[serde(borrow)]
    status: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    failure_reason: Option<std::borrow::Cow<'a, str>>,
}

/// The user and the status of an event of an order, and what else is sent of it.
#[derive(Debug)]
pub struct Change<'a> {
    row: &'a Row,
    document: Document<'a>,
}

impl<'a> Change<'a> {
    /// Reads it; none if its payload is no order, since others may write to the outbox what they like.
    #[must_use]
    pub fn of(row: &'a Row) -> Option<Self> {
        serde_json::from_str(&row.document).ok().map(|document| Self { row, document })
    }

    /// Whose order it is.
    #[must_use]
    pub const fn user_id(&self) -> i64 {
        self.document.user_id
    }

    /// The status after the change.
    #[must_use]
    pub fn status(&self) -> &str {
        // A deletion leaves the order's own status as it is.
        if self.row.kind == "order.deleted" { "Deleted" } else { &self.document.status }
    }

    /// What is sent of it.
    #[must_use]
    pub fn transition(&self) -> Transition<'_> {
        Transition {
            r#type: &self.row.kind,
            event_id: self.row.event_id,
            order_id: self.row.order_id,
            user_id: self.document.user_id,
            version: self.row.version,
            status: self.status(),
            reason: self.document.failure_reason.as_deref(),
            occurred_at: self.row.occurred_at,
        }
    }
}

/// An event with an id, by which a reader that comes back goes on.
#[must_use]
pub fn event(id: impl Display, transition: &Transition<'_>) -> Bytes {
    // Neither a type nor JSON may hold a line break: JSON escapes it, and a type with one is nobody's.
    let kind = transition.r#type.replace(['\r', '\n'], " ");
    let data = serde_json::to_string(transition).unwrap_or_default();
    format!("id: {id}\nevent: {kind}\ndata: {data}\n\n").into()
}

/// Says that the stream lives, and, if it has cursors, how far it is: whoever comes back goes on from there, though nothing of interest has happened.
#[must_use]
pub fn heartbeat(cursor: Option<&str>) -> Bytes {
    match cursor {
        None => Bytes::from_static(b":\n\n"),
        Some(cursor) => format!(":\nid: {cursor}\n\n").into(),
    }
}

/// Tells the reader when to come back after the connection has ended, and, if the stream has cursors, from where.
#[must_use]
pub fn opening(cursor: Option<&str>) -> Bytes {
    let id = cursor.map(|cursor| format!("id: {cursor}\n")).unwrap_or_default();
    format!("retry: 1000\n{id}\n").into()
}

/// Says why the stream ends before its time. Without an id: the last one stays what the reader goes on from.
#[must_use]
pub fn cut_off(reason: &str) -> Bytes {
    let data = serde_json::json!({ "reason": reason });
    format!("event: cut-off\ndata: {data}\n\n").into()
}

/// The last words of a server that goes down: to come back, each reader at a moment of its own within a few seconds.
#[must_use]
pub fn farewell() -> Bytes {
    let wait_ms = 500 + Uuid::now_v7().as_u64_pair().1 % 2_500;
    format!("retry: {wait_ms}\n\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_what_became_of_the_order() {
        let row = Row {
            id: 9,
            order_id: 7,
            version: 3,
            event_id: Uuid::nil(),
            occurred_at: DateTime::UNIX_EPOCH,
            kind: "order.deleted".to_owned(),
            document: r#"{"id":7,"user_id":5,"status":"Failed","version":3,"failure_reason":"no \"stock\"\n"}"#
                .to_owned(),
        };
        let change = Change::of(&row).expect("an order");
        assert_eq!((change.user_id(), change.status()), (5, "Deleted"));
        let text = event("a.b", &change.transition());
        let expected = concat!(
            "id: a.b\nevent: order.deleted\ndata: {\"type\":\"order.deleted\",\"event_id\":\"00000000-0000-0000-0000-000000000000\",",
            "\"order_id\":7,\"user_id\":5,\"version\":3,\"status\":\"Deleted\",\"reason\":\"no \\\"stock\\\"\\n\",",
            "\"occurred_at\":\"1970-01-01T00:00:00Z\"}\n\n"
        );
        assert_eq!(String::from_utf8(text.to_vec()).expect("text"), expected);
        assert!(Change::of(&Row { document: r#"{"amount": 1}"#.to_owned(), ..row }).is_none());
    }
}
