//! The limits of one request: how large its head may be, how many are served at once, and how long one may take.

use std::time::Duration;

use actix_web::body::BoxBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::HeaderMap;
use actix_web::middleware::Next;
use actix_web::{Error, ResponseError as _};
use tokio::time::timeout;

use crate::auth::guard;
use crate::config::Limits;
use crate::problem::{Kind, Problem};
use crate::routes::{self, prefer};
use crate::server::State;

/// The longest URI that is looked at, in bytes. Above 64 KiB the HTTP server refuses it by itself, with a plain 400.
const URI_BYTES_MAX: usize = 8 * 1024;

/// The most that all headers together may hold, in bytes. Over HTTP/1.1 the server refuses more than 96 headers, or 128 KiB of them, by
/// itself, with a plain 431.
const HEADER_BYTES_MAX: usize = 32 * 1024;

/// What they are set to.
#[derive(Debug, Clone, Copy)]
pub struct RequestLimits {
    timeout: Duration,
    /// Requests that are served at once.
    count_max: i64,
}

impl RequestLimits {
    /// As `limits` says.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            timeout: Duration::from_millis(limits.request_timeout_ms),
            count_max: i64::try_from(limits.requests_max()).unwrap_or(i64::MAX),
        }
    }
}

/// Serves `request` to `route` within its limits, if its credentials are good for it. When its time is up it is dropped where it stands, which leaves nothing half done: an order that
/// is handed in is written whether its request is there or not, and every other change is one statement.
///
/// # Errors
/// Those of the service behind it; and when the request took too long.
pub async fn serve(
    (route, state): (&'static str, &State),
    request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let limits = &state.requests;
    // Whether this service is well is said however much there is to do: it would be restarted for having customers.
    let is_crowded = state.metrics.active.get() > limits.count_max && !routes::is_health(route);
    if let Some(problem) = refusal(&request, is_crowded) {
        return Ok(request.into_response(problem.error_response()));
    }
    // What a client would rather wait for comes on top.
    let wait = prefer::wait(request.headers(), state.feed.wait_max_secs()).map_or(Duration::ZERO, |wait| wait.patience);
    match timeout(limits.timeout + wait, guard(route, state, request, next)).await {
        Ok(answered) => answered,
        Err(_) => Err(Problem::new(Kind::Unavailable, TOO_LATE).into()),
    }
}

const TOO_LATE: &str =
    "The request took too long and was given up; a change that it asked for may or may not have been made.";

fn refusal(request: &ServiceRequest, crowded: bool) -> Option<Problem> {
    let uri = request.uri();
    if uri.path().len() + uri.query().map_or(0, str::len) > URI_BYTES_MAX {
        return Some(Problem::new(Kind::UriTooLong, format!("The URI may have {URI_BYTES_MAX} bytes at most.")));
    }
    if header_bytes(request.headers()) > HEADER_BYTES_MAX {
        let detail = format!("All headers together may have {HEADER_BYTES_MAX} bytes at most.");
        return Some(Problem::new(Kind::HeadersTooLarge, detail));
    }
    crowded.then(|| Problem::new(Kind::Overloaded, "Too many requests are being served."))
}

fn header_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}
