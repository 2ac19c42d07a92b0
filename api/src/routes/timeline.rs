//! The life of one order over HTTP, for a support desk.

use actix_web::{HttpResponse, web};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::orders::not_found;
use crate::caller::Caller;
use crate::description::schemas::Consumer;
use crate::domain::OrderId;
use crate::problem::{Kind, Problem};
use crate::server::State;
use crate::store::timeline::Stage;

/// The life of an order.
#[derive(Serialize, ToSchema)]
struct Timeline<'a> {
    /// The order.
    order_id: i64,
    /// Its status after the last change.
    status: &'a str,
    /// Its version after the last change.
    version: i64,
    /// Each change, the first being its creation.
    changes: Vec<ChangeDocument<'a>>,
}

/// A change of an order, and the way of its event.
#[derive(Serialize, ToSchema)]
#[schema(as = TimelineChange)]
struct ChangeDocument<'a> {
    /// The order's version after it.
    version: i64,
    /// Its status after it; `Deleted` for the deletion.
    status: &'a str,
    /// Why, for a change to Failed.
    #[schema(required)]
    reason: Option<&'a str>,
    /// The type of the event, as in `order.created`.
    r#type: &'a str,
    /// The event on the topic.
    event_id: Uuid,
    /// The trace that it belongs to.
    #[schema(required)]
    trace_id: Option<&'a str>,
    /// When its transaction began, by the database.
    accepted_at: DateTime<Utc>,
    /// When it was committed.
    committed: Moment<'a>,
    /// Its way to Kafka.
    published: Published<'a>,
    /// What consumer groups did with it.
    #[schema(value_type = Vec<Consumer>)]
    consumers: &'a Value,
}

/// A moment that may not be known; then why.
#[derive(Serialize, ToSchema)]
#[schema(as = TimelineMoment)]
struct Moment<'a> {
    /// When, if that is known.
    #[schema(required)]
    at: Option<DateTime<Utc>>,
    /// Why it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    note: Option<&'a str>,
}

/// On its way to Kafka, and where it is there.
#[derive(Serialize, ToSchema)]
#[schema(as = TimelinePublished)]
struct Published<'a> {
    /// waiting, parked, published, or unknown.
    state: &'a str,
    /// Its place in the outbox, while it is there.
    #[schema(required)]
    outbox_id: Option<i64>,
    /// The topic, once somebody has read it.
    #[schema(required)]
    topic: Option<&'a str>,
    /// The partition.
    #[schema(required)]
    partition: Option<i64>,
    /// The record's offset.
    #[schema(required)]
    offset: Option<i64>,
    /// The record's time.
    #[schema(required, format = DateTime)]
    at: Option<&'a str>,
    /// Since when it is parked.
    #[schema(required)]
    parked_at: Option<DateTime<Utc>>,
    /// Why it is parked; null if it waits behind an elder one.
    #[schema(required)]
    reason: Option<&'a str>,
    /// What is not known, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    note: Option<&'a str>,
}

/// See the life of an order
///
/// Each change of an order, and what is known of its event's way through outbox, Kafka and consumers. What is not known is null, and a note says why.
#[utoipa::path(
    get, path = "/orders/{id}/timeline", operation_id = "readTimeline", tag = "orders",
    params(("id" = i64, Path, minimum = 1, example = 1, description = "The order.")),
    responses((status = 200, description = "Its changes.", body = Timeline)),
    extensions(("x-problems" = json!([Kind::OrderNotFound])))
)]
pub async fn read(id: web::Path<String>, caller: Caller, state: web::Data<State>) -> Result<HttpResponse, Problem> {
    let id = OrderId::from_path(&id).ok_or_else(not_found)?;
    let stages = state.orders.timeline(id.get(), caller.user_id()).await?;
    let last = stages.last().ok_or_else(not_found)?;
    let timeline = Timeline {
        order_id: id.get(),
        status: &last.change.status,
        version: last.change.version,
        changes: stages.iter().map(change).collect(),
    };
    Ok(HttpResponse::Ok().json(timeline))
}

fn change(stage: &Stage) -> ChangeDocument<'_> {
    let change = &stage.change;
    let committed = match stage.committed_at {
        Some(at) => Moment { at: Some(at), note: None },
        None => Moment {
            at: None,
            note: Some(
                "It is committed; when, Postgres keeps only with track_commit_timestamp, and while the event is in the outbox.",
            ),
        },
    };
    ChangeDocument {
        version: change.version,
        status: &change.status,
        reason: change.reason.as_deref(),
        r#type: change.kind(),
        event_id: change.event_id,
        trace_id: stage.traceparent.as_deref().and_then(|context| context.split('-').nth(1)),
        accepted_at: change.occurred_at,
        committed,
        published: published(stage),
        consumers: &stage.consumers,
    }
}

fn published(seen: &Stage) -> Published<'_> {
    // Where a record is, those who have read it wrote down; all of one group have read the same one.
    let readers = seen.consumers.as_array().map_or(&[][..], Vec::as_slice);
    let record = readers.iter().find(|reader| reader["topic"].is_string());
    let (state, note) = match (&seen.parked, seen.published, readers.is_empty(), record) {
        (_, _, false, Some(record)) if record["record_time"].is_string() => ("published", None),
        (_, _, false, _) => {
            ("published", Some("When, was not written down: its record has waited, or was read by an older processor."))
        }
        (Some(_), ..) => ("parked", None),
        (None, Some(true), ..) => {
            ("published", Some("When and where to is written down by whoever reads it, and nobody has yet."))
        }
        (None, Some(false), ..) => {
            ("waiting", Some("It waits for a relay, or for its acknowledgement to be written down."))
        }
        (None, None, ..) => {
            ("unknown", Some("Its event is not in the outbox any more, and nobody who has read it remembers it."))
        }
    };
    let (parked_at, reason) = match &seen.parked {
        Some((at, reason)) => (Some(*at), reason.as_deref()),
        None => (None, None),
    };
    Published {
        state,
        outbox_id: seen.outbox_id,
        topic: record.and_then(|record| record["topic"].as_str()),
        partition: record.and_then(|record| record["partition"].as_i64()),
        offset: record.and_then(|record| record["offset"].as_i64()),
        at: record.and_then(|record| record["record_time"].as_str()),
        parked_at,
        reason,
        note,
    }
}
