//! Rows of the outbox as a statement brings them. Whatever a row holds, it becomes an event: one that no record can be made of carries
//! the reason, so that its key alone waits. No content may make a read fail, since the read would fail again for ever.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use sqlx::postgres::{PgRow, PgValueRef};
use sqlx::{Row, ValueRef};

use crate::batch::{Batch, Event};
use crate::lanes::RowKey;

/// Bytes of the largest payload that is published. No larger one is ever fetched.
pub const PAYLOAD_BYTES_MAX: usize = 16_777_216;

/// Bytes of the longest headers, as text.
pub const HEADERS_BYTES_MAX: usize = 32_768;

const AGGREGATE_TYPE_BYTES_MAX: usize = 200;
const AGGREGATE_ID_BYTES_MAX: usize = 1_000;
const TYPE_BYTES_MAX: usize = 250;

// The columns of a row `o`. A text that is too long is cut off a little behind its limit, so that it is still seen to be too long. The
// length of a text is known without unpacking it; of jsonb, only that of its stored form is.
//
// Payload and headers come as they are, since json and jsonb are sent as text anyway, and a cast would copy them twice. If either is
// large, both come by a second statement: a read may bring thousands of rows, and most of them may not fit.
macro_rules! row_columns {
    () => {
        "o.id, o.txid, o.lane, o.event_id, o.aggregate_version, o.occurred_at,
    CASE WHEN octet_length(o.aggregate_type) <= 200 THEN o.aggregate_type ELSE left(o.aggregate_type, 200) || '...' END,
    CASE WHEN octet_length(o.aggregate_id) <= 1000 THEN o.aggregate_id ELSE left(o.aggregate_id, 1000) || '...' END,
    CASE WHEN octet_length(o.type) <= 250 THEN o.type ELSE left(o.type, 250) || '...' END,
    CASE WHEN o.payload_bytes <= 4096 THEN o.payload END, CASE WHEN pg_column_size(o.headers) <= 2048 THEN o.headers END,
    o.payload_bytes"
    };
}
pub(super) use row_columns;

/// Adds the row to the batch. Its [`row_columns`] begin with column `first`; `key_hash` is that of its aggregate, if it was asked for.
///
/// # Errors
/// When the statement is another one.
pub(super) fn push(batch: &mut Batch, row: &PgRow, first: usize, key_hash: i64) -> Result<RowKey, sqlx::Error> {
    // A timestamptz is sent as microseconds since 2000.
    let (occurred_at, mut fault) = occurred_at(row.try_get_unchecked(first + 5)?);
    let key = RowKey {
        id: row.try_get_unchecked(first)?,
        txid: row.try_get_unchecked(first + 1)?,
        lane: row.try_get_unchecked(first + 2)?,
        occurred_us: occurred_at.timestamp_micros(),
        key_hash,
    };
    let aggregate_type = bounded(row, first + 6, ("aggregate_type", AGGREGATE_TYPE_BYTES_MAX), &mut fault)?;
    let aggregate_id = bounded(row, first + 7, ("aggregate_id", AGGREGATE_ID_BYTES_MAX), &mut fault)?;
    let event_type = bounded(row, first + 8, ("type", TYPE_BYTES_MAX), &mut fault)?;
    let (payload, headers) = (row.try_get_raw(first + 9)?, row.try_get_raw(first + 10)?);
    let headers_are_large = headers.is_null();
    let is_large = payload.is_null() || headers_are_large;
    let payload_bytes = usize::try_from(row.try_get_unchecked::<i32, _>(first + 11)?).unwrap_or(0);
    let (payload, headers) = if is_large {
        (Cow::default(), Cow::default())
    } else {
        (json(&payload, &mut fault)?, jsonb(&headers, &mut fault)?)
    };
    if payload_bytes > PAYLOAD_BYTES_MAX {
        fault = Some(format!("its payload has {payload_bytes} bytes; at most {PAYLOAD_BYTES_MAX} can be published"));
    }
    let event = Event {
        event_id: row.try_get_unchecked(first + 3)?,
        aggregate_version: row.try_get_unchecked(first + 4)?,
        occurred_at,
        aggregate_type: &aggregate_type,
        aggregate_id: &aggregate_id,
        event_type: &event_type,
        payload: &payload,
        headers: &headers,
        fault: fault.as_deref(),
    };
    if is_large && event.fault.is_none() {
        // Of large headers, no more is known here than how large they may be.
        let headers_bytes = if headers_are_large { HEADERS_BYTES_MAX } else { 0 };
        batch.push_large(key, &event, payload_bytes + headers_bytes);
    } else {
        batch.push(key, &event);
    }
    Ok(key)
}

/// A payload where it lies in the server's message.
///
/// # Errors
/// When there is none.
pub(super) fn json<'r>(value: &PgValueRef<'r>, fault: &mut Option<String>) -> Result<Cow<'r, str>, sqlx::Error> {
    Ok(utf8(bytes(value)?, "payload", fault))
}

/// Headers as JSON text. The second statement leaves out those that are too long in their stored form already.
///
/// # Errors
/// When the server's message cannot be read.
pub(super) fn jsonb<'r>(value: &PgValueRef<'r>, fault: &mut Option<String>) -> Result<Cow<'r, str>, sqlx::Error> {
    if value.is_null() {
        *fault = Some(headers_too_long());
        return Ok(Cow::default());
    }
    // The version of the format, 1, and then the text.
    let bytes = bytes(value)?;
    let text = utf8(bytes.get(1..).unwrap_or_default(), "headers", fault);
    if text.len() > HEADERS_BYTES_MAX {
        // A number takes few bytes in jsonb and may take a hundred thousand as text.
        *fault = Some(headers_too_long());
        return Ok(Cow::default());
    }
    Ok(text)
}

fn headers_too_long() -> String {
    format!("its headers have more than {HEADERS_BYTES_MAX} bytes")
}

fn bounded<'r>(
    row: &'r PgRow,
    column: usize,
    (name, bytes_max): (&str, usize),
    fault: &mut Option<String>,
) -> Result<Cow<'r, str>, sqlx::Error> {
    let text = utf8(bytes(&row.try_get_raw(column)?)?, name, fault);
    if text.len() > bytes_max {
        *fault = Some(format!("its {name} has more than {bytes_max} bytes"));
    }
    Ok(text)
}

/// A text that is valid in almost every database; one in `SQL_ASCII` takes any bytes.
fn utf8<'r>(bytes: &'r [u8], name: &str, fault: &mut Option<String>) -> Cow<'r, str> {
    str::from_utf8(bytes).map_or_else(
        |_| {
            *fault = Some(format!("its {name} is not UTF-8"));
            String::from_utf8_lossy(bytes)
        },
        Cow::Borrowed,
    )
}

fn bytes<'r>(value: &PgValueRef<'r>) -> Result<&'r [u8], sqlx::Error> {
    value.as_bytes().map_err(sqlx::Error::Decode)
}

/// The time so many microseconds after 2000 began, if a record can carry it; else the nearest one that it can, and why.
///
/// `ce_time` is of RFC 3339, whose years have four digits. Postgres knows years from 4713 BC to 294276, and two infinities.
fn occurred_at(since_2000: i64) -> (DateTime<Utc>, Option<String>) {
    const YEAR_2000_US: i64 = 946_684_800_000_000;
    const FIRST_US: i64 = -62_135_596_800_000_000;
    const LAST_US: i64 = 253_402_300_799_999_999;
    let micros = since_2000.saturating_add(YEAR_2000_US);
    let what = match since_2000 {
        i64::MAX => Some("infinity"),
        i64::MIN => Some("-infinity"),
        _ if micros > LAST_US => Some("after year 9999"),
        _ if micros < FIRST_US => Some("before year 1"),
        _ => None,
    };
    let time = DateTime::from_timestamp_micros(micros.clamp(FIRST_US, LAST_US)).unwrap_or_default();
    (time, what.map(|what| format!("its occurred_at is {what}; only years 1 to 9999 can be published")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_time_that_postgres_knows_becomes_one_that_a_record_can_carry() {
        let of = |since_2000| {
            let (time, fault) = occurred_at(since_2000);
            (time.to_rfc3339(), fault.map(|fault| fault.split(';').next().unwrap().to_owned()))
        };
        let fault = |what: &str| Some(format!("its occurred_at is {what}"));
        assert_eq!(of(0), ("2000-01-01T00:00:00+00:00".to_owned(), None));
        let (first, last) = ("0001-01-01T00:00:00+00:00".to_owned(), "9999-12-31T23:59:59.999999+00:00".to_owned());
        assert_eq!(of(-63_082_281_600_000_000), (first.clone(), None));
        assert_eq!(of(-63_082_281_600_000_001), (first.clone(), fault("before year 1")));
        assert_eq!(of(252_455_615_999_999_999), (last.clone(), None));
        assert_eq!(of(252_455_616_000_000_000), (last.clone(), fault("after year 9999")));
        assert_eq!(of(i64::MAX - 1), (last.clone(), fault("after year 9999")));
        assert_eq!(of(i64::MAX), (last, fault("infinity")));
        assert_eq!(of(i64::MIN + 1), (first.clone(), fault("before year 1")));
        assert_eq!(of(i64::MIN), (first, fault("-infinity")));
    }

    #[test]
    fn a_text_that_is_not_utf8_is_a_fault_and_no_error() {
        let mut fault = None;
        assert_eq!(utf8("\u{e9}".as_bytes(), "type", &mut fault), "\u{e9}");
        assert_eq!(fault, None);
        assert_eq!(utf8(b"a\xff", "type", &mut fault), "a\u{fffd}");
        assert_eq!(fault.unwrap(), "its type is not UTF-8");
    }
}
