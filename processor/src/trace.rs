//! Spans after OpenTelemetry's semantic conventions for messaging: one for each event whose trace is recorded, with that of its handler
//! as a child, and one for the batch, of a trace of its own, since it has no single cause. Links lead from either to the other.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use shared::event::TRACEPARENT;
use shared::propagation::{TraceContext, TraceHeaders, TraceId};
use shared::spans::{self, Begun, Finished, KeyValue, SpanKind, Spans, seconds_between};

use crate::batch::Batch;
use crate::isolation::Left;
use crate::record::{Event, Partition, Record};

/// The spans of the events that are worked on in one transaction. Nothing is recorded before [`ProcessSpans::end`]: what is rolled back
/// has not happened.
#[derive(Debug)]
pub(crate) struct ProcessSpans {
    spans: Spans,
    group: String,
    /// Of one topic.
    partitions: Vec<Partition>,
    /// When the batch was begun, its first attempt included.
    start: SystemTime,
    batch: Option<Begun>,
    rows: usize,
    /// By the events' places in the batch.
    events: HashMap<usize, EventSpan>,
    /// Places of the events that have none.
    others: Vec<usize>,
}

/// The contexts for what the events cause, by their places.
pub(crate) type Contexts = HashMap<usize, TraceHeaders>;

#[derive(Debug)]
struct EventSpan {
    begun: Begun,
    /// The number of its partition.
    partition: Option<i32>,
    attributes: Vec<KeyValue>,
    event_type: String,
    /// The last call of its handler: begin, end, and how many events it was for.
    handled: Option<(SystemTime, SystemTime, usize)>,
    outcome: &'static str,
    error: Option<String>,
}

impl ProcessSpans {
    /// Begins the spans of those of the events whose traces are recorded, or that are late already. None if nobody collects spans.
    pub(crate) fn open(
        (spans, group): (&Spans, &str),
        (partitions, batch): (&[&Partition], &Batch<'_>),
        events: &[Event<'_>],
    ) -> Option<(Self, Contexts)> {
        if !spans.is_on() {
            return None;
        }
        let mut opened = Self {
            spans: spans.clone(),
            group: group.to_owned(),
            partitions: partitions.iter().copied().cloned().collect(),
            start: batch.begun_at(),
            batch: None,
            rows: batch.records().len(),
            events: HashMap::new(),
            others: Vec::new(),
        };
        let mut contexts = Contexts::new();
        for event in events {
            let traceparent = event.trace().traceparent.as_deref();
            let begun = spans.follow(traceparent).or_else(|| opened.force_if_slow(event));
            match (begun, batch.records().get(event.place)) {
                (Some(begun), Some(record)) => {
                    contexts.insert(event.place, event.trace().under(begun.context));
                    opened.begin(begun, (event.place, record), batch, Some(event));
                }
                _ => opened.others.push(event.place),
            }
        }
        Some((opened, contexts))
    }

    /// The context for whatever handlers do: that of the batch, if any of its events is recorded.
    pub(crate) fn context(&self) -> Option<TraceContext> {
        self.batch.map(|batch| batch.context)
    }

    /// The trace of the event at `place`, if it is recorded.
    pub(crate) fn trace_id(&self, place: usize) -> Option<TraceId> {
        self.events.get(&place).map(|span| span.begun.context.trace_id)
    }

    /// Notes that a handler was called for these events.
    pub(crate) fn handled(&mut self, set: &[Event<'_>], start: SystemTime) {
        let end = spans::now();
        for event in set {
            if let Some(span) = self.events.get_mut(&event.place) {
                span.handled = Some((start, end, set.len()));
            }
        }
    }

    /// Notes what came of the events. Those that failed have a span from now on, and so have those that are late by now.
    pub(crate) fn settle(&mut self, batch: &Batch<'_>, left: &Left) {
        for (place, failure) in &left.failed {
            if !self.events.contains_key(place)
                && let Some(record) = batch.records().get(*place)
                && let Some(begun) = self.spans.force(traceparent(record))
            {
                self.begin(begun, (*place, record), batch, batch.event_at(*place).as_ref());
            }
            if let Some(span) = self.events.get_mut(place) {
                span.outcome = "failed";
                span.error = Some(failure.reason.clone());
            }
        }
        for place in std::mem::take(&mut self.others) {
            if !self.events.contains_key(&place)
                && let (Some(event), Some(record)) = (batch.event_at(place), batch.records().get(place))
                && let Some(begun) = self.force_if_slow(&event)
            {
                self.begin(begun, (place, record), batch, Some(&event));
            }
        }
        for place in &left.behind {
            if let Some(span) = self.events.get_mut(place) {
                span.outcome = "waiting";
            }
        }
    }

    /// Records all of it, once the transaction has ended: it was committed, or `error` says why that is not known.
    pub(crate) fn end(self, error: Option<&str>) {
        let Some(batch) = self.batch else { return };
        let end = spans::now();
        let topic = self.partitions.first().map_or("", |partition| &*partition.topic);
        let common = Common { group: &self.group, topic };
        let mut links = Vec::with_capacity(self.events.len().min(spans::LINKS_MAX));
        for span in self.events.into_values() {
            links.push(span.begun.context);
            if let Some((start, end, events)) = span.handled {
                let attributes = vec![KeyValue::new("processor.set.size", i64::try_from(events).unwrap_or(i64::MAX))];
                let (name, links) = (format!("handle {}", span.event_type).into(), Vec::new());
                if let Some(child) = self.spans.child(span.begun.context) {
                    let kind = SpanKind::Internal;
                    let finished = Finished { name, kind, start, end, attributes, links, error: span.error.clone() };
                    self.spans.record(&child, finished);
                }
            }
            let mut attributes = span.attributes;
            attributes.push(KeyValue::new("processor.outcome", span.outcome));
            let finished = Finished {
                name: format!("process {topic}").into(),
                kind: SpanKind::Consumer,
                start: self.start,
                end,
                attributes: common.with(attributes, "process", span.partition),
                links: vec![batch.context],
                error: span.error.or_else(|| error.map(str::to_owned)),
            };
            self.spans.record(&span.begun, finished);
        }
        let only = match &*self.partitions {
            [only] => Some(only.number),
            _ => None,
        };
        let rows = i64::try_from(self.rows).unwrap_or(i64::MAX);
        let attributes = vec![KeyValue::new("messaging.batch.message_count", rows)];
        let finished = Finished {
            name: format!("process_batch {topic}").into(),
            kind: SpanKind::Consumer,
            start: self.start,
            end,
            attributes: common.with(attributes, "process_batch", only),
            links,
            error: error.map(str::to_owned),
        };
        self.spans.record(&batch, finished);
    }

    fn force_if_slow(&self, event: &Event<'_>) -> Option<Begun> {
        let age = spans::now().duration_since(event.envelope.occurred_at?.into()).ok()?;
        self.spans.is_slow(age).then(|| self.spans.force(event.trace().traceparent.as_deref())).flatten()
    }

    fn begin(&mut self, begun: Begun, (place, record): (usize, &Record), batch: &Batch<'_>, event: Option<&Event<'_>>) {
        self.batch = self.batch.or_else(|| self.spans.root());
        let mut attributes = vec![KeyValue::new("messaging.kafka.offset", record.offset)];
        if let Some(received_at) = record.received_at {
            attributes.push(KeyValue::new("processor.queue_time", seconds_between(received_at, self.start)));
            if let Some(millis) = record.time_ms.and_then(|millis| u64::try_from(millis).ok()) {
                let written = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
                attributes.push(KeyValue::new("kafka.queue_time", seconds_between(written, received_at)));
            }
        }
        if let Some(event) = event {
            attributes.push(KeyValue::new("messaging.message.id", event.id().to_string()));
            attributes.push(KeyValue::new("messaging.kafka.message.key", event.aggregate_id().to_owned()));
            attributes.push(KeyValue::new("cloudevents.event_type", event.event_type().to_owned()));
            if let Some(occurred_at) = event.envelope.occurred_at {
                attributes.push(KeyValue::new("event.age", seconds_between(occurred_at.into(), spans::now())));
            }
        }
        let event_type = event.map_or_else(String::new, |event| event.event_type().to_owned());
        let partition = self.partitions.get(batch.part_of(place)).map(|partition| partition.number);
        let span =
            EventSpan { begun, partition, attributes, event_type, handled: None, outcome: "applied", error: None };
        self.events.insert(place, span);
    }
}

/// The context that a record came with, also one that is no event otherwise.
fn traceparent(record: &Record) -> Option<&str> {
    let (_, value) = record.headers.iter().rev().find(|(name, _)| name == TRACEPARENT)?;
    str::from_utf8(value.as_deref()?).ok()
}

/// What all spans of a batch have.
struct Common<'a> {
    group: &'a str,
    topic: &'a str,
}

impl Common<'_> {
    /// `partition`: its number, if it is one.
    fn with(&self, mut attributes: Vec<KeyValue>, operation: &'static str, partition: Option<i32>) -> Vec<KeyValue> {
        attributes.push(KeyValue::new("messaging.system", "kafka"));
        attributes.push(KeyValue::new("messaging.operation.name", operation));
        attributes.push(KeyValue::new("messaging.operation.type", "process"));
        attributes.push(KeyValue::new("messaging.destination.name", self.topic.to_owned()));
        attributes
            .extend(partition.map(|number| KeyValue::new("messaging.destination.partition.id", number.to_string())));
        attributes.push(KeyValue::new("messaging.consumer.group.name", self.group.to_owned()));
        attributes
    }
}
