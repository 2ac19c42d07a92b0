//! Lists of orders over HTTP.

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};

use crate::caller::Caller;
use crate::description::schemas::{ListQuery, OrderPage};
use crate::edge::context::public_path;
use crate::listing::Filter;
use crate::problem::{Kind, Problem};
use crate::rate::Payer;
use crate::server::State;

/// List orders
///
/// A page of those that all of the parameters take, the newest first. Pages are stable while orders are added. A page may hold fewer orders than
/// asked for, or none, though there are more: the list has ended when `next` is null.
#[utoipa::path(
    get, path = "/orders", operation_id = "listOrders", tag = "orders", params(ListQuery),
    responses((status = 200, description = "A page of orders.", body = OrderPage, headers(("Link")))),
    extensions(("x-problems" = json!([Kind::InvalidQuery])))
)]
pub async fn list(
    request: HttpRequest,
    query: Result<web::Query<Vec<(String, String)>>, actix_web::Error>,
    caller: Caller,
    state: web::Data<State>,
) -> Result<HttpResponse, Problem> {
    let query = query.map_err(|_| Problem::new(Kind::InvalidQuery, "The query string cannot be read."))?;
    let mut filter = Filter::from_query(&query).map_err(Problem::invalid_query)?;
    filter.user_id = caller.shown(filter.user_id);
    let share = state.lists.take(Payer::of(&request, &caller));
    let _share = share
        .ok_or_else(|| Problem::new(Kind::Overloaded, "Too many lists are being read, or too many by this caller."))?;
    let page = state.orders.list(&filter).await?;

    let mut body = Vec::with_capacity(64 + 256 * page.documents.len());
    body.extend_from_slice(b"{\"orders\":[");
    for (place, document) in page.documents.iter().enumerate() {
        if place > 0 {
            body.push(b',');
        }
        document.write(&mut body)?;
    }
    let mut response = HttpResponse::Ok();
    match page.next {
        None => body.extend_from_slice(b"],\"next\":null}"),
        Some(cursor) => {
            body.extend_from_slice(format!("],\"next\":\"{cursor}\"}}").as_bytes());
            let next = public_path(format!("/orders?{}", filter.next(cursor)));
            response.insert_header((header::LINK, format!("<{next}>; rel=\"next\"")));
        }
    }
    Ok(response.content_type(header::ContentType::json()).body(body))
}
