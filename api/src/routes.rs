//! The whole surface of the API.
//!
//! | path | methods |
//! |---|---|
//! | `/orders` | `GET`, `HEAD`, `POST` |
//! | `/orders/batch` | `POST` |
//! | `/orders/{id}` | `GET`, `HEAD`, `DELETE` |
//! | `/orders/{id}/cancel` | `POST` |
//! | `/livez`, `/readyz` | `GET` |

mod batch;
mod changes;
mod conditions;
mod listing;
mod orders;

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
