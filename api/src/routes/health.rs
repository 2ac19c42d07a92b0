//! Whether the API lives and is ready, at its own port too: for load balancers that do not see the admin port.

use actix_web::{HttpResponse, web};
use shared::health;

use crate::server::State;

/// Whether the process lives
///
/// For whoever restarts it.
#[utoipa::path(
    get, path = "/livez", operation_id = "live", tag = "health",
    responses((status = 200, description = "It does.", body = String, content_type = "text/plain"))
)]
pub async fn live() -> HttpResponse {
    health::live()
}

/// Whether requests can be served
///
/// For whoever sends requests here or elsewhere.
#[utoipa::path(
    get, path = "/readyz", operation_id = "ready", tag = "health",
    responses(
        (status = 200, description = "They can.", body = String, content_type = "text/plain"),
        (status = 503, description = "Something is missing: a line for each thing that is.", body = String, content_type = "text/plain"),
    )
)]
pub async fn ready(state: web::Data<State>) -> HttpResponse {
    health::ready(&state.readiness)
}
