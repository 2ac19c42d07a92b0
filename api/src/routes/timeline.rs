//! The life of one order over HTTP, for a support desk.

use actix_web::http::header;
use actix_web::{HttpResponse, web};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::orders::not_found;
use crate::caller::Caller;
use crate::domain::OrderId;
use crate::problem::Problem;
use crate::server::State;
use crate::store::timeline::Stage;

#[derive(Serialize)]
struct Timeline<'a> {
    order_id: i64,
    status: &'a str,
    version: i64,
    changes: Vec<ChangeDocument<'a>>,
}

#[derive(Serialize)]
struct ChangeDocument<'a> {
    version: i64,
    status: &'a str,
    reason: Option<&'a str>,
    r#type: &'a str,
    event_id: Uuid,
    trace_id: Option<&'a str>,
    accepted_at: DateTime<Utc>,
    committed: Moment<'a>,
    published: Published<'a>,
    consumers: &'a Value,
}

/// A moment that may not be known; then why.
#[derive(Serialize)]
struct Moment<'a> {
    at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a str>,
}

/// On its way to Kafka, and where it is there.
#[derive(Serialize)]
struct Published<'a> {
    state: &'a str,
    outbox_id: Option<i64>,
    topic: Option<&'a str>,
    partition: Option<i64>,
    offset: Option<i64>,
    at: Option<&'a str>,
    parked_at: Option<DateTime<Utc>>,
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a str>,
}

/// `GET /orders/{id}/timeline`: 200 with each change of an order and what is known of its way. What is not known is null, and a note says why.
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
    Ok(HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).json(timeline))
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
