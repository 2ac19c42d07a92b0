//! W3C Trace Context on its way: request -> outbox row -> record headers -> whatever comes of them.

use std::fmt::Write;

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceState};
use serde::Serialize;

use crate::event::{TRACEPARENT, TRACESTATE};

pub use opentelemetry::trace::TraceId;

/// Length of a `traceparent` of version 00.
const LENGTH: usize = 55;

/// What a `traceparent` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: TraceId,
    /// The span that this is the context of.
    pub span_id: SpanId,
    /// Whether that span is recorded.
    pub sampled: bool,
}

impl TraceContext {
    /// Reads a `traceparent`: `00-<32 hex>-<16 hex>-<2 hex>` in lower case, ids not all zero. Of a later version, what version 00 has.
    #[must_use]
    pub fn parse(traceparent: &str) -> Option<Self> {
        let head = traceparent.get(..LENGTH)?;
        let rest = traceparent.get(LENGTH..)?;
        let mut parts = head.split('-');
        let parts = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
        let [version, trace, span, flags] = parts;
        let lengths = parts.map(str::len) == [2, 32, 16, 2];
        let is_hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !lengths || !parts.into_iter().all(is_hex) {
            return None;
        }
        match version {
            "ff" => return None,
            "00" if !rest.is_empty() => return None,
            _ if !rest.is_empty() && !rest.starts_with('-') => return None,
            _ => {}
        }
        let trace_id = TraceId::from(u128::from_str_radix(trace, 16).ok()?);
        let span_id = SpanId::from(u64::from_str_radix(span, 16).ok()?);
        if trace_id == TraceId::INVALID || span_id == SpanId::INVALID {
            return None;
        }
        Some(Self { trace_id, span_id, sampled: is_sampled_flag(flags) })
    }

    /// As it travels.
    #[must_use]
    pub fn to_traceparent(self) -> String {
        let mut text = String::with_capacity(LENGTH);
        // Writing into a string cannot fail.
        let _ = write!(text, "00-{}-{}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled));
        text
    }

    /// As OpenTelemetry has it.
    #[must_use]
    pub fn to_span_context(self) -> SpanContext {
        let flags = if self.sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
        SpanContext::new(self.trace_id, self.span_id, flags, false, TraceState::NONE)
    }
}

/// Whether a `traceparent` says that its span is recorded, without reading the rest of it.
#[must_use]
pub fn is_sampled(traceparent: &str) -> bool {
    traceparent.get(LENGTH - 2..LENGTH).is_some_and(is_sampled_flag)
}

/// The last bit of the last digit.
fn is_sampled_flag(flags: &str) -> bool {
    flags.bytes().last().and_then(|digit| char::from(digit).to_digit(16)).is_some_and(|digit| digit & 1 == 1)
}

/// The `traceparent` in an outbox row's `headers`, the text of a JSON object. For every event that is published, hence without reading
/// the whole object.
#[must_use]
pub fn traceparent_in(headers: &str) -> Option<&str> {
    const NAME: &str = "\"traceparent\"";
    // It is the only one as a rule, and then nothing need be searched.
    let first = headers.strip_prefix('{').and_then(|headers| headers.strip_prefix(NAME));
    let rest = first.or_else(|| Some(headers.split_once(NAME)?.1))?;
    let value = rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    value.split_once('"').map(|(value, _)| value)
}

/// The two headers of W3C Trace Context. Both are missing when nothing is traced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TraceHeaders {
    /// `traceparent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// `tracestate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracestate: Option<String>,
}

impl TraceHeaders {
    /// The same with another span.
    #[must_use]
    pub fn under(&self, context: TraceContext) -> Self {
        Self { traceparent: Some(context.to_traceparent()), tracestate: self.tracestate.clone() }
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

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn only_what_is_there_goes_into_the_row() {
        assert_eq!(TraceHeaders::default().to_json(), serde_json::json!({}));
        let headers = TraceHeaders { traceparent: Some("00-1-2-01".into()), tracestate: None };
        assert_eq!(headers.to_json(), serde_json::json!({"traceparent": "00-1-2-01"}));
    }

    #[test]
    fn a_context_is_read_and_written_alike() {
        let context = TraceContext::parse(WHOLE).expect("a context");
        assert!(context.sampled);
        assert_eq!(context.to_traceparent(), WHOLE);
        let unsampled = TraceContext { sampled: false, ..context };
        assert_eq!(TraceContext::parse(&unsampled.to_traceparent()), Some(unsampled));
        // A bit that is not ours to know, and a version to come.
        assert_eq!(TraceContext::parse(&WHOLE.replace("-01", "-03")), Some(context));
        assert_eq!(TraceContext::parse(&format!("01{}-more", &WHOLE[2..])), Some(context));
    }

    #[test]
    fn what_is_no_whole_context_is_none() {
        for broken in [
            "",
            "00",
            &WHOLE[1..],
            &WHOLE[..54],
            &WHOLE.to_uppercase(),
            &WHOLE.replace("00-0a", "ff-0a"),
            &format!("{WHOLE}-x"),
            &format!("01{}x", &WHOLE[2..]),
            &WHOLE.replace("b7ad", "é7d"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c0-7ad6b7169203331-01",
        ] {
            assert_eq!(TraceContext::parse(broken), None, "{broken}");
        }
    }

    #[test]
    fn the_flag_is_found_in_a_row_without_reading_all_of_it() {
        for (headers, found) in [
            (format!("{{\"a\": 1, \"traceparent\": \"{WHOLE}\"}}"), Some(WHOLE)),
            (format!("{{\"traceparent\":\"{WHOLE}\",\"tracestate\":\"x=1\"}}"), Some(WHOLE)),
            ("{}".to_owned(), None),
            ("{\"is\": \"traceparent\"}".to_owned(), None),
            ("{\"traceparent\": 1}".to_owned(), None),
        ] {
            assert_eq!(traceparent_in(&headers), found, "{headers}");
        }
        assert!(is_sampled(WHOLE) && is_sampled(&WHOLE.replace("-01", "-0b")));
        for unsampled in [&WHOLE.replace("-01", "-00"), &WHOLE.replace("-01", "-02"), "", "00-1-2-01", &WHOLE[..54]] {
            assert!(!is_sampled(unsampled), "{unsampled}");
        }
    }
}
