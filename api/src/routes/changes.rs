//! Changes of one order over HTTP: cancelling and deleting.

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};

use super::conditions;
use super::orders::not_found;
use crate::caller::Caller;
use crate::description::schemas::Order;
use crate::domain::OrderId;
use crate::observe::event_headers;
use crate::problem::{Kind, Problem};
use crate::server::State;
use crate::store::changes::{Change, Changed, Target, Versioned};

/// Cancel an order
///
/// Only a Pending order can be cancelled. Answered once it is Cancelled and its event is committed.
#[utoipa::path(
    post, path = "/orders/{id}/cancel", operation_id = "cancelOrder", tag = "orders",
    params(
        ("id" = i64, Path, minimum = 1, example = 1, description = "The order."),
        ("If-Match" = Option<String>, Header, example = json!("\"1\""), description = "ETags of versions that may be cancelled, or `*` for any."),
    ),
    responses((status = 200, description = "The order, Cancelled.", body = Order, headers(("ETag")))),
    extensions(("x-problems" = json!([Kind::OrderNotFound, Kind::OrderNotPending, Kind::PreconditionFailed])))
)]
pub async fn cancel(
    request: HttpRequest,
    id: web::Path<String>,
    caller: Caller,
    state: web::Data<State>,
) -> Result<HttpResponse, Problem> {
    let order = change(Change::Cancel, &request, (&id, &caller), &state).await?;
    Ok(HttpResponse::Ok()
        .insert_header((header::ETAG, conditions::etag(order.version)))
        .content_type(header::ContentType::json())
        .body(order.document.represent()?))
}

/// Delete an order
///
/// Answered once the order is in no answer any more and its event is committed. It does not come back.
#[utoipa::path(
    delete, path = "/orders/{id}", operation_id = "deleteOrder", tag = "orders",
    params(
        ("id" = i64, Path, minimum = 1, example = 1, description = "The order."),
        ("If-Match" = Option<String>, Header, example = "*", description = "ETags of versions that may be deleted, or `*` for any."),
    ),
    responses((status = 204, description = "The order is deleted.")),
    extensions(("x-problems" = json!([Kind::OrderNotFound, Kind::PreconditionFailed])))
)]
pub async fn delete(
    request: HttpRequest,
    id: web::Path<String>,
    caller: Caller,
    state: web::Data<State>,
) -> Result<HttpResponse, Problem> {
    change(Change::Delete, &request, (&id, &caller), &state).await?;
    Ok(HttpResponse::NoContent().finish())
}

async fn change(
    change: Change,
    request: &HttpRequest,
    (id, caller): (&str, &Caller),
    state: &State,
) -> Result<Versioned, Problem> {
    let id = OrderId::from_path(id).ok_or_else(not_found)?;
    let expected = conditions::expected(request.headers());
    let target = Target { id, user_id: caller.user_id(), expected: expected.as_deref() };
    let headers = event_headers(request.headers());
    match state.orders.change(change, target, headers.as_deref()).await? {
        Changed::Done(order) => Ok(order),
        Changed::NotFound => Err(not_found()),
        Changed::OtherVersion(version) => Err(Problem::new(
            Kind::PreconditionFailed,
            format!("The order is at version {version}: read it again and decide anew."),
        )),
        Changed::OtherStatus(status) => Err(Problem::new(
            Kind::OrderNotPending,
            format!("The order is {status}; only a Pending one can be cancelled."),
        )),
    }
}
