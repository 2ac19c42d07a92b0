//! A record that is given up, in the form in which Postgres can keep it. Pure.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::fingerprint::fingerprint;
use crate::record::{Record, RecordHeaders};

/// A row of `dead_letters`.
#[derive(Debug)]
pub struct DeadLetter<'a> {
    pub(crate) record: &'a Record,
    pub(crate) event_id: Option<Uuid>,
    pub(crate) event_type: Option<String>,
    pub(crate) headers: Value,
    pub(crate) reason: String,
    pub(crate) fingerprint: String,
}

impl<'a> DeadLetter<'a> {
    /// `record`, given up because of `reason`.
    pub(crate) fn new(record: &'a Record, reason: &str) -> Self {
        // Not by the envelope: it is all or nothing, and here each part that can be read is worth having.
        let header = |name: &str| {
            let found = record.headers.iter().rev().find(|(found, _)| found == name);
            found.and_then(|(_, value)| value.as_deref())
        };
        let id = header(shared::event::ID).or_else(|| header(shared::event::CE_ID));
        let event_type = header(shared::event::CE_TYPE).and_then(|value| str::from_utf8(value).ok());
        Self {
            record,
            event_id: id.and_then(|id| Uuid::try_parse_ascii(id).ok()),
            event_type: event_type.map(storable),
            headers: headers_json(&record.headers),
            reason: storable(reason),
            fingerprint: fingerprint(event_type.unwrap_or_default(), reason),
        }
    }
}

/// `text` as Postgres can store it: it refuses U+0000 in text and jsonb, and one such byte in a bad record would otherwise fail
/// the transaction of all its neighbours.
fn storable(text: &str) -> String {
    text.replace('\0', "\\u0000")
}

/// An array of [name, value] in the record's order; a value that is not UTF-8, or holds U+0000, is `{"hex": "..."}`.
fn headers_json(headers: &RecordHeaders) -> Value {
    let value = |value: &Option<Vec<u8>>| match value {
        None => Value::Null,
        Some(bytes) => match str::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => text.into(),
            _ => json!({ "hex": hex(bytes) }),
        },
    };
    headers.iter().map(|(name, bytes)| json!([storable(name), value(bytes)])).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        hex.extend([byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16).unwrap_or('?')));
        hex
    })
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
        assert_eq!(DeadLetter::new(&record, "").headers, json!([["b", "2"], ["a", null], ["b", "\u{e9}"]]));
    }

    #[test]
    fn bytes_that_are_no_text_are_given_in_hex() {
        let record = record(&[("x", Some(b"\xff\x00\x1a")), ("y", Some(b"a\0"))]);
        assert_eq!(DeadLetter::new(&record, "").headers, json!([["x", {"hex": "ff001a"}], ["y", {"hex": "6100"}]]));
    }

    #[test]
    fn zero_bytes_are_written_out() {
        let record = record(&[("ce_type", Some(b"a\0b"))]);
        let letter = DeadLetter::new(&record, "why\0");
        assert_eq!((letter.event_type.as_deref(), letter.reason.as_str()), (Some("a\\u0000b"), "why\\u0000"));
    }

    #[test]
    fn what_can_be_read_is_kept_though_the_rest_cannot() {
        let record = record(&[("id", Some(b"01890a5d-ac96-774b-bcce-b302099a8057")), ("ce_type", Some(b"\xff"))]);
        let letter = DeadLetter::new(&record, "");
        assert!(letter.event_id.is_some());
        assert_eq!(letter.event_type, None);
    }
}
