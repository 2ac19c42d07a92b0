//! The idempotent producer, and what it says of each record.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::SecondsFormat;
use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};
use shared::event;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::lanes::LANES;
use crate::outbox::Row;
use crate::routes::Routes;

/// Lane and sequence number of a record, as the one integer that travels with it through librdkafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(usize);

/// Bits of a ticket that are the sequence number: enough for a million records a second over thirty thousand years.
const SEQUENCE_BITS: u32 = 60;

const _: () = assert!(
    usize::BITS == 64 && LANES <= 16,
    "a ticket fits into a pointer: four bits of lane and the sequence number"
);

impl Ticket {
    /// The ticket of record `sequence` of the lane with this index.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits, see above")]
    pub const fn new(lane: usize, sequence: u64) -> Self {
        Self((lane << SEQUENCE_BITS) | sequence as usize)
    }

    /// The lane's index.
    #[must_use]
    pub const fn lane(self) -> usize {
        self.0 >> SEQUENCE_BITS
    }

    /// The sequence number.
    #[must_use]
    pub const fn sequence(self) -> u64 {
        (self.0 & ((1 << SEQUENCE_BITS) - 1)) as u64
    }
}

/// What became of the records handed to the producer.
#[derive(Debug, Default)]
struct Outcomes {
    acknowledged: Mutex<Vec<Ticket>>,
    failed: Mutex<Option<KafkaError>>,
    changed: Notify,
}

impl Outcomes {
    fn acknowledge(&self, ticket: Ticket) {
        let mut acknowledged = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        acknowledged.push(ticket);
        if acknowledged.len() == 1 {
            self.changed.notify_one();
        }
    }

    fn fail(&self, error: KafkaError) {
        // The first failure is the cause; those after it are its consequences.
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.changed.notify_one();
    }
}

struct Context(Arc<Outcomes>);

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        // librdkafka goes on trying by itself; if it does not succeed in time, the records' own outcomes say so.
        tracing::warn!(error = %error, reason, "the Kafka client reports a problem");
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Self::DeliveryOpaque) {
        match result {
            Ok(_) => self.0.acknowledge(Ticket(ticket)),
            Err((error, _)) => self.0.fail(error.clone()),
        }
    }
}

/// Why a record was not taken.
#[derive(Debug)]
pub enum SendError {
    /// The producer's queue is full: wait for acknowledgements and try again.
    QueueFull,
    /// This record will never be taken, whoever sends it: it parks its key.
    Refused(String),
    /// The producer is of no use any more.
    Broken(KafkaError),
}

/// A topic, and the `ce_source` of its records.
struct Destination {
    topic: String,
    source: String,
}

/// One producer, for as long as nothing has failed. Dropping it throws away what it has not sent.
pub struct Publisher {
    producer: ThreadedProducer<Context>,
    outcomes: Arc<Outcomes>,
    source: String,
    routes: Routes,
    /// By aggregate type; a reason where no broker will ever have a topic of that name.
    destinations: HashMap<String, Result<Destination, String>>,
}

impl Publisher {
    /// A new producer. It connects by itself.
    ///
    /// # Errors
    /// When librdkafka refuses the settings.
    pub fn new(config: &ClientConfig, source: &str, routes: Routes) -> Result<Self, KafkaError> {
        let outcomes = Arc::new(Outcomes::default());
        let producer = config.create_with_context(Context(Arc::clone(&outcomes)))?;
        Ok(Self { producer, outcomes, source: source.to_owned(), routes, destinations: HashMap::new() })
    }

    /// Takes up other routes: what is sent from now on follows them.
    pub fn reroute(&mut self, routes: Routes) {
        if self.routes != routes {
            self.routes = routes;
            self.destinations.clear();
        }
    }

    /// The topic for an aggregate type, if it is new to this producer: the caller makes sure that it exists before it sends.
    pub fn new_topic(&mut self, aggregate_type: &str) -> Option<String> {
        if self.destinations.contains_key(aggregate_type) {
            return None;
        }
        let resolved = self.routes.resolve(aggregate_type);
        let topic = resolved.as_ref().ok().cloned();
        let source = format!("{}/{aggregate_type}", self.source);
        let destination = resolved.map(|topic| Destination { topic, source }).map_err(|illegal| illegal.to_string());
        self.destinations.insert(aggregate_type.to_owned(), destination);
        topic
    }

    /// Hands one event to the producer. Its outcome comes later, under `ticket`.
    ///
    /// # Errors
    /// When it was not taken, for one of three reasons that each want another answer.
    pub fn send(&self, row: &Row, ticket: Ticket) -> Result<(), SendError> {
        let destination = match self.destinations.get(&row.aggregate_type) {
            Some(Ok(destination)) => destination,
            Some(Err(reason)) => return Err(SendError::Refused(reason.clone())),
            // The caller has not asked for its topic: a fault of ours, and no reason to park a key.
            None => return Err(SendError::Broken(KafkaError::MessageProduction(RDKafkaErrorCode::UnknownTopic))),
        };
        let record = BaseRecord::with_opaque_to(&destination.topic, ticket.0)
            .key(&row.aggregate_id)
            .payload(&row.payload)
            .headers(headers(row, &destination.source));
        match self.producer.send(record) {
            Ok(()) => Ok(()),
            Err((error, _)) => Err(match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) => SendError::QueueFull,
                Some(code @ RDKafkaErrorCode::MessageSizeTooLarge) => SendError::Refused(code.to_string()),
                _ => SendError::Broken(error),
            }),
        }
    }

    /// Takes the acknowledgements that have come since the last call, into `into`, whose room is reused.
    pub fn take_acknowledged(&self, into: &mut Vec<Ticket>) {
        into.clear();
        std::mem::swap(&mut *self.outcomes.acknowledged.lock().unwrap_or_else(PoisonError::into_inner), into);
    }

    /// The first failure, if there was one: this producer must be dropped then.
    #[must_use]
    pub fn failure(&self) -> Option<KafkaError> {
        self.outcomes.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Resolves when there is an outcome to take.
    pub async fn outcome(&self) {
        self.outcomes.changed.notified().await;
    }
}

/// The headers of an event's record: the event's identity in Debezium's vocabulary, CloudEvents 1.0 in binary mode, the version that
/// makes order checkable, and whatever the writer put into the row, its trace context before all.
fn headers(row: &Row, source: &str) -> OwnedHeaders {
    let mut id = Uuid::encode_buffer();
    let id: &str = row.event_id.as_hyphenated().encode_lower(&mut id);
    let time = row.occurred_at.to_rfc3339_opts(SecondsFormat::Micros, true);
    let version = row.aggregate_version.to_string();
    let fixed = [
        (event::ID, id),
        (event::CE_SPECVERSION, "1.0"),
        (event::CE_ID, id),
        (event::CE_SOURCE, source),
        (event::CE_TYPE, row.event_type.as_str()),
        (event::CE_SUBJECT, row.aggregate_id.as_str()),
        (event::CE_TIME, time.as_str()),
        (event::AGGREGATE_VERSION, version.as_str()),
        (event::CONTENT_TYPE, "application/json"),
    ];
    let mut headers = OwnedHeaders::new_with_capacity(fixed.len() + 2);
    for (key, value) in fixed {
        headers = headers.insert(Header { key, value: Some(value) });
    }
    if row.headers.len() <= "{}".len() {
        return headers;
    }
    // The column is an object by its CHECK; a value that is no string goes out as its JSON text.
    let own: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&row.headers).unwrap_or_default();
    for (key, value) in &own {
        if fixed.iter().any(|(name, _)| name == key) {
            continue;
        }
        headers = match value {
            serde_json::Value::String(text) => headers.insert(Header { key, value: Some(text) }),
            other => headers.insert(Header { key, value: Some(&other.to_string()) }),
        };
    }
    headers
}

#[cfg(test)]
mod tests {
    use rdkafka::message::Headers;

    use super::*;

    #[test]
    fn a_ticket_keeps_lane_and_sequence() {
        for (lane, sequence) in [(0, 0), (15, (1 << SEQUENCE_BITS) - 1), (7, 123_456)] {
            let ticket = Ticket::new(lane, sequence);
            assert_eq!((ticket.lane(), ticket.sequence()), (lane, sequence));
        }
    }

    #[test]
    fn a_record_carries_cloudevents_and_the_writers_headers() {
        let row = Row {
            id: 1,
            txid: 1,
            lane: 0,
            event_id: Uuid::nil(),
            aggregate_type: "order".into(),
            aggregate_id: "7".into(),
            aggregate_version: 3,
            event_type: "order.created".into(),
            payload: "{}".into(),
            headers: r#"{"traceparent": "00-1-2-01", "tries": 2, "id": "forged"}"#.into(),
            occurred_at: chrono::DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap(),
        };
        let headers = headers(&row, "/outrider/order");
        let read: Vec<(&str, &str)> =
            headers.iter().map(|header| (header.key, str::from_utf8(header.value.unwrap()).unwrap())).collect();
        let nil = "00000000-0000-0000-0000-000000000000";
        let expected = [
            ("id", nil),
            ("ce_specversion", "1.0"),
            ("ce_id", nil),
            ("ce_source", "/outrider/order"),
            ("ce_type", "order.created"),
            ("ce_subject", "7"),
            ("ce_time", "2023-11-14T22:13:20.123456Z"),
            ("aggregate_version", "3"),
            ("content-type", "application/json"),
            ("traceparent", "00-1-2-01"),
            ("tries", "2"),
        ];
        assert_eq!(read, expected);
    }
}
