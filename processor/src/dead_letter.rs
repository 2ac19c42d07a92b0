//! A record that waits, in the form in which Postgres can keep it, and back. Pure.

use serde_json::{Value, json};
use shared::event::{AGGREGATE_VERSION, CE_ID, ID};
use uuid::Uuid;

use crate::fingerprint::fingerprint;
use crate::record::{Record, RecordHeaders};

/// What is kept of an event's type, beside the header that has all of it.
const TYPE_BYTES_MAX: usize = 1_000;

/// A row of `dead_letters`.
#[derive(Debug)]
pub struct DeadLetter<'a> {
    pub(crate) record: &'a Record,
    pub(crate) event_id: Option<Uuid>,
    pub(crate) event_type: Option<String>,
    pub(crate) aggregate_version: Option<i64>,
    pub(crate) headers: Value,
    /// Why it could not be applied, and the kind of this failure; none if it waits behind another one.
    pub(crate) reason: Option<Reason>,
}

/// Why something could not be applied, as Postgres can keep it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    pub(crate) text: String,
    pub(crate) fingerprint: String,
}

impl Reason {
    /// `reason`, of a record of this type if it tells one.
    pub(crate) fn new(record: &Record, reason: &str) -> Self {
        let event_type = record.event_type().unwrap_or_default();
        Self { text: reason.to_owned(), fingerprint: fingerprint(event_type, reason) }
    }
}

impl<'a> DeadLetter<'a> {
    /// `record`, which could not be applied because of `reason`, or waits.
    pub(crate) fn new(record: &'a Record, reason: Option<&str>) -> Self {
        // Not by the envelope: it is all or nothing, and here each part that can be read is worth having.
        let text = |name: &str| record.header(name).and_then(|value| str::from_utf8(value).ok());
        let id = record.header(ID).or_else(|| record.header(CE_ID));
        Self {
            record,
            event_id: id.and_then(|id| Uuid::try_parse_ascii(id).ok()),
            event_type: record.event_type().map(|event_type| storable(event_type, TYPE_BYTES_MAX)),
            aggregate_version: text(AGGREGATE_VERSION).and_then(|version| version.parse().ok()),
            headers: headers_json(&record.headers),
            reason: reason.map(|reason| Reason::new(record, reason)),
        }
    }
}

/// `text` as Postgres can store it: it refuses U+0000 in text and jsonb, and one such byte in a bad record would otherwise fail
/// the transaction of all its neighbours. What is longer than `bytes_max` is cut, and says so.
pub(crate) fn storable(text: &str, bytes_max: usize) -> String {
    let kept = &text[..text.floor_char_boundary(bytes_max)];
    let stored = kept.replace('\0', "\\u0000");
    if kept.len() == text.len() { stored } else { format!("{stored} [cut: {} bytes in all]", text.len()) }
}

/// An array of [name, value] in the record's order; a value that is not UTF-8, or holds U+0000, is `{"hex": "..."}`.
fn headers_json(headers: &RecordHeaders) -> Value {
    let value = |value: &Option<Vec<u8>>| match value {
        None => Value::Null,
        Some(bytes) => match str::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => text.into(),
            _ => json!({ "hex": hex::encode(bytes) }),
        },
    };
    headers.iter().map(|(name, bytes)| json!([storable(name, usize::MAX), value(bytes)])).collect()
}

/// The headers that [`headers_json`] has made `json` of. What is not of its form comes back without a value.
pub(crate) fn headers_of(json: &Value) -> RecordHeaders {
    let value = |value: &Value| match value {
        Value::String(text) => Some(text.clone().into_bytes()),
        other => hex::decode(other.get("hex")?.as_str()?).ok(),
    };
    let pair = |pair: &Value| Some((pair.get(0)?.as_str()?.to_owned(), pair.get(1).and_then(value)));
    json.as_array().map(|pairs| pairs.iter().filter_map(pair).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(headers: &[(&str, Option<&[u8]>)]) -> Record {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.map(<[u8]>::to_vec)));
        Record { headers: headers.collect(), ..Record::default() }
    }

    #[test]
    fn headers_keep_their_order_and_repeats() {
        let record = record(&[("b", Some(b"2")), ("a", None), ("b", Some("\u{e9}".as_bytes()))]);
        assert_eq!(DeadLetter::new(&record, None).headers, json!([["b", "2"], ["a", null], ["b", "\u{e9}"]]));
    }

    #[test]
    fn bytes_that_are_no_text_are_given_in_hex() {
        let record = record(&[("x", Some(b"\xff\x00\x1a")), ("y", Some(b"a\0"))]);
        assert_eq!(DeadLetter::new(&record, None).headers, json!([["x", {"hex": "ff001a"}], ["y", {"hex": "6100"}]]));
    }

    #[test]
    fn zero_bytes_are_written_out() {
        let record = record(&[("ce_type", Some(b"a\0b"))]);
        let letter = DeadLetter::new(&record, Some("why"));
        assert_eq!(letter.event_type.as_deref(), Some("a\\u0000b"));
        assert_eq!(storable("why\0", 4), "why\\u0000");
    }

    #[test]
    fn a_text_that_is_cut_says_so() {
        assert_eq!(storable("\u{e9}\u{e9}", 3), "\u{e9} [cut: 4 bytes in all]");
        assert_eq!(storable("abcd", 4), "abcd");
    }

    #[test]
    fn what_can_be_read_is_kept_though_the_rest_cannot() {
        let record = record(&[("id", Some(b"01890a5d-ac96-774b-bcce-b302099a8057")), ("ce_type", Some(b"\xff"))]);
        let letter = DeadLetter::new(&record, None);
        assert!(letter.event_id.is_some());
        assert_eq!(letter.event_type, None);
    }

    #[test]
    fn headers_come_back_as_they_were() {
        let record = record(&[("b", Some(b"2")), ("a", None), ("b", Some(b"\xff\x00\x1a")), ("c", Some(b""))]);
        assert_eq!(headers_of(&headers_json(&record.headers)), record.headers);
    }
}
