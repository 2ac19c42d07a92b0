//! The text of an API key: `outrider_<id>_<secret><checksum>`, all of it lower-case hexadecimal digits behind the prefix.
//!
//! The prefix lets scanners find keys that were left in code or logs; the checksum lets them, and us, tell a key from something that
//! only looks like one, without asking a database. As a pattern: `outrider_[0-9a-f]{16}_[0-9a-f]{72}`.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// What every key begins with.
pub const PREFIX: &str = "outrider_";

const ID_DIGITS: usize = 16;
const SECRET_DIGITS: usize = 64;
const CHECKSUM_DIGITS: usize = 8;

/// The part of a key that is no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId(u64);

impl KeyId {
    /// From its 16 digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == ID_DIGITS && is_hex(text)).then(|| u64::from_str_radix(text, 16).ok().map(Self))?
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

/// A key: whoever has it may do what the database says of it.
#[derive(Clone)]
#[cfg_attr(test, derive(PartialEq, Eq))]
pub struct ApiKey {
    id: KeyId,
    secret: [u8; 32],
}

impl ApiKey {
    /// A key of random numbers: for the secret, they must come from a generator that nobody can predict.
    #[must_use]
    pub const fn from_random(id: u64, secret: [u8; 32]) -> Self {
        Self { id: KeyId(id), secret }
    }

    /// Reads one. None: it is not of this form, or mistyped.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let id = KeyId::parse(id)?;
        if secret.len() != SECRET_DIGITS + CHECKSUM_DIGITS || !is_hex(secret) {
            return None;
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(secret.get(..SECRET_DIGITS)?, &mut bytes).ok()?;
        let key = Self { id, secret: bytes };
        // Not a comparison with anything secret: the checksum follows from what the client sent.
        (secret.get(SECRET_DIGITS..)? == key.checksum()).then_some(key)
    }

    /// What is looked up.
    #[must_use]
    pub const fn id(&self) -> KeyId {
        self.id
    }

    /// What is kept of the secret.
    #[must_use]
    pub fn secret_hash(&self) -> [u8; 32] {
        Sha256::digest(self.secret).into()
    }

    /// The whole key, for the one who is to have it.
    #[must_use]
    pub fn expose(&self) -> String {
        format!("{PREFIX}{}_{}{}", self.id, hex::encode(self.secret), self.checksum())
    }

    fn checksum(&self) -> String {
        let hash = Sha256::new()
            .chain_update(b"outrider api key")
            .chain_update(self.id.0.to_be_bytes())
            .chain_update(self.secret);
        let mut digits = hex::encode(hash.finalize());
        digits.truncate(CHECKSUM_DIGITS);
        digits
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ApiKey({}, ..)", self.id)
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written() {
        let key = ApiKey::from_random(0x00ab, std::array::from_fn(|place| u8::try_from(place * 8).expect("a byte")));
        let text = key.expose();
        assert!(text.starts_with("outrider_00000000000000ab_0008101820"), "{text}");
        assert_eq!(text.len(), 98);
        assert_eq!(ApiKey::parse(&text), Some(key.clone()));
        assert_eq!(format!("{key:?}"), "ApiKey(00000000000000ab, ..)");
        assert_eq!(KeyId::parse("00000000000000ab"), Some(key.id()));
    }

    #[test]
    fn what_is_mistyped_is_no_key() {
        let text = ApiKey::from_random(1, [7; 32]).expose();
        for wrong in [
            "",
            "outrider_",
            &text[1..],
            &text[..97],
            &format!("{text}0"),
            &text.to_uppercase(),
            &text.replacen("07", "17", 1),
            &text.replacen("0001_", "0002_", 1),
            &text.replacen("07", "é", 1),
            &text.replacen('_', "", 1),
        ] {
            assert_eq!(ApiKey::parse(wrong), None, "{wrong}");
        }
        for wrong in ["", "1", "+000000000000001", "000000000000000G", "00000000000000001"] {
            assert_eq!(KeyId::parse(wrong), None, "{wrong}");
        }
    }
}
