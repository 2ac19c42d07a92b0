//! Many orders in one request.

use actix_web::http::header;
use actix_web::web;
use actix_web::{HttpRequest, HttpResponse, ResponseError as _};
use serde_json::value::RawValue;

use super::orders::json_body;
use crate::batcher::Refusal;
use crate::caller::Caller;
use crate::description::schemas::{BatchResults, NewOrderBatch};
use crate::domain::{NewOrder, OrderError};
use crate::idempotency;
use crate::observe::event_headers;
use crate::problem::{Kind, Problem};
use crate::server::State;
use crate::store::Written;

/// Most orders of one request.
const ORDERS_MAX: usize = 1_000;

/// The longest body that is read, in bytes.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;

/// Order many things
///
/// Each order is accepted or refused by itself. Answered once all that are accepted are committed. No `Idempotency-Key` is taken.
#[utoipa::path(
    post, path = "/orders/batch", operation_id = "createOrders", tag = "orders",
    request_body(content = inline(NewOrderBatch), examples(
        ("Two orders" = (value = json!([
            {"user_id": 7, "product_id": 42, "quantity": 3}, {"user_id": 7, "product_id": 43, "quantity": 1},
        ]))),
        ("One order" = (value = json!([{"user_id": 8, "product_id": 42, "quantity": 10_000}]))),
    )),
    responses((status = 200, description = "What came of each order.", body = BatchResults)),
    extensions(("x-problems" = json!([
        Kind::MalformedBody, Kind::InvalidIdempotencyKey, Kind::BodyTooLarge, Kind::UnsupportedMediaType,
        Kind::InvalidBatch, Kind::Overloaded,
    ])))
)]
pub async fn create(
    request: HttpRequest,
    caller: Caller,
    body: web::Payload,
    state: web::Data<State>,
) -> Result<HttpResponse, Problem> {
    if request.headers().contains_key(idempotency::HEADER) {
        // Better than to pass it over: who sends it counts on it.
        let detail =
            "A batch takes no Idempotency-Key, since its orders are accepted one by one; send them to /orders.";
        return Err(Problem::new(Kind::InvalidIdempotencyKey, detail));
    }
    state.batcher.check()?;
    let body = json_body(&request, body, BODY_BYTES_MAX).await?;
    let items: Vec<&RawValue> = serde_json::from_slice(&body).map_err(|error| no_list(&error))?;
    if items.is_empty() || items.len() > ORDERS_MAX {
        let detail = format!("The list has {} orders; it must have 1 to {ORDERS_MAX}.", items.len());
        return Err(Problem::new(Kind::InvalidBatch, detail));
    }
    state.guard.count_orders(&request, items.len())?;
    let headers = event_headers(request.headers());
    let read = |item: &RawValue| {
        let order = NewOrder::from_json(item.get().as_bytes())?;
        caller.may_order(&order).map(|()| order)
    };
    let orders: Vec<Result<NewOrder, Problem>> = items.into_iter().map(read).collect();
    // All are handed in before any is waited for, so that they share statements.
    let valid = orders.iter().filter_map(|order| order.as_ref().ok().copied()).collect();
    let mut written = Vec::with_capacity(orders.len());
    for outcome in state.batcher.submit_all(valid, headers.as_deref()) {
        written.push(outcome.await);
    }
    let mut written = written.into_iter();
    let outcomes = orders.into_iter().map(|order| {
        // There is one answer for each valid order.
        order.and_then(|_| Ok(written.next().unwrap_or(Err(Refusal::InDoubt))?))
    });
    let outcomes: Vec<Result<Written, Problem>> = outcomes.collect();
    Ok(HttpResponse::Ok().content_type(header::ContentType::json()).body(results(&outcomes)?))
}

fn results(outcomes: &[Result<Written, Problem>]) -> Result<Vec<u8>, Problem> {
    let mut body = b"{\"results\":[".to_vec();
    for (place, outcome) in outcomes.iter().enumerate() {
        if place > 0 {
            body.push(b',');
        }
        match outcome {
            Ok(written) => {
                body.extend_from_slice(b"{\"status\":201,\"order\":");
                written.document.write(&mut body)?;
            }
            Err(problem) => {
                let status = problem.status_code().as_u16();
                body.extend_from_slice(format!("{{\"status\":{status},\"problem\":").as_bytes());
                body.extend_from_slice(&problem.to_json());
            }
        }
        body.push(b'}');
    }
    body.extend_from_slice(b"]}");
    Ok(body)
}

fn no_list(error: &serde_json::Error) -> Problem {
    if error.classify() == serde_json::error::Category::Data {
        return Problem::new(Kind::InvalidBatch, "The body must be a JSON array of orders.");
    }
    OrderError::NotJson { line: error.line(), column: error.column() }.into()
}
