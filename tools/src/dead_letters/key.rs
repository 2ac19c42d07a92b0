//! A record's key as an operator reads and writes it: text, or hexadecimal digits after `\x`, as in Postgres. Pure.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::parked::list::printable;

/// A record's key, whatever its writer made of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RecordKey(pub Vec<u8>);

impl RecordKey {
    /// Reads what [`RecordKey`] shows.
    ///
    /// # Errors
    /// When `\x` is not followed by pairs of hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(digits) = text.strip_prefix("\\x") else { return Ok(Self(text.as_bytes().to_vec())) };
        hex::decode(digits).map(Self).map_err(|_| "is not \\x and pairs of hexadecimal digits".to_owned())
    }
}

impl fmt::Display for RecordKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match str::from_utf8(&self.0) {
            // One that would be read as something else is shown in digits.
            Ok(text) if !text.starts_with("\\x") && printable(text) == text => formatter.pad(text),
            _ => formatter.pad(&format!("\\x{}", hex::encode(&self.0))),
        }
    }
}

impl Serialize for RecordKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_key_is_read_as_the_same_key() {
        for (bytes, shown) in [
            (&b"17"[..], "17"),
            ("caf\u{e9} 1".as_bytes(), "caf\u{e9} 1"),
            (b"\xff\x00", "\\xff00"),
            (b"\x1b[2J", "\\x1b5b324a"),
            (b"\\x7", "\\x5c7837"),
            (b"", ""),
        ] {
            let key = RecordKey(bytes.to_vec());
            assert_eq!(key.to_string(), shown);
            assert_eq!(RecordKey::parse(shown), Ok(key));
        }
        assert!(RecordKey::parse("\\x7").is_err() && RecordKey::parse("\\x+1").is_err());
    }
}
