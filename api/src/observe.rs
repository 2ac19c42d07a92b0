//! What is noted of each request: its duration, and a span with the caller's as its parent.

use std::time::Instant;

use actix_web::body::BoxBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::HeaderMap;
use actix_web::middleware::Next;
use actix_web::{Error, web};
use shared::event::{TRACEPARENT, TRACESTATE};
use shared::propagation::TraceHeaders;
use tracing::{Instrument as _, Span, field};

use crate::edge::{limits, request_id};
use crate::server::State;

/// Longer ones are not passed on. W3C Trace Context, 3.3.1.5, asks for at least 512 characters.
const TRACESTATE_LENGTH_MAX: usize = 512;

/// Serves `request` to `route`, within its limits and if its credentials are good for it, and takes note of it.
///
/// # Errors
/// Those of the service behind it.
pub async fn observe(
    route: &'static str,
    request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let start = Instant::now();
    let Some(state) = request.app_data::<web::Data<State>>().cloned() else { return next.call(request).await };
    // A span costs several allocations: none is made for nobody.
    let response = if state.traced {
        let span = span(route, &request);
        let response = limits::serve((route, &state), request, next).instrument(span.clone()).await;
        let status = status(&response);
        span.record("http.response.status_code", status);
        if status >= 500 {
            span.record("otel.status_code", "ERROR");
        }
        response
    } else {
        limits::serve((route, &state), request, next).await
    };
    state.metrics.request(route, status(&response), start);
    response
}

fn status(response: &Result<ServiceResponse<BoxBody>, Error>) -> u16 {
    match response {
        Ok(response) => response.status().as_u16(),
        Err(error) => error.as_response_error().status_code().as_u16(),
    }
}

/// OpenTelemetry's semantic conventions for HTTP servers.
fn span(route: &'static str, request: &ServiceRequest) -> Span {
    let method = request.method().as_str();
    let span = tracing::info_span!(
        "HTTP request",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        otel.status_code = field::Empty,
        http.request.method = method,
        http.request.header.x_request_id = request_id::current(),
        http.route = route,
        http.response.status_code = field::Empty,
    );
    caller_context(request.headers()).set_parent_of(&span);
    span
}

/// The trace context that goes with an order's event, as a JSON object: the request's span, if spans are made; else the caller's
/// own, so that its trace reaches the consumers even when this service takes no part in it.
#[must_use]
pub fn event_headers(state: &State, request: &HeaderMap) -> Option<String> {
    let context = if state.traced { TraceHeaders::of_span(&Span::current()) } else { caller_context(request) };
    context.traceparent.is_some().then(|| context.to_json().to_string())
}

fn caller_context(headers: &HeaderMap) -> TraceHeaders {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(traceparent) = text(TRACEPARENT).filter(|value| is_traceparent(value)) else {
        return TraceHeaders::default();
    };
    let tracestate = text(TRACESTATE).filter(|value| !value.is_empty() && value.len() <= TRACESTATE_LENGTH_MAX);
    TraceHeaders { traceparent: Some(traceparent.to_owned()), tracestate: tracestate.map(str::to_owned) }
}

/// Version 00 of W3C Trace Context: `00-<32 hex>-<16 hex>-<2 hex>` in lower case, ids not all zero.
fn is_traceparent(value: &str) -> bool {
    let is_hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_id = |part: &str, length: usize| is_hex(part, length) && part.bytes().any(|byte| byte != b'0');
    let mut parts = value.split('-');
    let parts = [parts.next(), parts.next(), parts.next(), parts.next(), parts.next()];
    matches!(parts, [Some("00"), Some(trace), Some(span), Some(flags), None]
        if is_id(trace, 32) && is_id(span, 16) && is_hex(flags, 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_trace_context_is_passed_on() {
        let whole = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(is_traceparent(whole));
        for broken in [
            "",
            "00",
            &whole[1..],
            &whole.to_uppercase(),
            &whole.replace("00-0a", "ff-0a"),
            &format!("{whole}-x"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        ] {
            assert!(!is_traceparent(broken), "{broken}");
        }
    }
}
