//! W3C Trace Context on its way: span -> outbox row -> record headers -> span.

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::event::{TRACEPARENT, TRACESTATE};

/// The two headers of W3C Trace Context. Both are missing when nothing is traced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceHeaders {
    /// `traceparent`.
    pub traceparent: Option<String>,
    /// `tracestate`.
    pub tracestate: Option<String>,
}

impl TraceHeaders {
    /// The context of `span`.
    #[must_use]
    pub fn of_span(span: &tracing::Span) -> Self {
        let mut headers = Self::default();
        TraceContextPropagator::new().inject_context(&span.context(), &mut headers);
        headers
    }

    /// Makes this context the parent of `span`. A context that cannot be read leaves the span a root.
    pub fn set_parent_of(&self, span: &tracing::Span) {
        if self.traceparent.is_some() {
            let context = TraceContextPropagator::new().extract(self);
            // It fails only when no OpenTelemetry layer is installed, and then nobody looks at parents.
            let _ = span.set_parent(context);
        }
    }

    /// As the outbox's `headers` object.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let mut object = serde_json::Map::new();
        for (name, value) in [(TRACEPARENT, &self.traceparent), (TRACESTATE, &self.tracestate)] {
            if let Some(value) = value {
                object.insert(name.to_owned(), value.as_str().into());
            }
        }
        serde_json::Value::Object(object)
    }
}

impl Injector for TraceHeaders {
    fn set(&mut self, key: &str, value: String) {
        match key {
            TRACEPARENT => self.traceparent = Some(value),
            TRACESTATE if !value.is_empty() => self.tracestate = Some(value),
            _ => {}
        }
    }
}

impl Extractor for TraceHeaders {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            TRACEPARENT => self.traceparent.as_deref(),
            TRACESTATE => self.tracestate.as_deref(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT, TRACESTATE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_there_goes_into_the_row() {
        assert_eq!(TraceHeaders::default().to_json(), serde_json::json!({}));
        let headers = TraceHeaders { traceparent: Some("00-1-2-01".into()), tracestate: None };
        assert_eq!(headers.to_json(), serde_json::json!({"traceparent": "00-1-2-01"}));
    }
}
