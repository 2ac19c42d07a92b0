//! What Jaeger knows of a trace, by its query API.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use reqwest::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::http;

/// Jaeger's query API at a base URL.
#[derive(Debug, Clone)]
pub struct Query {
    client: reqwest::Client,
    url: String,
}

/// A span, as it is printed with `--json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Span {
    /// Its id, 16 hexadecimal digits.
    pub id: String,
    /// The id of its parent, which may be unknown to Jaeger.
    pub parent_id: Option<String>,
    /// `service.name`.
    pub service: String,
    /// What was done.
    pub name: String,
    /// When it began, in microseconds since 1970.
    pub start_us: u64,
    /// How long it took, in microseconds.
    pub duration_us: u64,
    /// Its attributes.
    pub attributes: HashMap<String, Value>,
    /// Trace and span ids of its links.
    pub links: Vec<(String, String)>,
    /// The attributes of its service.
    #[serde(skip)]
    pub resource: HashMap<String, Value>,
}

#[derive(Deserialize)]
struct Answer {
    data: Vec<Trace>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Trace {
    spans: Vec<RawSpan>,
    processes: HashMap<String, Process>,
}

#[derive(Deserialize)]
struct RawSpan {
    #[serde(rename = "spanID")]
    span_id: String,
    #[serde(rename = "traceID")]
    trace_id: String,
    #[serde(rename = "operationName")]
    name: String,
    #[serde(default)]
    references: Vec<Reference>,
    #[serde(rename = "startTime")]
    start_us: u64,
    #[serde(rename = "duration")]
    duration_us: u64,
    #[serde(default)]
    tags: Vec<Tag>,
    #[serde(rename = "processID")]
    process_id: String,
}

#[derive(Deserialize)]
struct Reference {
    #[serde(rename = "refType")]
    kind: String,
    #[serde(rename = "traceID")]
    trace_id: String,
    #[serde(rename = "spanID")]
    span_id: String,
}

#[derive(Deserialize)]
struct Tag {
    key: String,
    value: Value,
}

#[derive(Deserialize)]
struct Process {
    #[serde(rename = "serviceName")]
    service: String,
    #[serde(default)]
    tags: Vec<Tag>,
}

impl Query {
    /// The Jaeger at this URL.
    ///
    /// # Errors
    /// When there can be no HTTP client.
    pub fn new(url: &str) -> Result<Self> {
        Ok(Self { client: http::client()?, url: url.trim_end_matches('/').to_owned() })
    }

    /// The spans of a trace, by the time they began; none if Jaeger knows of no such trace.
    ///
    /// # Errors
    /// When nobody answers there, or it is no Jaeger.
    pub async fn trace(&self, trace_id: &str) -> Result<Vec<Span>> {
        let url = format!("{}/api/traces/{trace_id}", self.url);
        let answer = self.client.get(&url).timeout(Duration::from_secs(10)).send().await;
        let answer = answer.with_context(|| format!("no Jaeger answers at {}", self.url))?;
        match answer.status() {
            StatusCode::NOT_FOUND => return Ok(Vec::new()),
            StatusCode::OK => {}
            status => bail!("{url} says {status}"),
        }
        let answer: Answer =
            serde_json::from_slice(&answer.bytes().await?).with_context(|| format!("{url} is no trace"))?;
        let mut spans: Vec<Span> = answer.data.into_iter().flat_map(spans).collect();
        spans.sort_by_key(|span| span.start_us);
        Ok(spans)
    }
}

fn spans(trace: Trace) -> Vec<Span> {
    let Trace { spans, processes } = trace;
    let span = |raw: RawSpan| {
        let process = processes.get(&raw.process_id);
        // A parent is in the same trace; of a span with both, the links come as another kind.
        let (parents, links): (Vec<_>, Vec<_>) = raw
            .references
            .into_iter()
            .partition(|reference| reference.kind == "CHILD_OF" && reference.trace_id == raw.trace_id);
        Span {
            id: raw.span_id,
            parent_id: parents.into_iter().next().map(|parent| parent.span_id),
            service: process.map_or_else(String::new, |process| process.service.clone()),
            name: raw.name,
            start_us: raw.start_us,
            duration_us: raw.duration_us,
            attributes: attributes(raw.tags.iter()),
            links: links.into_iter().map(|link| (link.trace_id, link.span_id)).collect(),
            resource: attributes(process.into_iter().flat_map(|process| &process.tags)),
        }
    };
    spans.into_iter().map(span).collect()
}

fn attributes<'a>(tags: impl Iterator<Item = &'a Tag>) -> HashMap<String, Value> {
    tags.map(|tag| (tag.key.clone(), tag.value.clone())).collect()
}

impl Span {
    /// An attribute that is a number, or a text.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<&Value> {
        self.attributes.get(name)
    }
}
