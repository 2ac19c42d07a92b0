//! Positions in a stream, as clients hold them: signed, so that only those that this service gave out are read.
//!
//! A position says which rows its reader has had. One that is made up could call the whole outbox late, and Postgres would sort all of it at each
//! resume.
//!
//! The text is `KEY.POSITION.SIGNATURE`, and within a page `KEY.POSITION.SIGNATURE.ROW`, where `POSITION` is what all rows of the page share. So
//! a page is signed once, for all its rows and readers. A reader that makes up the row only skips rows of that page, or has them twice.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use shared::shutdown::Shutdown;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::cursor::{Cursor, TEXT_MAX};
use super::snapshot::Snapshot;
use crate::store::cursor_keys::SECRET_BYTES;
use crate::store::{Orders, StoreError};

/// Bytes of a signature: half of an HMAC-SHA256 (RFC 2104 takes no less).
const SIGNATURE_BYTES: usize = 16;

/// How often the keys are looked at: another process may have made one, and the newest may be due.
const REFRESH: Duration = Duration::from_hours(1);

/// The shortest time between two looks for a key that is not known. Anybody can name one.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Why a text is no position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// It does not have the form.
    Malformed,
    /// We have not signed it, or so long ago that its key is gone.
    Unsigned,
}

#[derive(Debug, Clone)]
struct Key {
    id: u64,
    mac: Hmac<Sha256>,
}

/// The keys for positions.
#[derive(Debug)]
pub struct CursorKeys {
    /// The newest first. Empty: none could be read yet.
    keys: RwLock<Arc<[Key]>>,
    looked: Mutex<Option<Instant>>,
}

impl CursorKeys {
    /// Without keys: no position holds.
    #[must_use]
    pub fn empty() -> Self {
        Self { keys: RwLock::new(Arc::new([])), looked: Mutex::new(None) }
    }

    /// Reads the keys, makes one if the newest is due, and does so again from time to time until the shutdown.
    pub async fn keep(&self, orders: &Orders, shutdown: &Shutdown) {
        while shutdown.sleep(REFRESH).await {
            if let Err(error) = self.refresh(orders).await {
                tracing::warn!(error = %error, "the keys for positions in event streams cannot be read, will try again");
            }
        }
    }

    /// Reads the keys, and makes one if the newest is due.
    ///
    /// # Errors
    /// When Postgres does not say. Then those that were read before still hold.
    pub async fn refresh(&self, orders: &Orders) -> Result<(), StoreError> {
        let mut stored = orders.cursor_keys().await?;
        if stored.first().is_none_or(|newest| newest.is_due) {
            orders.add_cursor_key(rand::random::<[u8; SECRET_BYTES]>()).await?;
            stored = orders.cursor_keys().await?;
        }
        let keys = stored.into_iter().filter_map(|key| Key::new(key.id, &key.secret)).collect();
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }

    /// Whether there is a key to sign with.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    /// A position as a client holds it.
    #[must_use]
    pub fn sign(&self, cursor: &Cursor) -> String {
        match &cursor.part {
            None => self.seal(cursor.to_string()),
            Some(part) => format!("{}{:x}", self.prefix(cursor, &part.next), part.after),
        }
    }

    /// The text that, with a row's id in hexadecimal digits behind it, is the position after that row, one of those that `next` sees.
    #[must_use]
    pub fn prefix(&self, cursor: &Cursor, next: &Snapshot) -> String {
        let mut text = self.seal(cursor.until(next));
        text.push('.');
        text
    }

    fn seal(&self, text: String) -> String {
        let keys = self.all();
        // Without a key no stream begins; what is on its way meanwhile cannot be resumed.
        let Some(key) = keys.first() else { return text };
        let signed = format!("{:x}.{text}", key.id);
        let signature = key.mac(&signed).finalize().into_bytes();
        let signature = hex::encode(&signature[..SIGNATURE_BYTES]);
        format!("{signed}.{signature}")
    }

    /// Reads what a client holds. Looks for keys that other processes have made meanwhile.
    ///
    /// # Errors
    /// When it is none of ours.
    pub async fn read(&self, text: &str, orders: &Orders) -> Result<Cursor, Unreadable> {
        let parsed = Parsed::of(text).ok_or(Unreadable::Malformed)?;
        if self.key(parsed.key).is_none() {
            self.look_again(orders).await;
        }
        let key = self.key(parsed.key).ok_or(Unreadable::Unsigned)?;
        key.mac(parsed.signed).verify_truncated_left(&parsed.signature).map_err(|_| Unreadable::Unsigned)?;
        Ok(parsed.cursor)
    }

    async fn look_again(&self, orders: &Orders) {
        let mut looked = self.looked.lock().await;
        if looked.is_none_or(|at| at.elapsed() >= LOOK_AGAIN) {
            // Without an answer the key stays unknown.
            let _ = self.refresh(orders).await;
            *looked = Some(Instant::now());
        }
    }

    fn key(&self, id: u64) -> Option<Key> {
        self.all().iter().find(|key| key.id == id).cloned()
    }

    fn all(&self) -> Arc<[Key]> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Key {
    fn new(id: i64, secret: &[u8]) -> Option<Self> {
        Some(Self { id: u64::try_from(id).ok()?, mac: Hmac::new_from_slice(secret).ok()? })
    }

    fn mac(&self, text: &str) -> Hmac<Sha256> {
        let mut mac = self.mac.clone();
        mac.update(text.as_bytes());
        mac
    }
}

/// A text that has the form of a position.
struct Parsed<'a> {
    key: u64,
    signed: &'a str,
    signature: [u8; SIGNATURE_BYTES],
    cursor: Cursor,
}

impl<'a> Parsed<'a> {
    fn of(text: &'a str) -> Option<Self> {
        if text.len() > TEXT_MAX {
            return None;
        }
        let (front, last) = text.rsplit_once('.')?;
        // A row's id has at most half as many digits as a signature.
        let (signed, signature, row) = if last.len() == 2 * SIGNATURE_BYTES {
            (front, last, None)
        } else {
            let (signed, signature) = front.rsplit_once('.')?;
            (signed, signature, Some(last))
        };
        let (key, position) = signed.split_once('.')?;
        let cursor = match row {
            None => Cursor::parse(position),
            Some(row) => Cursor::parse(&format!("{position}.{row}")),
        };
        let mut bytes = [0; SIGNATURE_BYTES];
        hex::decode_to_slice(signature, &mut bytes).ok()?;
        Some(Self { key: u64::from_str_radix(key, 16).ok()?, signed, signature: bytes, cursor: cursor? })
    }
}

#[cfg(test)]
mod tests {
    use super::super::cursor::Part;
    use super::*;

    fn keys(ids: &[i64]) -> CursorKeys {
        let keys = ids.iter().filter_map(|id| Key::new(*id, &[u8::try_from(*id).unwrap(); SECRET_BYTES])).collect();
        CursorKeys { keys: RwLock::new(keys), looked: Mutex::new(None) }
    }

    /// Whether `text` is a position by what is known without asking Postgres.
    fn holds(keys: &CursorKeys, text: &str) -> Option<Cursor> {
        let parsed = Parsed::of(text)?;
        let mac = keys.key(parsed.key)?.mac(parsed.signed);
        mac.verify_truncated_left(&parsed.signature).ok().map(|()| parsed.cursor)
    }

    fn of(text: &str) -> Snapshot {
        Snapshot::parse(text).expect("a snapshot")
    }

    fn cursors() -> [Cursor; 2] {
        let whole = Cursor { cluster: 0xfeed, low: 7, position: 300, seen: of("10:20:10,14"), part: None };
        let within = Cursor { part: Some(Part { next: of("14:25:14,22"), after: 301 }), ..whole.clone() };
        [whole, within]
    }

    #[test]
    fn a_position_is_read_as_it_was_signed_also_when_another_key_has_taken_the_place() {
        for cursor in cursors() {
            let text = keys(&[1]).sign(&cursor);
            assert_eq!(holds(&keys(&[2, 1]), &text), Some(cursor), "{text}");
        }
    }

    #[test]
    fn a_position_holds_no_longer_with_a_character_changed_or_without_its_key() {
        let one = keys(&[1]);
        for cursor in cursors() {
            let text = one.sign(&cursor);
            assert_eq!(holds(&keys(&[2]), &text), None, "its key is gone");
            let row = if cursor.part.is_some() { text.rfind('.').unwrap() } else { text.len() };
            for place in 0..row {
                for other in ["0", "7", "f", ".", "_", "x", ""] {
                    let mut changed = text.clone();
                    changed.replace_range(place..=place, other);
                    assert!(changed == text || holds(&one, &changed).is_none(), "{text} as {changed}");
                }
            }
        }
    }

    #[test]
    fn no_text_of_another_form_is_a_position() {
        let text = keys(&[1]).sign(&cursors()[0]);
        let unsigned = cursors()[1].to_string();
        let long = format!("1.{}.1", "f".repeat(TEXT_MAX));
        for text in ["", ".", "7", unsigned.as_str(), &text[2..], &format!("{text}.7"), &format!("{text}."), &long] {
            assert_eq!(holds(&keys(&[1]), text), None, "{text}");
        }
    }
}
