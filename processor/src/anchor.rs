//! Telling a record from another one that has come to its place. Pure.

use crate::fingerprint::Fnv;
use crate::record::Record;

/// What a record is known by: its place, and a hash of all there is to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    /// The record's offset.
    pub offset: i64,
    /// FNV-1a of its key, headers and value.
    pub hash: i64,
    /// Kafka's timestamp, milliseconds since 1970; none if it has none. Tells an event from its own repeat, should that have come
    /// to the same place of a topic that was made anew.
    pub time_ms: Option<i64>,
}

impl Anchor {
    /// That of `record`.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        let mut hash = Fnv::new();
        // With its length in front, so that nothing can slip from one field into the next.
        let mut add = |field: Option<&[u8]>| {
            let length = field.map_or(u64::MAX, |field| field.len() as u64);
            hash.add(&length.to_le_bytes());
            hash.add(field.unwrap_or_default());
        };
        add(record.key.as_deref());
        add(record.payload.as_deref());
        for (name, value) in &record.headers {
            add(Some(name.as_bytes()));
            add(value.as_deref());
        }
        Self { offset: record.offset, hash: hash.0.cast_signed(), time_ms: record.time_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_that_differ_in_anything_have_other_anchors() {
        let record = Record {
            offset: 3,
            key: Some(b"k".to_vec()),
            payload: Some(b"value".to_vec()),
            headers: vec![("id".to_owned(), Some(b"1".to_vec()))],
            time_ms: Some(5),
            received_at: None,
        };
        let anchor = Anchor::of(&record);
        assert_eq!(anchor, Anchor::of(&record.clone()));
        let others = [
            Record { offset: 4, ..record.clone() },
            Record { key: Some(b"kv".to_vec()), payload: Some(b"alue".to_vec()), ..record.clone() },
            Record { payload: None, ..record.clone() },
            Record { payload: Some(Vec::new()), ..record.clone() },
            Record { headers: vec![("i".to_owned(), Some(b"d1".to_vec()))], ..record.clone() },
            Record { time_ms: Some(6), ..record.clone() },
        ];
        for (place, other) in others.iter().enumerate() {
            assert_ne!(Anchor::of(other), anchor, "{place}");
        }
        assert_ne!(Anchor::of(&others[2]).hash, Anchor::of(&others[3]).hash, "none is not empty");
    }

    #[test]
    fn the_hash_is_the_same_in_every_version() {
        assert_eq!(Anchor::of(&Record::default()).hash, -2_999_268_670_487_533_483);
    }
}
