//! API keys as this process knows them: what the database says of a key counts for a few seconds, so that a request costs no query.
//!
//! A key that is in use is read again before that time is over, by a task ([`Keeper`]): no request waits for it. A key that was
//! revoked is refused as soon as it is read again, so at the latest when that time is over.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use shared::shutdown::Shutdown;
use subtle::ConstantTimeEq as _;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::key::{ApiKey, KeyId};
use super::refusal::Reason;
use super::scopes::Scopes;
use crate::caller::Caller;
use crate::store::StoreError;
use crate::store::api_keys::{ApiKeys, StoredKey};

/// Keys that are known at once, those that do not exist included. Beyond that, a key is asked for with each request.
const KNOWN_MAX: usize = 10_000;
/// Requests that may ask the database for a key at the same time: whoever makes up keys must not take the pool from others.
const LOOKUPS_MAX: usize = 2;
/// Least time between two notes that a key was used.
const TOUCH_EVERY: Duration = Duration::from_mins(1);
/// What is compared with when there is no key, so that the answer takes as long. The SHA-256 of nothing that anybody knows.
const NO_HASH: [u8; 32] = [0; 32];

/// The keys. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Keys(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: ApiKeys,
    ttl: Duration,
    patience: Duration,
    known: RwLock<HashMap<KeyId, Arc<Known>>>,
    lookups: Semaphore,
}

/// What is known of a key.
#[derive(Debug)]
struct Known {
    /// Before it was read: what happened later may not be in it.
    read: Instant,
    /// Since it was read.
    used: AtomicBool,
    /// None: there is no such key.
    key: Option<Key>,
}

#[derive(Debug)]
struct Key {
    hash: [u8; 32],
    revoked: bool,
    caller: Caller,
}

impl Keys {
    /// The keys of `store`; what it says of one counts for `ttl`, and it has `patience` to say so.
    #[must_use]
    pub fn new(store: ApiKeys, ttl: Duration, patience: Duration) -> Self {
        let (known, lookups) = (RwLock::default(), Semaphore::new(LOOKUPS_MAX));
        Self(Arc::new(Inner { store, ttl, patience, known, lookups }))
    }

    /// Whose key it is. Asks `gate` before the database is asked.
    ///
    /// # Errors
    /// When it is not good, or there is no telling now.
    pub async fn verify(&self, key: &ApiKey, gate: impl FnOnce() -> Result<(), Reason>) -> Result<Caller, Reason> {
        let known = if let Some(known) = self.known(key.id()) {
            known
        } else {
            gate()?;
            self.look_up(key.id()).await?
        };
        let found = known.key.as_ref();
        // Whether there is such a key or not, and wherever the secrets differ: it takes the same time.
        let same: bool = key.secret_hash().ct_eq(found.map_or(&NO_HASH, |key| &key.hash)).into();
        let Some(found) = found else { return Err(Reason::UnknownKey) };
        if !same {
            return Err(Reason::WrongSecret);
        }
        if found.revoked {
            return Err(Reason::Revoked);
        }
        if found.caller.expires().is_some_and(|expires| expires <= Instant::now()) {
            return Err(Reason::Expired);
        }
        // Written once for each time that it is read, and not with each request: the line of memory stays shared.
        if !known.used.load(Ordering::Relaxed) {
            known.used.store(true, Ordering::Relaxed);
        }
        Ok(found.caller.clone())
    }

    fn known(&self, id: KeyId) -> Option<Arc<Known>> {
        let known = self.0.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&id).filter(|known| known.read.elapsed() < self.0.ttl).map(Arc::clone)
    }

    async fn look_up(&self, id: KeyId) -> Result<Arc<Known>, Reason> {
        let permit = timeout(self.0.patience, self.0.lookups.acquire()).await;
        let Ok(Ok(_permit)) = permit else { return Err(Reason::Unavailable) };
        // Whoever waited for the permit may have waited for the very same key.
        if let Some(known) = self.known(id) {
            return Ok(known);
        }
        let read = Instant::now();
        let found = self.0.store.read(&[id]).await.map_err(|error| {
            tracing::debug!(error = %error, "an API key cannot be looked up");
            Reason::Unavailable
        })?;
        let known = Arc::new(Known::new(found.into_iter().next(), read));
        self.keep(id, Arc::clone(&known));
        Ok(known)
    }

    fn keep(&self, id: KeyId, new: Arc<Known>) {
        let mut known = self.0.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_MAX {
            // Keys that do not exist go first: anybody can make up any number of them.
            known.retain(|_, known| known.key.is_some() && known.read.elapsed() < self.0.ttl);
        }
        if known.len() < KNOWN_MAX {
            known.insert(id, new);
        }
    }

    /// Reads the keys again that were used, forgets what is too old, and returns which keys were used.
    async fn refresh(&self) -> Result<Vec<KeyId>, StoreError> {
        let used: Vec<KeyId> = {
            let mut known = self.0.known.write().unwrap_or_else(PoisonError::into_inner);
            known.retain(|_, known| known.read.elapsed() < self.0.ttl);
            known.iter().filter(|(_, known)| known.used.load(Ordering::Relaxed)).map(|(id, _)| *id).collect()
        };
        if used.is_empty() {
            return Ok(used);
        }
        let read = Instant::now();
        let mut found: HashMap<KeyId, StoredKey> =
            self.0.store.read(&used).await?.into_iter().map(|key| (key.id, key)).collect();
        let mut known = self.0.known.write().unwrap_or_else(PoisonError::into_inner);
        for id in &used {
            known.insert(*id, Arc::new(Known::new(found.remove(id), read)));
        }
        Ok(used)
    }
}

impl Known {
    fn new(stored: Option<StoredKey>, read: Instant) -> Self {
        let key = stored.map(|stored| {
            let scopes = Scopes::named(stored.scopes.iter().map(String::as_str));
            let caller = Caller::new(format!("key:{}", stored.caller_id), stored.user_id, scopes);
            let expires = stored.expires_in.map(|left| read + left);
            Key { hash: stored.secret_hash, revoked: stored.revoked, caller: caller.until(expires) }
        });
        Self { read, used: AtomicBool::new(false), key }
    }
}

/// Keeps what is known of keys in use up to date, and notes in the database when they were used.
#[derive(Debug)]
pub struct Keeper {
    keys: Keys,
    touched: HashMap<KeyId, Instant>,
}

impl Keeper {
    /// For these keys.
    #[must_use]
    pub fn new(keys: Keys) -> Self {
        Self { keys, touched: HashMap::new() }
    }

    /// Does so until the shutdown.
    pub async fn run(mut self, shutdown: Shutdown) {
        // Twice in the time for which a key is known, so that the second try is in time when the first one fails.
        let every = self.keys.0.ttl / 3;
        while shutdown.sleep(every).await {
            match self.keys.refresh().await {
                Ok(used) => self.touch(&used).await,
                // Readiness says it, and whoever needs a key is told so.
                Err(error) => tracing::debug!(error = %error, "API keys cannot be read again"),
            }
        }
    }

    async fn touch(&mut self, used: &[KeyId]) {
        self.touched.retain(|_, at| at.elapsed() < TOUCH_EVERY);
        let due: Vec<KeyId> = used.iter().filter(|id| !self.touched.contains_key(id)).copied().collect();
        if due.is_empty() {
            return;
        }
        match self.keys.0.store.touch(&due).await {
            Ok(()) => self.touched.extend(due.into_iter().map(|id| (id, Instant::now()))),
            Err(error) => tracing::debug!(error = %error, "the use of API keys cannot be noted"),
        }
    }
}
