//! An event as a test makes it. Pure.

use serde_json::Value;
use shared::event::{AGGREGATE_VERSION, CE_TYPE, ID};
use uuid::Uuid;

use crate::record::{Record, RecordHeaders};

/// An event to deliver. A clone of it is the same event: delivered twice, it is a repeat.
#[derive(Debug, Clone)]
pub struct TestEvent {
    key: Option<Vec<u8>>,
    payload: Option<Vec<u8>>,
    headers: RecordHeaders,
}

impl TestEvent {
    /// An event of `event_type` about the aggregate `key`, its change number `version`, with an id of its own and no payload.
    #[must_use]
    pub fn new(event_type: &str, key: &str, version: i64) -> Self {
        let headers = [
            (ID, Uuid::now_v7().to_string()),
            (CE_TYPE, event_type.to_owned()),
            (AGGREGATE_VERSION, version.to_string()),
        ];
        let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), Some(value.into_bytes())));
        Self { key: Some(key.as_bytes().to_vec()), payload: None, headers: headers.collect() }
    }

    /// With this payload.
    #[must_use]
    pub fn json(self, payload: &Value) -> Self {
        self.payload(payload.to_string())
    }

    /// With these bytes as payload, JSON or not.
    #[must_use]
    pub fn payload(mut self, payload: impl Into<Vec<u8>>) -> Self {
        self.payload = Some(payload.into());
        self
    }

    /// With this header behind the others; of several with one name the last counts.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.to_owned(), Some(value.into())));
        self
    }

    /// With this id.
    #[must_use]
    pub fn id(self, id: Uuid) -> Self {
        self.header(ID, id.to_string())
    }

    /// The record that carries it; its offset is for whoever delivers it.
    pub(super) fn record(&self) -> Record {
        Record {
            offset: 0,
            key: self.key.clone(),
            payload: self.payload.clone(),
            headers: self.headers.clone(),
            ..Record::default()
        }
    }
}
