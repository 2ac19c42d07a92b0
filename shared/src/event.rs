//! The event as it travels: names of the record's headers, and reading a record back into an event. Pure.
//!
//! A record is a CloudEvents 1.0 message in binary mode (Kafka protocol binding): the value is the payload as its writer made
//! it, everything else is in headers. `id` repeats `ce_id` in Debezium's vocabulary.

use chrono::{DateTime, NaiveDate, Utc};
use uuid::Uuid;

/// Identity of the event; the same for every repeat of it.
pub const ID: &str = "id";
/// CloudEvents: identity of the event.
pub const CE_ID: &str = "ce_id";
/// CloudEvents: what happened, for example `order.created`.
pub const CE_TYPE: &str = "ce_type";
/// CloudEvents: who says so; ends in `/` and the aggregate's type.
pub const CE_SOURCE: &str = "ce_source";
/// CloudEvents: the aggregate's id.
pub const CE_SUBJECT: &str = "ce_subject";
/// CloudEvents: when it happened, RFC 3339.
pub const CE_TIME: &str = "ce_time";
/// CloudEvents: version of the format.
pub const CE_SPECVERSION: &str = "ce_specversion";
/// Number of the change of its aggregate, from 1 without gaps.
pub const AGGREGATE_VERSION: &str = "aggregate_version";
/// Media type of the value.
pub const CONTENT_TYPE: &str = "content-type";
/// W3C Trace Context.
pub const TRACEPARENT: &str = "traceparent";
/// W3C Trace Context: vendors' part.
pub const TRACESTATE: &str = "tracestate";

/// What is said of an event in its headers and key, read and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Identity; the same for every repeat.
    pub event_id: Uuid,
    /// What happened.
    pub event_type: String,
    /// Which aggregate changed: the record's key.
    pub aggregate_id: String,
    /// Number of the change, from 1.
    pub aggregate_version: i64,
    /// When it occurred, the same for every repeat: see [`occurred_at`].
    pub occurred_at: Option<DateTime<Utc>>,
    /// The day (UTC) of that.
    pub occurred_on: Option<NaiveDate>,
    /// W3C Trace Context of the writer.
    pub traceparent: Option<String>,
    /// W3C Trace Context: vendors' part.
    pub tracestate: Option<String>,
}

/// Why a record is no event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A header that every event has is not there.
    #[error("the header '{0}' is missing")]
    MissingHeader(&'static str),
    /// A header cannot be read.
    #[error("the header '{name}' is not {expected}")]
    BadHeader {
        /// Its name.
        name: &'static str,
        /// What it should have been.
        expected: &'static str,
    },
    /// The record has no key, or one that is not UTF-8.
    #[error("the key is missing or not UTF-8")]
    BadKey,
}

impl Envelope {
    /// Reads a record's headers and key. Where a header is repeated, the last one counts, as in Kafka's own clients.
    ///
    /// # Errors
    /// When something that every event has is missing or cannot be read.
    pub fn decode<'a>(
        headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>,
        key: Option<&[u8]>,
    ) -> Result<Self, DecodeError> {
        let (mut id, mut event_type, mut version, mut time) = (None, None, None, None);
        let (mut traceparent, mut tracestate) = (None, None);
        for (name, value) in headers {
            match name {
                ID => id = value,
                CE_ID => id = id.or(value),
                CE_TYPE => event_type = value,
                CE_TIME => time = value,
                AGGREGATE_VERSION => version = value,
                TRACEPARENT => traceparent = value,
                TRACESTATE => tracestate = value,
                _ => {}
            }
        }
        let event_id = Uuid::try_parse_ascii(id.ok_or(DecodeError::MissingHeader(ID))?)
            .map_err(|_| DecodeError::BadHeader { name: ID, expected: "a UUID" })?;
        let event_type = text(event_type.ok_or(DecodeError::MissingHeader(CE_TYPE))?)
            .ok_or(DecodeError::BadHeader { name: CE_TYPE, expected: "UTF-8" })?;
        let aggregate_version = text(version.ok_or(DecodeError::MissingHeader(AGGREGATE_VERSION))?)
            .and_then(|version| version.parse::<i64>().ok())
            .filter(|version| *version >= 1)
            .ok_or(DecodeError::BadHeader { name: AGGREGATE_VERSION, expected: "a number from 1" })?;
        let aggregate_id = key.and_then(text).ok_or(DecodeError::BadKey)?;
        let occurred_at = occurred_at(event_id, time);
        Ok(Self {
            event_id,
            event_type: event_type.to_owned(),
            aggregate_id: aggregate_id.to_owned(),
            aggregate_version,
            occurred_at,
            occurred_on: occurred_at.map(|time| time.date_naive()),
            // A trace context that cannot be read costs the trace, never the event.
            traceparent: traceparent.and_then(text).map(str::to_owned),
            tracestate: tracestate.and_then(text).map(str::to_owned),
        })
    }
}

/// When an event occurred: the time within its id, a UUID v7; for other ids that of its header [`CE_TIME`], RFC 3339. None if neither
/// tells.
///
/// Its day is a part of the key by which repeats are known, and must come out the same for each of them, wherever and whenever that is
/// read. So the id comes first, which is what makes a repeat a repeat, and the present day plays no part.
#[must_use]
pub fn occurred_at(event_id: Uuid, time: Option<&[u8]>) -> Option<DateTime<Utc>> {
    if event_id.get_version_num() == 7 {
        // RFC 9562, 5.7: the first 48 bits are milliseconds since 1970.
        let millis = i64::try_from(event_id.as_u128() >> 80).ok()?;
        return DateTime::from_timestamp_millis(millis);
    }
    let time = DateTime::parse_from_rfc3339(text(time?)?).ok()?;
    Some(time.to_utc())
}

const fn text(bytes: &[u8]) -> Option<&str> {
    match str::from_utf8(bytes) {
        Ok(text) => Some(text),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &[u8] = b"01890a5d-ac96-774b-bcce-b302099a8057";

    fn decode(headers: &[(&str, &[u8])], key: Option<&[u8]>) -> Result<Envelope, DecodeError> {
        Envelope::decode(headers.iter().map(|(name, value)| (*name, Some(*value))), key)
    }

    #[test]
    fn a_whole_record_is_read() {
        let headers: &[(&str, &[u8])] = &[
            (ID, UUID),
            (CE_TYPE, b"order.created"),
            (AGGREGATE_VERSION, b"3"),
            (TRACEPARENT, b"00-a-b-01"),
            ("x", b"\xff"),
        ];
        let envelope = decode(headers, Some(b"42")).expect("whole");
        assert_eq!(envelope.event_id.to_string().as_bytes(), UUID);
        assert_eq!((envelope.event_type.as_str(), envelope.aggregate_id.as_str()), ("order.created", "42"));
        assert_eq!((envelope.aggregate_version, envelope.traceparent.as_deref()), (3, Some("00-a-b-01")));
    }

    #[test]
    fn the_day_of_an_event_is_that_of_its_id_and_else_that_of_its_header() {
        let v7 = Uuid::try_parse_ascii(UUID).expect("an id");
        let v4 = Uuid::from_u128(0x0189_0a5d_ac96_474b_bcce_b302_099a_8057);
        let day = |id, time: Option<&[u8]>| occurred_at(id, time).map(|time| time.date_naive().to_string());
        let time: &[u8] = b"2026-11-24T23:30:00.5-02:00";
        assert_eq!(day(v7, None).as_deref(), Some("2023-06-30"));
        assert_eq!(day(v7, Some(time)).as_deref(), Some("2023-06-30"), "the header does not matter");
        assert_eq!(day(v4, Some(time)).as_deref(), Some("2026-11-25"), "the day is that of UTC");
        assert_eq!((day(v4, None), day(v4, Some(b"yesterday")), day(v4, Some(b"\xff"))), (None, None, None));
    }

    #[test]
    fn each_thing_that_is_missing_or_broken_is_named() {
        let whole: [(&str, &[u8]); 3] = [(ID, UUID), (CE_TYPE, b"t"), (AGGREGATE_VERSION, b"1")];
        for (index, name) in [ID, CE_TYPE, AGGREGATE_VERSION].into_iter().enumerate() {
            let mut headers = whole.to_vec();
            headers.remove(index);
            assert_eq!(decode(&headers, Some(b"1")), Err(DecodeError::MissingHeader(name)));
            let mut headers = whole.to_vec();
            headers[index].1 = b"\xff";
            assert!(
                matches!(decode(&headers, Some(b"1")), Err(DecodeError::BadHeader { name: found, .. }) if found == name)
            );
        }
        assert_eq!(decode(&whole, None), Err(DecodeError::BadKey));
        assert!(decode(&[(ID, UUID), (CE_TYPE, b"t"), (AGGREGATE_VERSION, b"0")], Some(b"1")).is_err());
    }
}
