//! Idempotency keys: a caller that repeats a request under the same key has its first answer again, and no second order.
//!
//! The field is that of draft-ietf-httpapi-idempotency-key-header. A key belongs to its caller. It stands for what was ordered, not
//! for the bytes that said so: a client that writes its fields in another order, or with other white space, repeats the same request.
//! Only what was accepted is kept, in the order's own statement; a request that was refused may be tried again under its key.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actix_web::http::header::HeaderMap;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::caller::Caller;
use crate::domain::NewOrder;

pub mod keeper;

/// The header that brings a key.
pub const HEADER: &str = "idempotency-key";

/// The header of an answer that was given before.
pub const REPLAYED: &str = "idempotency-replayed";

/// The longest key, in characters.
const LENGTH_MAX: usize = 255;

/// A caller's key, and what was ordered under it, as the database knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// Of the caller and its key: 128 bits of their SHA-256, so that no caller can find another one's, and nothing that callers make
    /// up is kept.
    pub key: Uuid,
    /// Of the order: 64 bits of its SHA-256. Whoever finds two orders with the same one fools nobody else.
    pub fingerprint: i64,
}

/// Why a header holds no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is there more than once.
    #[error("the header is there more than once")]
    Twice,
    /// It is empty.
    #[error("the key is empty")]
    Empty,
    /// It is too long.
    #[error("the key has more than {LENGTH_MAX} characters")]
    TooLong,
    /// It has characters that are not printable ASCII, or is quoted and not closed.
    #[error("the key is not printable ASCII, or its quotes are not closed")]
    Malformed,
}

impl IdempotencyKey {
    /// The key that `caller` gives to `order`, if it does.
    ///
    /// # Errors
    /// When the header is there and holds no key.
    pub fn of(headers: &HeaderMap, caller: &Caller, order: &NewOrder) -> Result<Option<Self>, KeyError> {
        let mut values = headers.get_all(HEADER);
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(KeyError::Twice);
        }
        let key = parse(value.as_bytes())?;
        Ok(Some(Self { key: key_of(caller.name(), &key), fingerprint: fingerprint_of(order) }))
    }
}

/// Reads a key: a quoted string of RFC 8941, as the draft asks for, or the bare text that most clients send. Both of the same text are
/// the same key.
fn parse(value: &[u8]) -> Result<Vec<u8>, KeyError> {
    let key = match value.strip_prefix(b"\"") {
        Some(quoted) => unquote(quoted).ok_or(KeyError::Malformed)?,
        None => value.to_vec(),
    };
    if key.is_empty() {
        return Err(KeyError::Empty);
    }
    if key.len() > LENGTH_MAX {
        return Err(KeyError::TooLong);
    }
    if !key.iter().all(|byte| matches!(byte, b' '..=b'~')) {
        return Err(KeyError::Malformed);
    }
    Ok(key)
}

/// What stands up to the closing quote, which must be the last byte. A backslash stands before a quote or a backslash only.
fn unquote(quoted: &[u8]) -> Option<Vec<u8>> {
    let (inner, b"\"") = quoted.split_at_checked(quoted.len().checked_sub(1)?)? else { return None };
    let mut key = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter();
    while let Some(&byte) = bytes.next() {
        key.push(match byte {
            b'"' => return None,
            b'\\' => *bytes.next().filter(|byte| matches!(byte, b'"' | b'\\'))?,
            byte => byte,
        });
    }
    Some(key)
}

fn key_of(caller: &str, key: &[u8]) -> Uuid {
    // With its length, so that no caller's name can run on into a key.
    let hash = Sha256::new().chain_update((caller.len() as u64).to_be_bytes()).chain_update(caller).chain_update(key);
    let hash = hash.finalize();
    Uuid::from_bytes(std::array::from_fn(|place| hash[place]))
}

fn fingerprint_of(order: &NewOrder) -> i64 {
    let hash = Sha256::new()
        .chain_update("POST /orders")
        .chain_update(order.user_id().to_be_bytes())
        .chain_update(order.product_id().to_be_bytes())
        .chain_update(order.quantity().to_be_bytes());
    let hash = hash.finalize();
    i64::from_be_bytes(std::array::from_fn(|place| hash[place]))
}

/// The keys whose requests this process is about to write.
#[derive(Debug, Default)]
pub struct Running(Mutex<HashSet<Uuid>>);

impl Running {
    /// Takes a key, if no other request has it. Requests of other processes are not known here: those meet in the database.
    #[must_use]
    pub fn claim(self: &Arc<Self>, key: IdempotencyKey) -> Option<Claim> {
        self.keys().insert(key.key).then(|| Claim { key, running: Arc::clone(self) })
    }

    fn keys(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        // Whoever panicked while it had the lock has not left half a set behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A key that is one request's until this is dropped.
#[derive(Debug)]
pub struct Claim {
    /// The key.
    pub key: IdempotencyKey,
    running: Arc<Running>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.running.keys().remove(&self.key.key);
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;
    use crate::auth::scopes::Scopes;

    fn of(caller: &str, values: &[&[u8]], body: &str) -> Result<Option<IdempotencyKey>, KeyError> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HeaderName::from_static(HEADER), HeaderValue::from_bytes(value).expect("a value"));
        }
        let order = NewOrder::from_json(body.as_bytes()).expect("an order");
        IdempotencyKey::of(&headers, &Caller::new(caller, None, Scopes::ALL), &order)
    }

    const ORDER: &str = r#"{"user_id": 1, "product_id": 2, "quantity": 3}"#;

    #[test]
    fn a_key_is_printable_bare_or_quoted_and_not_too_long() {
        let key = of("a", &[b"8e03978e"], ORDER).expect("a key");
        assert!(key.is_some());
        assert_eq!(of("a", &[b"\"8e03978e\""], ORDER), Ok(key), "both forms are the same key");
        assert_eq!(of("a", &[br#""a\"b\\c""#], ORDER), of("a", &[br#"a"b\c"#], ORDER));
        assert_eq!(of("a", &[], ORDER), Ok(None));
        assert!(of("a", &[&[b'k'; 255]], ORDER).is_ok());
        for (value, error) in [
            (&b""[..], KeyError::Empty),
            (b"\"\"", KeyError::Empty),
            (&[b'k'; 256], KeyError::TooLong),
            (b"\"", KeyError::Malformed),
            (b"\"open", KeyError::Malformed),
            (b"\"a\"b\"", KeyError::Malformed),
            (b"\"a\\\"", KeyError::Malformed),
            (b"\"a\\b\"", KeyError::Malformed),
            (b"\"a\";q=1", KeyError::Malformed),
            (b"caf\xc3\xa9", KeyError::Malformed),
            (b"a\tb", KeyError::Malformed),
        ] {
            assert_eq!(of("a", &[value], ORDER), Err(error), "{value:?}");
        }
        assert_eq!(of("a", &[b"a", b"a"], ORDER), Err(KeyError::Twice));
    }

    #[test]
    fn a_key_is_its_callers_alone_and_stands_for_the_order_and_not_its_spelling() {
        let key = |caller, value: &[u8], body| of(caller, &[value], body).expect("good").expect("there");
        let first = key("a", b"k", ORDER);
        assert_eq!(first, key("a", b"k", r#"{"quantity":3,"product_id":2,"note":"again","user_id":1}"#));
        assert_ne!(first.key, key("b", b"k", ORDER).key);
        assert_ne!(key("ab", b"c", ORDER).key, key("a", b"bc", ORDER).key);
        for other in [
            r#"{"user_id": 2, "product_id": 2, "quantity": 3}"#,
            r#"{"user_id": 1, "product_id": 3, "quantity": 3}"#,
            r#"{"user_id": 1, "product_id": 2, "quantity": 4}"#,
        ] {
            assert_eq!(first.key, key("a", b"k", other).key);
            assert_ne!(first.fingerprint, key("a", b"k", other).fingerprint, "{other}");
        }
    }

    #[test]
    fn a_key_is_one_requests_until_that_is_over() {
        let running = Arc::new(Running::default());
        let key = IdempotencyKey { key: Uuid::nil(), fingerprint: 1 };
        let claim = running.claim(key).expect("nobody has it");
        assert!(running.claim(IdempotencyKey { fingerprint: 2, ..key }).is_none());
        drop(claim);
        assert!(running.claim(key).is_some());
    }
}
