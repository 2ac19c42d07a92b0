//! Event streams over HTTP: what becomes of orders, as it happens.

use actix_web::http::header::{HeaderMap, HeaderName};
use actix_web::{HttpRequest, HttpResponse, web};
use tokio::time::Instant;

use super::orders::not_found;
use crate::caller::Caller;
use crate::description::schemas::WatchQuery;
use crate::domain::{FieldError, OrderId};
use crate::feed::ending::EndingStream;
use crate::feed::hub::Filter;
use crate::feed::stream::{EventStream, NoStream};
use crate::listing;
use crate::problem::{Kind, Problem};
use crate::rate::Payer;
use crate::server::State;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const LAST_EVENT_ID_PARAMETER: &str = "lastEventId";

/// For the description.
const EXAMPLE: &str = "id: 2\nevent: order.processed\ndata: {\"type\":\"order.processed\",\
    \"event_id\":\"01936f6e-5c00-7000-8000-000000000000\",\"order_id\":1,\"user_id\":7,\"version\":2,\"status\":\"Processed\",\
    \"reason\":null,\"occurred_at\":\"2026-11-24T12:00:00Z\"}\n\n";

/// Watch orders
///
/// A stream of server-sent events: each change of all orders, or of a user's, or to a status; after the event that `Last-Event-ID` names, or from now on. It
/// ends only when the reader is too slow, behind `event: cut-off`, or when the server goes down. Whoever comes back with the last `id` misses nothing.
#[utoipa::path(
    get, path = "/orders/events", operation_id = "watchOrders", tag = "orders",
    params(WatchQuery, ("Last-Event-ID" = Option<String>, Header, description = "The `id` of the last event that the reader has.")),
    responses((
        status = 200, body = String, content_type = "text/event-stream",
        description = "Blocks of `id`, `event` and `data`; the data is an OrderEvent as JSON. Comments keep a silent stream alive.",
        headers(("X-Accel-Buffering")), example = json!(EXAMPLE)
    )),
    extensions(("x-problems" = json!([
        Kind::InvalidQuery, Kind::InvalidEventId, Kind::EventsGone,
    ])))
)]
pub async fn all(
    request: HttpRequest,
    query: Result<web::Query<Vec<(String, String)>>, actix_web::Error>,
    caller: Caller,
    state: web::Data<State>,
) -> Result<HttpResponse, Problem> {
    let query = query.map_err(|_| Problem::new(Kind::InvalidQuery, "The query string cannot be read."))?;
    let mut filter = filter(&query)?;
    filter.user_id = caller.shown(filter.user_id);
    let position = last_event_id(request.headers(), &query)?;
    let payer = Payer::of(&request, &caller);
    Ok(stream(state.feed.watch(payer, filter, position).await?, state.guard.stream_end(&caller)))
}

/// Watch an order
///
/// A stream of server-sent events: the changes of one order, those so far and those to come; after the version that `Last-Event-ID` names. It stays open when the order is
/// Processed, since an order may still be deleted, or processed after it has failed; it ends with the order.
#[utoipa::path(
    get, path = "/orders/{id}/events", operation_id = "watchOrder", tag = "orders",
    params(
        ("id" = i64, Path, minimum = 1, example = 1, description = "The order."),
        ("Last-Event-ID" = Option<i64>, Header, minimum = 0, example = 0, description = "The `id` of the last event that the reader has: a version of the order."),
        ("lastEventId" = Option<i64>, Query, minimum = 0, description = "In place of the header `Last-Event-ID`, for clients that cannot set it."),
    ),
    responses((
        status = 200, body = String, content_type = "text/event-stream",
        description = "Blocks of `id`, `event` and `data`; the data is an OrderEvent as JSON. Comments keep a silent stream alive.",
        headers(("X-Accel-Buffering")), example = json!(EXAMPLE)
    )),
    extensions(("x-problems" = json!([Kind::OrderNotFound, Kind::InvalidEventId])))
)]
pub async fn of_order(
    request: HttpRequest,
    id: web::Path<String>,
    caller: Caller,
    state: web::Data<State>,
) -> Result<HttpResponse, Problem> {
    let id = OrderId::from_path(&id).ok_or_else(not_found)?;
    let version = |text: &str| text.parse().ok().filter(|version: &i64| *version >= 0).ok_or_else(bad_event_id);
    // No other parameter is looked at.
    let query = web::Query::<Vec<(String, String)>>::from_query(request.query_string())
        .unwrap_or_else(|_| web::Query(Vec::new()));
    let after = last_event_id(request.headers(), &query)?.map(version).transpose()?.unwrap_or(0);
    let events = state.feed.watch_order(Payer::of(&request, &caller), id.get(), caller.user_id(), after).await?;
    Ok(stream(events, state.guard.stream_end(&caller)))
}

fn filter(query: &[(String, String)]) -> Result<Filter, Problem> {
    let others = query.iter().filter(|(name, _)| name != LAST_EVENT_ID_PARAMETER).cloned().collect::<Vec<_>>();
    if others.iter().any(|(name, _)| name != "user_id" && name != "status") {
        let error = FieldError { field: "(other)", detail: "is no parameter of a stream of orders" };
        return Err(Problem::invalid_query(vec![error]));
    }
    let listing::Filter { user_id, status, .. } =
        listing::Filter::from_query(&others).map_err(Problem::invalid_query)?;
    Ok(Filter { user_id, status })
}

/// The id of the last event that a reader has: the header, or else the parameter. Neither counts if it is empty.
///
/// The parameter is what `event-source-polyfill` sends when it reconnects, as it does for requests to other origins.
fn last_event_id<'a>(headers: &'a HeaderMap, query: &'a [(String, String)]) -> Result<Option<&'a str>, Problem> {
    let header = headers.get(LAST_EVENT_ID).map(|value| value.to_str().map_err(|_| bad_event_id())).transpose()?;
    let parameter = query.iter().find(|(name, _)| name == LAST_EVENT_ID_PARAMETER).map(|(_, value)| value.as_str());
    Ok([header, parameter].into_iter().flatten().find(|text| !text.is_empty()))
}

fn bad_event_id() -> Problem {
    Problem::new(
        Kind::InvalidEventId,
        "The header Last-Event-ID, or the parameter lastEventId, must be the id of an event of this stream.",
    )
}

fn stream(body: EventStream, end: Option<Instant>) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    response
        .content_type("text/event-stream")
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
            NoStream::TooMany => {
                Self::new(Kind::Overloaded, "Too many event streams are open, or too many of this caller.")
            }
            NoStream::ShuttingDown => Self::new(Kind::Unavailable, "This server is shutting down."),
            NoStream::Unavailable => Self::new(Kind::Unavailable, "The database does not answer."),
            NoStream::NotFound => not_found(),
            NoStream::Malformed => bad_event_id(),
            NoStream::Store(error) => error.into(),
            NoStream::Gone => Self::new(
                Kind::EventsGone,
                "The events after that one are not kept any more: read the orders anew, and watch from now on without Last-Event-ID.",
            ),
        }
    }
}
