//! A record as it came from the broker, and an event as a handler sees it.

use std::sync::Arc;
use std::time::SystemTime;

use rdkafka::message::{BorrowedMessage, Headers, Message};
use serde::de::DeserializeOwned;
use shared::event::{DecodeError, Envelope};
use shared::propagation::TraceHeaders;
use shared::spans;
use uuid::Uuid;

/// One partition of one topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition {
    /// Topic.
    pub topic: Arc<str>,
    /// Number of the partition.
    pub number: i32,
}

impl std::fmt::Display for Partition {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.topic, self.number)
    }
}

/// A record's headers in their order; a name may come more than once.
pub type RecordHeaders = Vec<(String, Option<Vec<u8>>)>;

/// A record as it came from the broker.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// Its place in the partition.
    pub offset: i64,
    /// Key.
    pub key: Option<Vec<u8>>,
    /// Value.
    pub payload: Option<Vec<u8>>,
    /// Headers.
    pub headers: RecordHeaders,
    /// Kafka's timestamp, milliseconds since 1970.
    pub time_ms: Option<i64>,
    /// When it came from the broker, for its span; none if it has waited in the dead letters since.
    pub received_at: Option<SystemTime>,
}

impl Record {
    /// Bytes that it holds, give or take what the allocator adds.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| {
            size_of::<(String, Option<Vec<u8>>)>() + name.len() + value.as_ref().map_or(0, Vec::len)
        });
        size_of::<Self>()
            + self.key.as_ref().map_or(0, Vec::len)
            + self.payload.as_ref().map_or(0, Vec::len)
            + headers.sum::<usize>()
    }

    /// What its headers and key say of it.
    ///
    /// # Errors
    /// When something that every event has is missing or cannot be read.
    pub fn envelope(&self) -> Result<Envelope, DecodeError> {
        Envelope::decode(
            self.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())),
            self.key.as_deref(),
        )
    }
}

/// Copies a record out of librdkafka's memory.
pub(crate) fn copy(message: &BorrowedMessage<'_>) -> Record {
    Record {
        offset: message.offset(),
        key: message.key().map(<[u8]>::to_vec),
        payload: message.payload().map(<[u8]>::to_vec),
        headers: message.headers().map(headers).unwrap_or_default(),
        time_ms: message.timestamp().to_millis(),
        received_at: Some(spans::now()),
    }
}

fn headers(headers: &impl Headers) -> RecordHeaders {
    let copy = |index| headers.try_get(index).map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)));
    // rdkafka panics over a header whose name is not UTF-8. One such record must not end the processor: its header is kept
    // without name and value, and the record is dead-lettered if it was one that matters.
    let copy = |index| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| copy(index)));
    (0..headers.count())
        .filter_map(|index| copy(index).unwrap_or_else(|_| Some(("\u{fffd}".to_owned(), None))))
        .collect()
}

/// An event as its handler sees it: a view, cheap to copy.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    pub(crate) envelope: &'a Envelope,
    pub(crate) payload: Option<&'a [u8]>,
    pub(crate) trace: &'a TraceHeaders,
    pub(crate) offset: i64,
    /// Its place among the records that are worked on together.
    pub(crate) place: usize,
}

/// Why a payload is not what a handler expects.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// A tombstone.
    #[error("the record has no payload")]
    Missing,
    /// Not JSON, or not of this form.
    #[error("the payload is not what is expected: {0}")]
    Json(#[from] serde_json::Error),
}

impl<'a> Event<'a> {
    /// Identity; the same for every repeat.
    #[must_use]
    pub const fn id(&self) -> Uuid {
        self.envelope.event_id
    }

    /// What happened, for example `order.created`.
    #[must_use]
    pub fn event_type(&self) -> &'a str {
        &self.envelope.event_type
    }

    /// Which aggregate changed: the record's key.
    #[must_use]
    pub fn aggregate_id(&self) -> &'a str {
        &self.envelope.aggregate_id
    }

    /// Number of the change of its aggregate, from 1 without gaps.
    #[must_use]
    pub const fn aggregate_version(&self) -> i64 {
        self.envelope.aggregate_version
    }

    /// The record's value as it is; none for a tombstone.
    #[must_use]
    pub const fn payload(&self) -> Option<&'a [u8]> {
        self.payload
    }

    /// The payload read as JSON.
    ///
    /// # Errors
    /// When there is none, or it is not of this form.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, PayloadError> {
        Ok(serde_json::from_slice(self.payload.ok_or(PayloadError::Missing)?)?)
    }

    /// The trace context to give to whatever this event causes.
    #[must_use]
    pub const fn trace(&self) -> &'a TraceHeaders {
        self.trace
    }

    /// Its place in the partition.
    #[must_use]
    pub const fn offset(&self) -> i64 {
        self.offset
    }
}
