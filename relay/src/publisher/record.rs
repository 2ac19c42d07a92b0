//! The headers of a record.

use std::borrow::Cow;
use std::fmt::{self, Write};

use chrono::{DateTime, Datelike, Timelike, Utc};
use rdkafka::message::{Header, OwnedHeaders};
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;
use shared::event;
use uuid::Uuid;

use crate::batch::Event;

/// Headers that the relay sets itself: a writer cannot.
const FIXED: [&str; 9] = [
    event::ID,
    event::CE_SPECVERSION,
    event::CE_ID,
    event::CE_SOURCE,
    event::CE_TYPE,
    event::CE_SUBJECT,
    event::CE_TIME,
    event::AGGREGATE_VERSION,
    event::CONTENT_TYPE,
];

/// The headers of an event's record: the event's identity in Debezium's vocabulary, CloudEvents 1.0 in binary mode, the version that
/// makes order checkable, and whatever the writer put into the row. A `traceparent` that is given takes the place of the row's.
pub(super) fn headers(event: &Event<'_>, source: &str, traceparent: Option<&str>) -> OwnedHeaders {
    let mut id = Uuid::encode_buffer();
    let id: &str = event.event_id.as_hyphenated().encode_lower(&mut id);
    let mut time = Text::default();
    write_time(&mut time, event.occurred_at);
    let mut version = Text::default();
    // A number of 64 bits fits.
    let _ = write!(version, "{}", event.aggregate_version);
    let values = [
        id,
        "1.0",
        id,
        source,
        event.event_type,
        event.aggregate_id,
        time.as_str(),
        version.as_str(),
        "application/json",
    ];
    let mut headers = OwnedHeaders::new_with_capacity(FIXED.len() + 2);
    for (key, value) in FIXED.iter().zip(values) {
        headers = headers.insert(Header { key, value: Some(value) });
    }
    if let Some(value) = traceparent {
        headers = headers.insert(Header { key: event::TRACEPARENT, value: Some(value) });
    }
    if event.headers.len() <= "{}".len() {
        return headers;
    }
    // The column is an object by its CHECK, so that nothing is lost by going on without.
    match serde_json::from_str::<Own>(event.headers) {
        Ok(Own(own)) => own
            .into_iter()
            .filter(|(key, _)| traceparent.is_none() || key != event::TRACEPARENT)
            .fold(headers, |headers, (key, value)| headers.insert(Header { key: &key, value: Some(value.as_ref()) })),
        Err(_) => headers,
    }
}

/// The writer's own headers. A value that is no string goes out as its JSON text.
struct Own<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

/// A string that is borrowed where it holds no escape.
#[derive(Deserialize)]
struct Borrowed<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Own<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Own<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut own = Vec::with_capacity(2);
                while let Some(Borrowed(key)) = map.next_key()? {
                    let value: &RawValue = map.next_value()?;
                    if FIXED.contains(&key.as_ref()) {
                        continue;
                    }
                    let value = match serde_json::from_str(value.get()) {
                        Ok(Borrowed(text)) => text,
                        Err(_) => Cow::Borrowed(value.get()),
                    };
                    own.push((key, value));
                }
                Ok(Own(own))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// A short text without an allocation.
#[derive(Default)]
struct Text {
    bytes: [u8; 32],
    len: usize,
}

impl Text {
    fn as_str(&self) -> &str {
        self.bytes.get(..self.len).and_then(|bytes| str::from_utf8(bytes).ok()).unwrap_or_default()
    }
}

impl Text {
    fn byte(&mut self, byte: u8) {
        if let Some(slot) = self.bytes.get_mut(self.len) {
            *slot = byte;
            self.len += 1;
        }
    }

    /// The last `width` digits of a number.
    fn digits(&mut self, mut number: u32, width: usize) {
        let end = self.len + width;
        for slot in self.bytes.get_mut(self.len..end).unwrap_or_default().iter_mut().rev() {
            *slot = b'0' + u8::try_from(number % 10).unwrap_or_default();
            number /= 10;
        }
        self.len = end.min(self.bytes.len());
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// RFC 3339 with microseconds, as Postgres has them. By hand: this is done for every record, and the formatter that chrono and
/// `write!` use takes several times as long.
fn write_time(text: &mut Text, time: DateTime<Utc>) {
    text.digits(time.year().unsigned_abs(), 4);
    for (before, number) in
        [(b'-', time.month()), (b'-', time.day()), (b'T', time.hour()), (b':', time.minute()), (b':', time.second())]
    {
        text.byte(before);
        text.digits(number, 2);
    }
    text.byte(b'.');
    text.digits(time.timestamp_subsec_micros(), 6);
    text.byte(b'Z');
}

#[cfg(test)]
mod tests {
    use rdkafka::message::Headers;

    use super::*;

    fn of(own: &str, traceparent: Option<&str>) -> Vec<(String, String)> {
        let event = Event {
            event_id: Uuid::nil(),
            aggregate_type: "order",
            aggregate_id: "7",
            aggregate_version: i64::MAX,
            event_type: "order.created",
            payload: "{}",
            headers: own,
            occurred_at: DateTime::from_timestamp_micros(1_700_000_000_023_456).unwrap(),
            fault: None,
        };
        let headers = headers(&event, "/outrider/order", traceparent);
        let text = |value: Option<&[u8]>| str::from_utf8(value.unwrap()).unwrap().to_owned();
        headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect()
    }

    #[test]
    fn a_record_carries_cloudevents_and_the_writers_headers() {
        let nil = "00000000-0000-0000-0000-000000000000";
        let expected = [
            ("id", nil),
            ("ce_specversion", "1.0"),
            ("ce_id", nil),
            ("ce_source", "/outrider/order"),
            ("ce_type", "order.created"),
            ("ce_subject", "7"),
            ("ce_time", "2023-11-14T22:13:20.023456Z"),
            ("aggregate_version", "9223372036854775807"),
            ("content-type", "application/json"),
            ("traceparent", "00-1-2-01"),
            ("tries", "2"),
            ("said \"so\"", "ä\n"),
            ("none", "null"),
        ];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let own =
            r#"{"traceparent": "00-1-2-01", "tries": 2, "id": "forged", "said \"so\"": "\u00e4\n", "none": null}"#;
        assert_eq!(of(own, None), expected);
    }

    #[test]
    fn headers_that_are_none_cost_nothing_else() {
        assert_eq!(of("{}", None).len(), FIXED.len());
        assert_eq!(of("[1]", None).len(), FIXED.len());
    }

    #[test]
    fn the_publish_span_takes_the_place_of_the_writers_context_and_nothing_else_changes() {
        let own = r#"{"traceparent": "00-1-2-01", "tracestate": "a=1", "tries": 2}"#;
        let sorted = |mut headers: Vec<(String, String)>| {
            headers.sort();
            headers
        };
        let mut expected = of(own, None);
        for (key, value) in &mut expected {
            if key == "traceparent" {
                "00-1-3-01".clone_into(value);
            }
        }
        assert_eq!(sorted(of(own, Some("00-1-3-01"))), sorted(expected));
        assert_eq!(of("{}", Some("00-1-3-01")).len(), FIXED.len() + 1);
    }

    #[test]
    fn times_are_those_of_chrono() {
        for micros in [-62_135_596_800_000_000, -1, 0, 1_700_000_000_000_001, 253_402_300_799_999_999] {
            let time = DateTime::from_timestamp_micros(micros).unwrap();
            let mut text = Text::default();
            write_time(&mut text, time);
            assert_eq!(text.as_str(), time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true));
        }
    }
}
