//! Changes of one order over HTTP: cancelling and deleting.

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};

use super::conditions;
use super::orders::not_found;
use crate::caller::Caller;
use crate::domain::OrderId;
use crate::observe::event_headers;
use crate::problem::{Kind, Problem};
use crate::server::State;
use crate::store::changes::{Change, Changed, Target, Versioned};

/// `POST /orders/{id}/cancel`: 200 with the order, once it is Cancelled and its event is committed.
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
        .body(order.document))
}

/// `DELETE /orders/{id}`: 204, once the order is in no answer any more and its event is committed.
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
    let headers = event_headers(state, request.headers());
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
