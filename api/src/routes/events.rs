//! Event streams over HTTP: what becomes of orders, as it happens.

use actix_web::http::header::{self, HeaderMap, HeaderName};
use actix_web::{HttpRequest, HttpResponse, web};
use tokio::time::Instant;

use super::orders::not_found;
use crate::caller::Caller;
use crate::domain::{FieldError, OrderId};
use crate::feed::cursor::Cursor;
use crate::feed::ending::EndingStream;
use crate::feed::hub::Filter;
use crate::feed::stream::{EventStream, NoStream};
use crate::listing;
use crate::problem::{Kind, Problem};
use crate::server::State;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// `GET /orders/events`: 200 with a stream of the changes of all orders, or of a user's, or to a status; after the event that
/// `Last-Event-ID` names, or from now on. It ends only when the reader is too slow or the server goes down.
pub async fn all(
    request: HttpRequest,
    query: Result<web::Query<Vec<(String, String)>>, actix_web::Error>,
    caller: Caller,
    state: web::Data<State>,
) -> Result<HttpResponse, Problem> {
    let query = query.map_err(|_| Problem::new(Kind::InvalidQuery, "The query string cannot be read."))?;
    let mut filter = filter(&query)?;
    filter.user_id = caller.shown(filter.user_id);
    let cursor =
        last_event_id(request.headers())?.map(|text| Cursor::parse(text).ok_or_else(bad_event_id)).transpose()?;
    Ok(stream(state.feed.watch(filter, cursor).await?, state.guard.stream_end(&caller)))
}

/// `GET /orders/{id}/events`: 200 with a stream of the changes of one order, those so far and those to come; after the version that
/// `Last-Event-ID` names. It stays open when the order is Processed, since an order may still be deleted, or processed after it
/// has failed; it ends with the order.
pub async fn of_order(
    request: HttpRequest,
    id: web::Path<String>,
    caller: Caller,
    state: web::Data<State>,
) -> Result<HttpResponse, Problem> {
    let id = OrderId::from_path(&id).ok_or_else(not_found)?;
    let version = |text: &str| text.parse().ok().filter(|version: &i64| *version >= 0).ok_or_else(bad_event_id);
    let after = last_event_id(request.headers())?.map(version).transpose()?.unwrap_or(0);
    Ok(stream(state.feed.watch_order(id.get(), caller.user_id(), after).await?, state.guard.stream_end(&caller)))
}

fn filter(query: &[(String, String)]) -> Result<Filter, Problem> {
    if query.iter().any(|(name, _)| name != "user_id" && name != "status") {
        let error = FieldError { field: "(other)", detail: "is no parameter of a stream of orders" };
        return Err(Problem::invalid_query(vec![error]));
    }
    let listing::Filter { user_id, status, .. } = listing::Filter::from_query(query).map_err(Problem::invalid_query)?;
    Ok(Filter { user_id, status })
}

/// The header, if it is there and not empty.
fn last_event_id(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let text = headers.get(LAST_EVENT_ID).map(|value| value.to_str().map_err(|_| bad_event_id())).transpose()?;
    Ok(text.filter(|text| !text.is_empty()))
}

fn bad_event_id() -> Problem {
    Problem::new(Kind::InvalidEventId, "The header Last-Event-ID must be the id of an event of this stream.")
}

fn stream(body: EventStream, end: Option<Instant>) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    response
        .content_type("text/event-stream")
        .insert_header((header::CACHE_CONTROL, "no-store"))
        // For proxies that would otherwise collect an answer before they pass it on.
        .insert_header(("x-accel-buffering", "no"));
    match end {
        Some(end) => response.body(EndingStream::new(body, end)),
        None => response.body(body),
    }
}

impl From<NoStream> for Problem {
    fn from(reason: NoStream) -> Self {
        match reason {
            NoStream::TooMany => Self::new(Kind::Overloaded, "Too many event streams are open."),
            NoStream::ShuttingDown => Self::new(Kind::Unavailable, "This server is shutting down."),
            NoStream::Unavailable => Self::new(Kind::Unavailable, "The database does not answer."),
            NoStream::NotFound => not_found(),
            NoStream::Store(error) => error.into(),
            NoStream::Gone => Self::new(
                Kind::EventsGone,
                "The events after that one are not kept any more: read the orders anew, and watch from now on without Last-Event-ID.",
            ),
        }
    }
}
