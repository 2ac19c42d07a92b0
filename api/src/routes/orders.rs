//! Orders over HTTP: extract, call, respond.

use actix_web::error::PayloadError;
use actix_web::http::header;
use actix_web::web::{self, Bytes};
use actix_web::{Error, HttpRequest, HttpResponse};

use crate::caller::Caller;
use crate::description::schemas::{NewOrder as NewOrderBody, Order};
use crate::domain::{NewOrder, OrderId};
use crate::edge::context::public_path;
use crate::edge::was_too_slow;
use crate::idempotency::{self, IdempotencyKey};
use crate::observe::event_headers;
use crate::problem::{Kind, Problem};
use crate::routes::{BODY_BYTES_MAX, conditions, prefer};
use crate::server::State;

/// Order
///
/// Answered once the order and its event are committed. Under an `Idempotency-Key` that the caller has used for the same order before, the same answer comes again.
/// With `Prefer: wait`, answered once the order is Pending no more, or as it is when that time is up.
#[utoipa::path(
    post, path = "/orders", operation_id = "createOrder", tag = "orders",
    params(
        ("Idempotency-Key" = Option<String>, Header, pattern = r#"^([!#-~]([ -~]{0,253}[!-~])?|"([ !#-\[\]-~]|\\["\\]){1,255}")$"#,
            description = "Makes repeats safe: any text of the client's that is new for each order, bare or in quotes."),
        ("Prefer" = Option<String>, Header, example = "wait=5",
            description = "`wait=5`: answer when the order is Pending no more, or after five seconds. The server may grant less."),
    ),
    request_body(content = NewOrderBody, examples(
        ("Three pieces" = (value = json!({"user_id": 7, "product_id": 42, "quantity": 3}))),
        ("The most of it" = (value = json!({"user_id": 9_223_372_036_854_775_807_i64, "product_id": 1, "quantity": 10_000}))),
    )),
    responses((
        status = 201, description = "The order is accepted.", body = Order,
        headers(("Location"), ("ETag"), ("Idempotency-Replayed"), ("Preference-Applied")),
        links(
            ("Read it" = (operation_id = "readOrder", parameters(("id" = "$response.body#/ID")))),
            ("See its life" = (operation_id = "readTimeline", parameters(("id" = "$response.body#/ID")))),
            ("Cancel it" = (operation_id = "cancelOrder", parameters(("id" = "$response.body#/ID")))),
            ("Delete it" = (operation_id = "deleteOrder", parameters(("id" = "$response.body#/ID")))),
        )
    )),
    extensions(("x-problems" = json!([
        Kind::MalformedBody, Kind::InvalidIdempotencyKey, Kind::IdempotencyInProgress, Kind::BodyTooLarge,
        Kind::UnsupportedMediaType, Kind::InvalidOrder, Kind::IdempotencyKeyReused, Kind::Overloaded,
    ])))
)]
pub async fn create(
    request: HttpRequest,
    caller: Caller,
    body: web::Payload,
    state: web::Data<State>,
) -> Result<HttpResponse, Problem> {
    // Before anything is read: under overload, refusing must cost little.
    state.batcher.check()?;
    let body = json_body(&request, body, BODY_BYTES_MAX).await?;
    let order = NewOrder::from_json(&body)?;
    caller.may_order(&order)?;
    let key = IdempotencyKey::of(request.headers(), &caller, &order)?;
    let written = state.batcher.submit(order, event_headers(request.headers()), key).await?;
    let mut response = HttpResponse::Created();
    response
        .insert_header((header::LOCATION, public_path(format!("/orders/{}", written.id)).into_owned()))
        .content_type(header::ContentType::json());
    if written.replayed {
        // The first answer, whatever has become of the order since: waiting would make it another one.
        response.insert_header((idempotency::REPLAYED, "true"));
    } else if let Some(wait) = prefer::wait(request.headers(), state.feed.wait_max_secs()) {
        response.insert_header((prefer::PREFERENCE_APPLIED, wait.applied));
        if let Some(settled) = state.feed.settled(written.id, wait.patience).await {
            return Ok(response
                .insert_header((header::ETAG, conditions::etag(settled.version)))
                .body(settled.document.represent()?));
        }
    }
    Ok(response.insert_header((header::ETAG, conditions::etag(1))).body(written.document.represent()?))
}

/// Read an order
///
/// An id that no order can have is answered like one that none has.
#[utoipa::path(
    get, path = "/orders/{id}", operation_id = "readOrder", tag = "orders",
    params(
        ("id" = i64, Path, minimum = 1, example = 1, description = "The order."),
        ("If-None-Match" = Option<String>, Header, example = json!("\"7\""), description = "ETags of versions that need not be sent."),
    ),
    responses(
        (status = 200, description = "The order as it is.", body = Order, headers(("ETag"))),
        (status = 304, description = "The order is at a version that the caller has.", headers(("ETag"))),
    ),
    extensions(("x-problems" = json!([Kind::OrderNotFound])))
)]
pub async fn read(
    request: HttpRequest,
    id: web::Path<String>,
    caller: Caller,
    state: web::Data<State>,
) -> Result<HttpResponse, Problem> {
    let id = OrderId::from_path(&id).ok_or_else(not_found)?;
    let order = state.orders.order(id, caller.user_id()).await?.ok_or_else(not_found)?;
    let etag = conditions::etag(order.version);
    if conditions::has_already(request.headers(), order.version) {
        return Ok(HttpResponse::NotModified().insert_header((header::ETAG, etag)).finish());
    }
    Ok(HttpResponse::Ok()
        .insert_header((header::ETAG, etag))
        .content_type(header::ContentType::json())
        .body(order.document.represent()?))
}

/// There is no such order, or none any more.
pub fn not_found() -> Problem {
    Problem::new(Kind::OrderNotFound, "No order has that id.")
}

/// The body of a request, which must say that it is JSON and have `bytes_max` bytes at most. One that will be refused is not read, and so a
/// client that waits for `100 Continue` does not send it.
pub async fn json_body(request: &HttpRequest, body: web::Payload, bytes_max: usize) -> Result<Bytes, Problem> {
    require_json(request)?;
    let too_large = || Problem::new(Kind::BodyTooLarge, format!("The body may have {bytes_max} bytes at most."));
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > bytes_max as u64) {
        return Err(too_large());
    }
    let read = body.to_bytes_limited(bytes_max).await.map_err(|_| too_large())?;
    read.map_err(|error| unreadable(&error))
}

/// The body is what it says it is. Parameters of the type are passed over: JSON is UTF-8 (RFC 8259), and takes none.
fn require_json(request: &HttpRequest) -> Result<(), Problem> {
    let text = |name| request.headers().get(name).map(|value| value.to_str().unwrap_or_default());
    let media_type = text(header::CONTENT_TYPE).and_then(|value| value.split(';').next()).unwrap_or_default();
    if !media_type.trim().eq_ignore_ascii_case("application/json") {
        return Err(Problem::new(Kind::UnsupportedMediaType, "The header Content-Type must be application/json."));
    }
    if text(header::CONTENT_ENCODING).is_some_and(|value| !value.trim().eq_ignore_ascii_case("identity")) {
        return Err(Problem::new(Kind::UnsupportedMediaType, "The body must be sent without a Content-Encoding."));
    }
    Ok(())
}

/// Why a body could not be read.
fn unreadable(error: &Error) -> Problem {
    match error.as_error::<PayloadError>() {
        Some(error) if was_too_slow(error) => {
            Problem::new(Kind::RequestTimeout, "The body did not arrive within the time that it may take.")
        }
        _ => Problem::new(Kind::MalformedBody, "The body ended early or could not be read."),
    }
}
