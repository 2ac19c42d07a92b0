//! The whole surface of the API.
//!
//! | path | methods |
//! |---|---|
//! | `/orders` | `GET`, `HEAD`, `POST` |
//! | `/orders/batch` | `POST` |
//! | `/orders/{id}` | `GET`, `HEAD`, `DELETE` |
//! | `/orders/{id}/cancel` | `POST` |
//! | `/orders/events`, `/orders/{id}/events` | `GET` |
//! | `/orders/{id}/timeline` | `GET`, `HEAD` |
//! | `/livez`, `/readyz` | `GET` |

mod batch;
mod changes;
mod conditions;
mod events;
mod listing;
mod orders;
pub(crate) mod prefer;
mod timeline;

use std::future::{Ready, ready};

use actix_web::body::BoxBody;
use actix_web::middleware::{Next, from_fn};
use actix_web::{HttpRequest, HttpResponse, ResponseError as _, web};
use shared::health::{self, Readiness};

use crate::observe::observe;
use crate::problem::{Kind, Problem};

/// The longest body that is read, in bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

const ORDERS: &str = "/orders";
const BATCH: &str = "/orders/batch";
const ORDER: &str = "/orders/{id}";
const CANCEL: &str = "/orders/{id}/cancel";
const EVENTS: &str = "/orders/events";
const ORDER_EVENTS: &str = "/orders/{id}/events";
const TIMELINE: &str = "/orders/{id}/timeline";
/// Label of requests to no route: their paths are anybody's to choose.
const NONE: &str = "none";

/// Adds all routes.
pub fn configure(config: &mut web::ServiceConfig, readiness: Readiness) {
    config
        .app_data(web::PayloadConfig::new(BODY_BYTES_MAX))
        .service(
            web::resource(ORDERS)
                .wrap(from_fn(|request, next: Next<BoxBody>| observe(ORDERS, request, next)))
                .route(web::post().to(orders::create))
                .route(web::get().to(listing::list))
                .route(web::head().to(listing::list))
                .default_service(web::to(|| only("GET, HEAD, POST"))),
        )
        // Before the orders themselves, whose path it looks like.
        .service(
            web::resource(BATCH)
                .app_data(web::PayloadConfig::new(batch::BODY_BYTES_MAX))
                .wrap(from_fn(|request, next: Next<BoxBody>| observe(BATCH, request, next)))
                .route(web::post().to(batch::create))
                .default_service(web::to(|| only("POST"))),
        )
        .configure(watching)
        .service(
            web::resource(ORDER)
                .wrap(from_fn(|request, next: Next<BoxBody>| observe(ORDER, request, next)))
                .route(web::get().to(orders::read))
                .route(web::head().to(orders::read))
                .route(web::delete().to(changes::delete))
                .default_service(web::to(|| only("GET, HEAD, DELETE"))),
        )
        .service(
            web::resource(CANCEL)
                .wrap(from_fn(|request, next: Next<BoxBody>| observe(CANCEL, request, next)))
                .route(web::post().to(changes::cancel))
                .default_service(web::to(|| only("POST"))),
        )
        .configure(|config| health::routes(config, readiness))
        .default_service(
            web::route()
                .to(|request: HttpRequest| elsewhere(&request))
                .wrap(from_fn(|request, next: Next<BoxBody>| observe(NONE, request, next))),
        );
}

/// What becomes of orders. `/orders/events` is named before the orders themselves, whose path it looks like.
fn watching(config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource(EVENTS)
                .wrap(from_fn(|request, next: Next<BoxBody>| observe(EVENTS, request, next)))
                .route(web::get().to(events::all))
                .default_service(web::to(|| only("GET"))),
        )
        .service(
            web::resource(ORDER_EVENTS)
                .wrap(from_fn(|request, next: Next<BoxBody>| observe(ORDER_EVENTS, request, next)))
                .route(web::get().to(events::of_order))
                .default_service(web::to(|| only("GET"))),
        )
        .service(
            web::resource(TIMELINE)
                .wrap(from_fn(|request, next: Next<BoxBody>| observe(TIMELINE, request, next)))
                .route(web::get().to(timeline::read))
                .route(web::head().to(timeline::read))
                .default_service(web::to(|| only("GET, HEAD"))),
        );
}

fn only(methods: &'static str) -> Ready<HttpResponse> {
    ready(Problem::method_not_allowed(methods).error_response())
}

fn elsewhere(request: &HttpRequest) -> Ready<HttpResponse> {
    // The health routes take GET only and let everything else pass.
    match request.path() {
        "/livez" | "/readyz" => only("GET"),
        _ => ready(Problem::new(Kind::NotFound, "No route of this API has that path.").error_response()),
    }
}
