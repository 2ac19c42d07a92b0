//! Events on their way from the database to the producer, without an allocation of their own.

use std::time::SystemTime;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::lanes::{RowKey, Ticket, TypeIndex, TypeNames};

/// Room for texts that an empty batch keeps.
const TEXTS_KEPT_BYTES: usize = 32 * 1024 * 1024;

/// An event as it is to be published. Borrows its texts.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// `outbox.event_id`.
    pub event_id: Uuid,
    /// `outbox.aggregate_type`.
    pub aggregate_type: &'a str,
    /// `outbox.aggregate_id`.
    pub aggregate_id: &'a str,
    /// `outbox.aggregate_version`.
    pub aggregate_version: i64,
    /// `outbox.type`.
    pub event_type: &'a str,
    /// `outbox.payload`, as its writer wrote it.
    pub payload: &'a str,
    /// `outbox.headers`, JSON text of an object.
    pub headers: &'a str,
    /// `outbox.occurred_at`. A time that no record can carry is replaced by the nearest one that a record can.
    pub occurred_at: DateTime<Utc>,
    /// See [`Event::unpublishable`].
    pub fault: Option<&'a str>,
}

impl<'a> Event<'a> {
    /// Why no record can be made of the event, whatever Kafka would say of it. Such an event is not sent: its key is parked with this
    /// reason. Its texts may be cut off, and its payload and headers are empty.
    #[must_use]
    pub const fn unpublishable(&self) -> Option<&'a str> {
        self.fault
    }
}

/// An event with texts of its own, for one that must wait in memory.
#[derive(Debug, Clone)]
pub struct OwnedEvent {
    texts: String,
    row: Row,
}

impl From<&Event<'_>> for OwnedEvent {
    fn from(event: &Event<'_>) -> Self {
        let mut texts = String::new();
        let row = Row::push(&mut texts, event);
        Self { texts, row }
    }
}

impl OwnedEvent {
    /// As it was.
    #[must_use]
    pub fn as_event(&self) -> Event<'_> {
        self.row.event(&self.texts)
    }

    /// Bytes of all texts.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.texts.len()
    }
}

/// The rows of one read. All their texts lie in one string, so that a row costs no allocation.
#[derive(Debug, Default)]
pub struct Batch {
    texts: String,
    rows: Vec<Row>,
    keys: Vec<RowKey>,
    /// Rows whose payload and headers are still to be fetched.
    awaited: Vec<usize>,
    awaited_bytes: usize,
    /// In the order of the rows; none for a row that is not to be published.
    pub tickets: Vec<Option<Ticket>>,
    /// When they were read.
    pub read_at: Option<SystemTime>,
}

#[derive(Debug, Clone)]
struct Row {
    event_id: Uuid,
    aggregate_version: i64,
    occurred_at: DateTime<Utc>,
    /// Where its texts begin.
    start: usize,
    /// Where they end: aggregate type, aggregate id, type.
    ends: [usize; 3],
    body: Body,
    fault: Option<Box<str>>,
}

/// Where payload and headers lie, which come later if they are large.
#[derive(Debug, Clone, Copy)]
struct Body {
    start: usize,
    payload_end: usize,
    headers_end: usize,
}

impl Batch {
    /// Adds a row.
    pub fn push(&mut self, key: RowKey, event: &Event<'_>) {
        self.keys.push(key);
        self.rows.push(Row::push(&mut self.texts, event));
    }

    /// Gives each row the number of its aggregate type.
    pub fn number_types(&mut self, names: &mut TypeNames) {
        let (mut last, mut index) = (None, TypeIndex::default());
        for (row, key) in self.rows.iter().zip(&mut self.keys) {
            let aggregate_type = self.texts.get(row.start..row.ends[0]).unwrap_or_default();
            // Most rows are of the same type as the one before.
            if last != Some(aggregate_type) {
                (last, index) = (Some(aggregate_type), names.index(aggregate_type));
            }
            key.type_index = index;
        }
    }

    /// Adds a row whose payload and headers, of so many bytes, come later, if it is to be published.
    pub fn push_large(&mut self, key: RowKey, event: &Event<'_>, bytes: usize) {
        self.awaited.push(self.rows.len());
        self.awaited_bytes += bytes;
        self.push(key, event);
    }

    /// The rows that are to be published and whose payload and headers are still to come, by number.
    pub fn awaited(&self) -> impl Iterator<Item = (usize, RowKey)> {
        let with_ticket = |number: &&usize| self.tickets.get(**number).is_some_and(Option::is_some);
        let awaited = self.awaited.iter().filter(with_ticket);
        awaited.filter_map(|number| Some((*number, *self.keys.get(*number)?)))
    }

    /// Payload and headers of a row have come.
    pub fn set_body(&mut self, number: usize, payload: &str, headers: &str) {
        let body = Body::push(&mut self.texts, payload, headers);
        if let Some(row) = self.rows.get_mut(number) {
            row.body = body;
        }
        self.awaited.retain(|awaited| *awaited != number);
    }

    /// No record can be made of a row, for this reason.
    pub fn set_fault(&mut self, number: usize, reason: &str) {
        if let Some(row) = self.rows.get_mut(number) {
            row.fault = Some(reason.into());
        }
        self.awaited.retain(|awaited| *awaited != number);
    }

    /// Makes it empty and keeps its room for the next read.
    pub fn clear(&mut self) {
        self.texts.clear();
        // One enormous row must not be remembered for ever.
        self.texts.shrink_to(TEXTS_KEPT_BYTES);
        self.rows.clear();
        self.keys.clear();
        self.awaited.clear();
        self.awaited_bytes = 0;
        self.tickets.clear();
        self.read_at = None;
    }

    /// How many rows there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes of all texts, counting those that come later.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.texts.len() + self.awaited_bytes
    }

    /// Where the rows were found.
    #[must_use]
    pub fn keys(&self) -> &[RowKey] {
        &self.keys
    }

    /// The rows that are to be published, in their order.
    pub fn events(&self) -> impl Iterator<Item = (RowKey, Ticket, Event<'_>)> {
        let rows = self.rows.iter().zip(&self.keys).zip(&self.tickets);
        rows.filter_map(|((row, key), ticket)| ticket.map(|ticket| (*key, ticket, row.event(&self.texts))))
    }
}

impl Row {
    /// Appends the event's texts to `texts`.
    fn push(texts: &mut String, event: &Event<'_>) -> Self {
        let start = texts.len();
        let ends = [event.aggregate_type, event.aggregate_id, event.event_type].map(|text| {
            texts.push_str(text);
            texts.len()
        });
        Self {
            event_id: event.event_id,
            aggregate_version: event.aggregate_version,
            occurred_at: event.occurred_at,
            start,
            ends,
            body: Body::push(texts, event.payload, event.headers),
            fault: event.fault.map(Box::from),
        }
    }

    fn event<'a>(&'a self, texts: &'a str) -> Event<'a> {
        let [aggregate_type, aggregate_id, event_type] = self.ends;
        let Body { start, payload_end, headers_end } = self.body;
        let text = |from: usize, to: usize| texts.get(from..to).unwrap_or_default();
        Event {
            event_id: self.event_id,
            aggregate_type: text(self.start, aggregate_type),
            aggregate_id: text(aggregate_type, aggregate_id),
            aggregate_version: self.aggregate_version,
            event_type: text(aggregate_id, event_type),
            payload: text(start, payload_end),
            headers: text(payload_end, headers_end),
            occurred_at: self.occurred_at,
            fault: self.fault.as_deref(),
        }
    }
}

impl Body {
    fn push(texts: &mut String, payload: &str, headers: &str) -> Self {
        let start = texts.len();
        texts.push_str(payload);
        let payload_end = texts.len();
        texts.push_str(headers);
        Self { start, payload_end, headers_end: texts.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_out_as_they_went_in_and_only_those_with_a_ticket() {
        let event = |aggregate_id| Event {
            event_id: Uuid::nil(),
            aggregate_type: "order",
            aggregate_id,
            aggregate_version: 3,
            event_type: "order.created",
            payload: "{\"é\":1}",
            headers: "{}",
            occurred_at: DateTime::UNIX_EPOCH,
            fault: None,
        };
        let mut batch = Batch::default();
        for (id, key) in [(5, "7"), (6, "8"), (9, "")] {
            batch.push(
                RowKey { id, txid: 1, lane: 2, occurred_us: 0, type_index: TypeIndex::default(), key_hash: 0 },
                &event(key),
            );
        }
        batch.tickets = vec![Some(Ticket::new(2, 0)), None, Some(Ticket::new(2, 1))];
        let out: Vec<_> = batch.events().collect();
        assert_eq!(out.iter().map(|(key, ..)| key.id).collect::<Vec<_>>(), [5, 9]);
        let (_, _, last) = out[1];
        assert_eq!((last.aggregate_type, last.aggregate_id, last.event_type), ("order", "", "order.created"));
        assert_eq!((last.payload, last.headers), ("{\"é\":1}", "{}"));
    }

    #[test]
    fn a_large_row_gets_its_body_later_and_only_if_it_is_to_be_published() {
        let event = |aggregate_id| Event {
            event_id: Uuid::nil(),
            aggregate_type: "order",
            aggregate_id,
            aggregate_version: 3,
            event_type: "order.created",
            payload: "",
            headers: "",
            occurred_at: DateTime::UNIX_EPOCH,
            fault: None,
        };
        let mut batch = Batch::default();
        for (id, aggregate_id) in [(5, "a"), (6, "b"), (7, "c")] {
            batch.push_large(
                RowKey { id, txid: 1, lane: 2, occurred_us: 0, type_index: TypeIndex::default(), key_hash: 0 },
                &event(aggregate_id),
                1_000,
            );
        }
        assert!(batch.bytes() > 3_000, "what is to come is counted");
        batch.tickets = vec![Some(Ticket::new(2, 0)), None, Some(Ticket::new(2, 1))];
        assert_eq!(batch.awaited().map(|(number, key)| (number, key.id)).collect::<Vec<_>>(), [(0, 5), (2, 7)]);
        batch.set_body(2, "seven", "{}");
        batch.set_fault(0, "it is odd");
        assert_eq!(batch.awaited().count(), 0);
        let out: Vec<_> = batch.events().map(|(_, _, event)| (event.payload, event.unpublishable())).collect();
        assert_eq!(out, [("", Some("it is odd")), ("seven", None)]);
    }
}
