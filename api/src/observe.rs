//! What is noted of each request: its duration, and a span with the caller's as its parent.

use std::pin::pin;
use std::time::{Instant, SystemTime};

use actix_web::body::BoxBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{Error, web};
use shared::event::{TRACEPARENT, TRACESTATE};
use shared::propagation::{TraceContext, TraceHeaders, is_sampled, traceparent_in};
use shared::spans::{self, Array, Begun, Finished, KeyValue, SpanKind, Spans, Value, within};

use crate::edge::{context, limits};
use crate::problem::{Kind, Problem};
use crate::server::State;

/// Longer ones are not passed on. W3C Trace Context, 3.3.1.5, asks for at least 512 characters.
const TRACESTATE_LENGTH_MAX: usize = 512;

/// Serves `request` to `route`, within its limits and if its credentials are good for it, and takes note of it.
///
/// # Errors
/// Those of the service behind it.
pub async fn observe(
    route: &'static str,
    mut request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let start = Instant::now();
    let Some(state) = request.app_data::<web::Data<State>>().cloned() else { return next.call(request).await };
    let traced = Traced::begin(&state.spans, &mut request);
    let mut serving = pin!(limits::serve((route, &state), request, next));
    // What is made with OpenTelemetry meanwhile is part of it.
    let response = match traced.as_ref().map(|traced| traced.begun.context).filter(|context| context.sampled) {
        Some(context) => within(context, serving.as_mut()).await,
        None => serving.await,
    };
    if let Some(traced) = traced {
        traced.end(&state, route, &response);
    }
    state.metrics.request(route, status(&response).as_u16(), start);
    if let Some(kind) = problem(&response) {
        state.metrics.problem(route, kind);
    }
    response
}

/// The type of problem that the answer is, if it is one.
fn problem(response: &Result<ServiceResponse<BoxBody>, Error>) -> Option<Kind> {
    match response {
        Ok(response) => response.response().extensions().get().copied(),
        Err(error) => error.as_error::<Problem>().map(Problem::kind),
    }
}

fn status(response: &Result<ServiceResponse<BoxBody>, Error>) -> StatusCode {
    match response {
        Ok(response) => response.status(),
        Err(error) => error.as_response_error().status_code(),
    }
}

/// A request's span.
struct Traced {
    begun: Begun,
    start: SystemTime,
    method: Method,
}

impl Traced {
    /// Begins it, if anybody collects spans, and puts its context in the place of the caller's: what the request causes continues from
    /// it. It has ids even if it is not recorded, so that its trace can be told of what goes wrong later.
    fn begin(spans: &Spans, request: &mut ServiceRequest) -> Option<Self> {
        if !spans.is_on() {
            return None;
        }
        let caller = caller_context(request.headers());
        let begun = spans.enter(caller.traceparent.as_deref().and_then(TraceContext::parse))?;
        let value = HeaderValue::try_from(begun.context.to_traceparent()).ok()?;
        request.headers_mut().insert(HeaderName::from_static(TRACEPARENT), value);
        if caller.tracestate.is_none() {
            request.headers_mut().remove(TRACESTATE);
        }
        Some(Self { begun, start: spans::now(), method: request.method().clone() })
    }

    /// Records it, if its trace is recorded, it failed, or it was slow.
    fn end(self, state: &State, route: &'static str, response: &Result<ServiceResponse<BoxBody>, Error>) {
        let Self { mut begun, start, method } = self;
        let (spans, scheme) = (&state.spans, if state.is_tls { "https" } else { "http" });
        let end = spans::now();
        let status = status(response);
        let failed = status.is_server_error();
        let is_slow = || spans.is_slow(end.duration_since(start).unwrap_or_default());
        if !begun.context.sampled && !((failed || is_slow()) && spans.force_begun(&mut begun)) {
            return;
        }
        // OpenTelemetry's semantic conventions for HTTP servers.
        let mut attributes = vec![
            KeyValue::new("http.request.method", method.as_str().to_owned()),
            KeyValue::new("http.route", route),
            KeyValue::new("http.response.status_code", i64::from(status.as_u16())),
        ];
        if let Ok(response) = response {
            attributes.push(KeyValue::new("url.path", response.request().path().to_owned()));
            attributes.push(KeyValue::new("url.scheme", scheme));
        }
        if let Some(id) = context::request_id() {
            let values = Array::String(vec![id.into()]);
            attributes.push(KeyValue::new("http.request.header.x-request-id", Value::Array(values)));
        }
        if failed {
            attributes.push(KeyValue::new("error.type", status.as_str().to_owned()));
        }
        let name = format!("{method} {route}").into();
        let error = failed.then(String::new);
        spans.record(
            &begun,
            Finished { name, kind: SpanKind::Server, start, end, attributes, links: Vec::new(), error },
        );
    }
}

/// The spans of one statement: one in the trace of each order that it writes.
#[derive(Debug)]
pub struct StatementSpans {
    start: SystemTime,
    parents: Vec<TraceContext>,
}

impl StatementSpans {
    /// Begins those of the orders whose traces are recorded, by the headers of their events.
    pub fn begin<'a>(spans: &Spans, headers: impl Iterator<Item = Option<&'a str>>) -> Option<Self> {
        if !spans.is_on() {
            return None;
        }
        let sampled = headers.filter_map(|headers| traceparent_in(headers?).filter(|context| is_sampled(context)));
        let parents: Vec<TraceContext> = sampled.filter_map(TraceContext::parse).collect();
        (!parents.is_empty()).then(|| Self { start: spans::now(), parents })
    }

    /// Records them: `rows` orders were written by the one statement, or `error` tells why not.
    pub fn end(self, spans: &Spans, rows: usize, error: Option<&str>) {
        let end = spans::now();
        for parent in self.parents {
            let Some(begun) = spans.child(parent) else { continue };
            let attributes = vec![
                KeyValue::new("db.system.name", "postgresql"),
                KeyValue::new("db.operation.name", "INSERT"),
                KeyValue::new("db.collection.name", "orders"),
                KeyValue::new("db.operation.batch.size", i64::try_from(rows).unwrap_or(i64::MAX)),
            ];
            let (name, error) = ("INSERT orders".into(), error.map(str::to_owned));
            let kind = SpanKind::Client;
            spans.record(&begun, Finished { name, kind, start: self.start, end, attributes, links: Vec::new(), error });
        }
    }
}

/// The trace context that goes with an order's event, as a JSON object: the request's span, if spans are made; else the caller's
/// own, so that its trace reaches the consumers even when this service takes no part in it.
#[must_use]
pub fn event_headers(request: &HeaderMap) -> Option<String> {
    let headers = caller_context(request);
    headers.traceparent.as_ref()?;
    // Two strings: it cannot fail.
    serde_json::to_string(&headers).ok()
}

/// What the caller's trace context says, in our own words: of what a caller sends, only the ids and the flag reach an event.
fn caller_context(headers: &HeaderMap) -> TraceHeaders {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(context) = text(TRACEPARENT).and_then(TraceContext::parse) else { return TraceHeaders::default() };
    let tracestate = text(TRACESTATE).filter(|value| !value.is_empty() && value.len() <= TRACESTATE_LENGTH_MAX);
    TraceHeaders { traceparent: Some(context.to_traceparent()), tracestate: tracestate.map(str::to_owned) }
}
