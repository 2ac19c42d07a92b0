//! `/metrics` in the format that is asked for: OpenMetrics, or the older text format of Prometheus for those who know only that.

use std::fmt::Write as _;

use actix_web::HttpResponse;
use actix_web::http::header::{self, HeaderMap};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The answer.
pub fn answer(registry: &Registry, headers: &HeaderMap) -> HttpResponse {
    let mut metrics = String::new();
    if encode(&mut metrics, registry).is_err() {
        return HttpResponse::InternalServerError().finish();
    }
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if wants_text(accept) {
        HttpResponse::Ok().content_type(TEXT).body(to_text(&metrics))
    } else {
        HttpResponse::Ok().content_type(OPEN_METRICS).body(metrics)
    }
}

/// Whether the text format is asked for, and OpenMetrics not more than that.
fn wants_text(accept: &str) -> bool {
    let quality = |wanted: &str| {
        let ranges = accept.split(',').filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let is_wanted = parts.next()?.eq_ignore_ascii_case(wanted);
            let quality =
                parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |quality| quality.parse().ok());
            quality.filter(|_| is_wanted)
        });
        ranges.fold(0.0, f64::max)
    };
    quality("text/plain") > quality("application/openmetrics-text")
}

/// OpenMetrics as the text format 0.0.4: counters have their suffix in their name, there are no units, exemplars or information.
fn to_text(metrics: &str) -> String {
    let mut text = String::with_capacity(metrics.len());
    let mut help = None;
    // Writing to a String cannot fail.
    for line in metrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name), words) => help = Some((name, words.unwrap_or_default())),
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let (kind, suffix) = match kind {
                    "counter" => (kind, "_total"),
                    "info" => ("gauge", "_info"),
                    "unknown" => ("untyped", ""),
                    kind => (kind, ""),
                };
                if let Some((_, words)) = help.take().filter(|(helped, _)| *helped == name) {
                    let _ = writeln!(text, "# HELP {name}{suffix} {words}");
                }
                let _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
            }
            (Some("#"), ..) => {}
            _ => {
                // An exemplar is behind the value of the sample.
                let labels_end = labels_end(line);
                let exemplar_at = line[labels_end..].find(" # ").map(|at| labels_end + at);
                let sample = &line[..exemplar_at.unwrap_or(line.len())];
                text.push_str(sample);
                text.push('\n');
            }
        }
    }
    text
}

/// Where the labels of a sample end; a label's value may hold anything, with quotes and backslashes behind a backslash.
fn labels_end(line: &str) -> usize {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, byte) in line.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b'}' | b' ' if !is_quoted => return at,
            _ => {}
        }
    }
    line.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_one_that_is_asked_for() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, text) in [
            ("", false),
            ("*/*", false),
            (prometheus, false),
            ("text/plain", true),
            ("text/plain;version=0.0.4", true),
            ("text/plain;q=0.9, application/openmetrics-text;q=0.1", true),
            ("application/json", false),
        ] {
            assert_eq!(wants_text(accept), text, "{accept}");
        }
    }

    #[test]
    fn the_text_format_has_what_it_knows() {
        let metrics = "# HELP outrider_build The version that runs.\n# TYPE outrider_build info\noutrider_build_info{version=\"0.1.0\"} 1\n\
            # HELP relay_published_events Events.\n# TYPE relay_published_events counter\nrelay_published_events_total{topic=\"a} # \\\"{b\"} 7\n\
            # HELP api_seconds Time.\n# TYPE api_seconds histogram\n# UNIT api_seconds seconds\n\
            api_seconds_sum 1.5\napi_seconds_bucket{le=\"0.1\"} 1 # {trace_id=\"0af\"} 0.05\n# EOF\n";
        let expected = "# HELP outrider_build_info The version that runs.\n# TYPE outrider_build_info gauge\noutrider_build_info{version=\"0.1.0\"} 1\n\
            # HELP relay_published_events_total Events.\n# TYPE relay_published_events_total counter\nrelay_published_events_total{topic=\"a} # \\\"{b\"} 7\n\
            # HELP api_seconds Time.\n# TYPE api_seconds histogram\n\
            api_seconds_sum 1.5\napi_seconds_bucket{le=\"0.1\"} 1\n";
        assert_eq!(to_text(metrics), expected);
    }
}
