//! The publish span of each event whose trace is recorded: from when it was read until Kafka has acknowledged it.
//!
//! Its context takes the place of the writer's in the record, so that consumers continue from it. Between the beginning, which the
//! sender knows of, and the outcome, which another thread hears, it waits in here; the ticket says whether there is one.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use shared::event::{CE_TYPE, ID, TRACEPARENT};
use shared::propagation::{TraceId, traceparent_in};
use shared::spans::{self, Begun, Finished, KeyValue, SpanKind, Spans, seconds_between};

use crate::batch::Event;
use crate::lanes::Ticket;

/// Where and when an event was read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin {
    /// `outbox.id`.
    pub id: i64,
    /// `outbox.lane`; none for a parked event, which is read from elsewhere.
    pub lane: Option<i16>,
    /// When.
    pub read_at: SystemTime,
}

/// A span that is begun.
#[derive(Debug)]
pub(crate) struct PublishSpan {
    begun: Begun,
    start: SystemTime,
    attributes: Vec<KeyValue>,
}

/// Those that wait for an outcome.
#[derive(Debug, Default)]
pub(crate) struct PublishSpans {
    spans: Spans,
    waiting: Mutex<HashMap<Ticket, PublishSpan>>,
}

impl PublishSpan {
    /// For the record's header.
    pub(super) fn traceparent(&self) -> String {
        self.begun.context.to_traceparent()
    }

    /// The trace that it is part of.
    pub(crate) const fn trace_id(&self) -> TraceId {
        self.begun.context.trace_id
    }
}

impl PublishSpans {
    pub(super) fn new(spans: Spans) -> Self {
        Self { spans, waiting: Mutex::default() }
    }

    /// Begins the span of an event, if its trace is recorded or it is late already. For every other one this is a look at a byte.
    pub(crate) fn begin(&self, event: &Event<'_>, origin: Origin) -> Option<PublishSpan> {
        if !self.spans.is_on() {
            return None;
        }
        let traceparent = traceparent_in(event.headers);
        let begun = self.spans.follow(traceparent).or_else(|| {
            let is_slow = self.spans.is_slow(age(event, origin));
            is_slow.then(|| self.spans.force(traceparent)).flatten()
        })?;
        Some(started(begun, event, origin))
    }

    /// Keeps a span until the outcome of its record is heard.
    pub(super) fn hold(&self, ticket: Ticket, mut span: PublishSpan) {
        span.attributes.push(KeyValue::new("relay.queue_time", seconds_between(span.start, spans::now())));
        self.lock().insert(ticket, span);
    }

    /// The span of a record that the producer has not taken after all.
    pub(super) fn take_back(&self, ticket: Ticket) -> Option<PublishSpan> {
        self.lock().remove(&ticket)
    }

    /// Kafka has the record. Returns the id of its trace.
    pub(super) fn acknowledged(&self, ticket: Ticket, message: &BorrowedMessage<'_>) -> Option<TraceId> {
        let mut span = self.take_back(ticket)?;
        let trace_id = span.trace_id();
        span.attributes.push(KeyValue::new("messaging.destination.partition.id", message.partition().to_string()));
        span.attributes.push(KeyValue::new("messaging.kafka.offset", message.offset()));
        self.end(span, message.topic(), None);
        Some(trace_id)
    }

    /// Kafka, or the producer by itself, has given up on the record.
    pub(super) fn failed(&self, ticket: Ticket, topic: &str, error: &KafkaError) {
        if let Some(span) = self.take_back(ticket) {
            self.end(span, topic, Some(error.to_string()));
        }
    }

    /// The same of a record without a span that is the first of its session to fail: one is recorded nevertheless.
    pub(super) fn failed_first(&self, message: &BorrowedMessage<'_>, error: &KafkaError) {
        let header = |name| {
            let header = message.headers()?.iter().find(|header| header.key == name)?;
            str::from_utf8(header.value?).ok()
        };
        let Some(begun) = self.spans.force(header(TRACEPARENT)) else { return };
        let mut attributes = Vec::new();
        attributes.extend(header(ID).map(|id| KeyValue::new("messaging.message.id", id.to_owned())));
        attributes
            .extend(header(CE_TYPE).map(|event_type| KeyValue::new("cloudevents.event_type", event_type.to_owned())));
        let sent = message.timestamp().to_millis().and_then(|millis| u64::try_from(millis).ok());
        let start = sent.map_or_else(spans::now, |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
        self.end(PublishSpan { begun, start, attributes }, message.topic(), Some(error.to_string()));
    }

    /// Kafka takes an event never that has no span yet: one is recorded nevertheless.
    pub(crate) fn force(&self, event: &Event<'_>, origin: Origin) -> Option<PublishSpan> {
        Some(started(self.spans.force(traceparent_in(event.headers))?, event, origin))
    }

    /// Kafka takes the event never, if it has a topic at all.
    pub(crate) fn refused(&self, span: PublishSpan, topic: &str, reason: &str) {
        self.end(span, topic, Some(reason.to_owned()));
    }

    /// Nothing more is heard of what waits.
    pub(super) fn close(&self) {
        for (_, span) in self.lock().drain() {
            self.end(span, "", Some("not acknowledged when the session ended".to_owned()));
        }
    }

    fn end(&self, span: PublishSpan, topic: &str, error: Option<String>) {
        let PublishSpan { begun, start, mut attributes } = span;
        attributes.push(KeyValue::new("messaging.system", "kafka"));
        attributes.push(KeyValue::new("messaging.operation.name", "publish"));
        attributes.push(KeyValue::new("messaging.operation.type", "send"));
        if !topic.is_empty() {
            attributes.push(KeyValue::new("messaging.destination.name", topic.to_owned()));
        }
        let (name, kind) = (format!("publish {topic}").trim_end().to_owned().into(), SpanKind::Producer);
        self.spans
            .record(&begun, Finished { name, kind, start, end: spans::now(), attributes, links: Vec::new(), error });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Ticket, PublishSpan>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn started(begun: Begun, event: &Event<'_>, origin: Origin) -> PublishSpan {
    let mut attributes = Vec::with_capacity(14);
    attributes.push(KeyValue::new("messaging.message.id", event.event_id.to_string()));
    attributes.push(KeyValue::new("messaging.kafka.message.key", event.aggregate_id.to_owned()));
    attributes
        .push(KeyValue::new("messaging.message.body.size", i64::try_from(event.payload.len()).unwrap_or(i64::MAX)));
    attributes.push(KeyValue::new("cloudevents.event_type", event.event_type.to_owned()));
    attributes.push(KeyValue::new("outbox.id", origin.id));
    attributes.extend(origin.lane.map(|lane| KeyValue::new("outbox.lane", i64::from(lane))));
    attributes.push(KeyValue::new("outbox.age", age(event, origin).as_secs_f64()));
    PublishSpan { begun, start: origin.read_at, attributes }
}

/// How long the event has been in the outbox when it was read, by the clocks of the database and of this machine.
fn age(event: &Event<'_>, origin: Origin) -> Duration {
    origin.read_at.duration_since(event.occurred_at.into()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};
    use shared::spans::{HeadSampler, SpanLimits};
    use shared::testing::Collector;
    use uuid::Uuid;

    use super::*;

    const SAMPLED: &str = r#"{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#;
    const UNSAMPLED: &str = r#"{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}"#;

    fn publish_spans() -> (PublishSpans, Collector) {
        let collector = Collector::default();
        let (sampler, slow) = (HeadSampler::parent_based(0.0), Some(Duration::from_mins(1)));
        let limits = SpanLimits { sampler, per_second_max: 1_000, slow };
        (PublishSpans::new(Spans::new(collector.clone(), limits)), collector)
    }

    fn event(headers: &str, occurred_at: DateTime<Utc>) -> Event<'_> {
        Event {
            event_id: Uuid::nil(),
            aggregate_type: "order",
            aggregate_id: "7",
            aggregate_version: 1,
            event_type: "order.created",
            payload: "{}",
            headers,
            occurred_at,
            fault: None,
        }
    }

    #[test]
    fn an_event_has_a_span_if_its_trace_is_recorded_or_it_is_late() {
        let (spans, _) = publish_spans();
        let origin = Origin { id: 3, lane: Some(2), read_at: spans::now() };
        let (fresh, old) = (DateTime::<Utc>::from(origin.read_at), DateTime::<Utc>::UNIX_EPOCH);
        assert!(spans.begin(&event(SAMPLED, fresh), origin).is_some());
        for unrecorded in [UNSAMPLED, "{}", r#"{"traceparent": "x"}"#] {
            assert!(spans.begin(&event(unrecorded, fresh), origin).is_none(), "{unrecorded}");
            let late = spans.begin(&event(unrecorded, old), origin).expect("late");
            assert!(late.traceparent().ends_with("-01"), "what follows is recorded too");
        }
        assert!(PublishSpans::default().begin(&event(SAMPLED, old), origin).is_none(), "nobody collects");
    }

    #[test]
    fn a_span_ends_once_with_the_outcome_of_its_record() {
        let (spans, collector) = publish_spans();
        let origin = Origin { id: 3, lane: Some(2), read_at: spans::now() };
        let begin = || spans.begin(&event(SAMPLED, origin.read_at.into()), origin).expect("recorded");
        let (failed, kept, lost) = (Ticket::new(0, 1), Ticket::new(0, 2), Ticket::new(0, 3));
        for ticket in [failed, kept, lost] {
            spans.hold(ticket, begin());
        }
        spans.failed(failed, "orders", &KafkaError::Canceled);
        spans.failed(failed, "orders", &KafkaError::Canceled);
        assert!(spans.take_back(kept).is_some());
        spans.close();
        spans.close();
        assert_eq!(collector.names(), ["publish orders", "publish"]);
        spans.refused(begin(), "", "no topic");
        assert_eq!(collector.names().len(), 3);
    }
}
