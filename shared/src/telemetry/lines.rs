//! Lines of the log that tell which trace they belong to.

use std::fmt;

use opentelemetry::Context;
use opentelemetry::trace::TraceContextExt as _;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

/// Adds the ids of the span that is current to a line, if there is one.
pub(super) struct WithTrace<F> {
    format: F,
    form: Form,
}

/// How a line is written.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Json,
}

impl<F> WithTrace<F> {
    /// `format` writes fields as `name=value`.
    pub(super) const fn text(format: F) -> Self {
        Self { format, form: Form::Text }
    }

    /// `format` writes an object a line.
    pub(super) const fn json(format: F) -> Self {
        Self { format, form: Form::Json }
    }
}

impl<S, N, F> FormatEvent<S, N> for WithTrace<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let current = Context::current();
        let span = current.span();
        let span = span.span_context();
        if !span.is_valid() {
            return self.format.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        writer.write_str(&self.form.add(line.trim_end_matches('\n'), &span.trace_id(), &span.span_id()))
    }
}

impl Form {
    fn add(self, line: &str, trace_id: &dyn fmt::Display, span_id: &dyn fmt::Display) -> String {
        match self {
            Self::Text => format!("{line} trace_id={trace_id} span_id={span_id}\n"),
            Self::Json => {
                let open = line.strip_suffix('}').unwrap_or(line);
                format!("{open},\"trace_id\":\"{trace_id}\",\"span_id\":\"{span_id}\"}}\n")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_added_in_the_form_of_the_line() {
        assert_eq!(
            Form::Text.add("INFO done rows=3", &"0af7", &"b7ad"),
            "INFO done rows=3 trace_id=0af7 span_id=b7ad\n"
        );
        let line = Form::Json.add(r#"{"level":"INFO","rows":3}"#, &"0af7", &"b7ad");
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(line, serde_json::json!({"level": "INFO", "rows": 3, "trace_id": "0af7", "span_id": "b7ad"}));
    }
}
