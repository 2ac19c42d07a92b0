//! The spans of a trace as a tree of lines, with the times that were spent waiting.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use serde_json::Value;

use crate::jaeger::Span;

/// Attributes in seconds that are told behind a span, and what they are called there.
const WAITS: [(&str, &str); 5] = [
    ("outbox.age", "in the outbox"),
    ("relay.queue_time", "in the relay"),
    ("kafka.queue_time", "in Kafka"),
    ("processor.queue_time", "in the processor's queue"),
    ("event.age", "old"),
];

/// One line a span: when it began after the first one, how long it took, whose it is, and what it says of waiting. `spans` are sorted by
/// when they began.
#[must_use]
pub fn tree(spans: &[Span]) -> String {
    let known: HashSet<&str> = spans.iter().map(|span| span.id.as_str()).collect();
    let mut children: HashMap<Option<&str>, Vec<&Span>> = HashMap::new();
    for span in spans {
        // A parent that is not there is the caller's, or was lost.
        let parent = span.parent_id.as_deref().filter(|parent| known.contains(parent));
        children.entry(parent).or_default().push(span);
    }
    let begin = spans.first().map_or(0, |span| span.start_us);
    let mut lines = Vec::new();
    let mut open: Vec<(&Span, usize)> = roots(&children).into_iter().rev().map(|root| (root, 0)).collect();
    while let Some((span, depth)) = open.pop() {
        lines.push((span, depth));
        let below = children.get(&Some(span.id.as_str())).into_iter().flatten();
        open.extend(below.rev().map(|child| (*child, depth + 1)));
    }
    let name = |span: &Span, depth: usize| format!("{}{}", "  ".repeat(depth), span.name);
    let service_width = spans.iter().map(|span| span.service.len()).max().unwrap_or(0);
    let name_width = lines.iter().map(|(span, depth)| name(span, *depth).chars().count()).max().unwrap_or(0);
    let mut text = format!("{:>12} {:>12}\n", "after", "took");
    for (span, depth) in lines {
        let (after, took) = (millis(span.start_us.saturating_sub(begin)), millis(span.duration_us));
        let (service, name, notes) = (&span.service, name(span, depth), notes(span));
        // Writing into a string cannot fail.
        let _ = writeln!(
            text,
            "{}",
            format!("{after:>12} {took:>12}  {service:<service_width$}  {name:<name_width$}  {notes}").trim_end()
        );
    }
    text
}

fn roots<'a>(children: &HashMap<Option<&str>, Vec<&'a Span>>) -> Vec<&'a Span> {
    children.get(&None).cloned().unwrap_or_default()
}

fn notes(span: &Span) -> String {
    let mut notes: Vec<String> = WAITS
        .iter()
        .filter_map(|(attribute, place)| {
            let seconds = span.attribute(attribute).and_then(Value::as_f64)?;
            Some(format!("{:.1} ms {place}", seconds * 1e3))
        })
        .collect();
    if span.attribute("error").is_some_and(|error| error == true) {
        let why = ["otel.status_description", "error.type"].iter().find_map(|name| span.attribute(name));
        notes.push(format!("ERROR {}", why.and_then(Value::as_str).unwrap_or_default()).trim_end().to_owned());
    }
    notes.join(", ")
}

fn millis(micros: u64) -> String {
    let micros = u32::try_from(micros).unwrap_or(u32::MAX);
    format!("{:.1} ms", f64::from(micros) / 1e3)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn span(id: &str, parent: Option<&str>, service: &str, name: &str, times: (u64, u64), attributes: &Value) -> Span {
        Span {
            id: id.to_owned(),
            parent_id: parent.map(str::to_owned),
            service: service.to_owned(),
            name: name.to_owned(),
            start_us: times.0,
            duration_us: times.1,
            attributes: attributes.as_object().expect("an object").clone().into_iter().collect(),
            links: Vec::new(),
            resource: HashMap::new(),
        }
    }

    #[test]
    fn spans_are_below_their_parents_with_the_times_they_waited() {
        let spans = [
            span("a", Some("caller"), "api", "POST /orders", (1_000, 3_500), &json!({})),
            span("b", Some("a"), "api", "INSERT orders", (1_200, 2_000), &json!({})),
            span("c", Some("a"), "relay", "publish orders", (5_000, 1_500), &json!({"outbox.age": 0.0038})),
            span("d", Some("c"), "processor", "process orders", (9_000, 9_000), &json!({"error": true})),
        ];
        let expected = "
       after         took
      0.0 ms       3.5 ms  api        POST /orders
      0.2 ms       2.0 ms  api          INSERT orders
      4.0 ms       1.5 ms  relay        publish orders    3.8 ms in the outbox
      8.0 ms       9.0 ms  processor      process orders  ERROR
";
        assert_eq!(tree(&spans), expected.trim_start_matches('\n'));
    }
}
