//! A record as it came from the broker, and an event as a handler sees it.

use std::sync::Arc;
use std::time::SystemTime;

use rdkafka::message::{BorrowedMessage, Message};
use serde::de::DeserializeOwned;
use shared::event::{AGGREGATE_VERSION, CE_TYPE, DecodeError, Envelope};
use shared::kafka::headers;
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

pub use shared::kafka::headers::RecordHeaders;

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

    /// The value of the last header of this name: the one that counts.
    pub(crate) fn header(&self, name: &str) -> Option<&[u8]> {
        let found = self.headers.iter().rev().find(|(found, _)| found == name);
        found.and_then(|(_, value)| value.as_deref())
    }

    /// What it says has happened; none if it does not say, or not in UTF-8.
    pub(crate) fn event_type(&self) -> Option<&str> {
        str::from_utf8(self.header(CE_TYPE)?).ok()
    }

    /// The key in whose order it is applied. None for a record without a key, and for one without a version: that is no change of
    /// an aggregate of ours, whatever its key is, and must not stand in the way of one.
    #[must_use]
    pub fn ordering_key(&self) -> Option<&[u8]> {
        self.key.as_deref().filter(|_| self.header(AGGREGATE_VERSION).is_some())
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
        headers: headers::of(message),
        time_ms: message.timestamp().to_millis(),
        received_at: Some(spans::now()),
    }
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
