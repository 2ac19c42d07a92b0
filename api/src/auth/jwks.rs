//! The public keys of an issuer of tokens (RFC 7517): read when the service starts, read again from time to time and when a token
//! names a key that is not known, and kept for a while when the issuer is away.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use shared::backoff::Backoff;
use shared::health::Readiness;
use shared::shutdown::Shutdown;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

/// The condition in `/readyz`.
pub const READY: &str = "jwks";

/// Least time between two readings that unknown keys ask for: whoever makes up key ids cannot make us ask the issuer more often.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// How long a request waits for the reading that it has asked for.
const ASK_PATIENCE: Duration = Duration::from_secs(2);
/// How long the issuer may take to answer.
const FETCH_PATIENCE: Duration = Duration::from_secs(5);
/// The longest set that is read, in bytes.
const SET_BYTES_MAX: usize = 1024 * 1024;
/// The shortest RSA key, in bytes: RFC 7518, section 3.3.
const RSA_BYTES_MIN: usize = 256;

/// Where a set is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// At the issuer's.
    Url(Url),
    /// In a file.
    File(PathBuf),
}

/// Why a set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It is no JSON Web Key Set.
    #[error("is no JSON Web Key Set")]
    NoSet,
    /// None of its keys can check tokens of the algorithm.
    #[error("holds no key for {0:?}")]
    NoKey(Algorithm),
    /// It is longer than anybody's.
    #[error("has more than {SET_BYTES_MAX} bytes")]
    TooLong,
    /// The issuer answers something else.
    #[error("is answered with status {0}")]
    Status(StatusCode),
    /// The issuer does not answer.
    #[error("cannot be fetched: {0}")]
    Fetch(#[source] reqwest::Error),
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    File(#[from] std::io::Error),
}

/// The keys of a set that can check tokens of one algorithm.
#[derive(Debug)]
pub struct KeySet {
    keys: Vec<(Option<String>, DecodingKey)>,
    /// What it was read from: the same text is the same set.
    text: Vec<u8>,
}

/// What is read of a set: a key that we cannot read does not spoil the others.
#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

impl KeySet {
    /// Reads the keys for `algorithm`, and passes all others over.
    ///
    /// # Errors
    /// When there is none.
    pub fn parse(text: &[u8], algorithm: Algorithm) -> Result<Self, Unusable> {
        let document: Document = serde_json::from_slice(text).map_err(|_| Unusable::NoSet)?;
        let keys = document.keys.into_iter().filter_map(|key| {
            let key: Jwk = serde_json::from_value(key).ok()?;
            let decoding = DecodingKey::from_jwk(&key).ok()?;
            is_for(&key, &decoding, algorithm).then_some((key.common.key_id, decoding))
        });
        let keys: Vec<_> = keys.collect();
        if keys.is_empty() { Err(Unusable::NoKey(algorithm)) } else { Ok(Self { keys, text: text.to_vec() }) }
    }

    /// The key with that id. A token without an id is checked with the only key that there is, if there is only one.
    #[must_use]
    pub fn key(&self, id: Option<&str>) -> Option<&DecodingKey> {
        match (id, self.keys.as_slice()) {
            (None, [(_, only)]) => Some(only),
            (None, _) => None,
            (Some(id), keys) => keys.iter().find(|(known, _)| known.as_deref() == Some(id)).map(|(_, key)| key),
        }
    }
}

/// Whether a key may check signatures of `algorithm`: by what kind of key it is, and by what its issuer says that it is for.
fn is_for(key: &Jwk, decoding: &DecodingKey, algorithm: Algorithm) -> bool {
    let (kind, named) = match (&key.algorithm, algorithm) {
        (AlgorithmParameters::RSA(_), Algorithm::RS256) => {
            let long =
                matches!(decoding.kind(), DecodingKeyKind::RsaModulusExponent { n, .. } if n.len() >= RSA_BYTES_MIN);
            (long, KeyAlgorithm::RS256)
        }
        (AlgorithmParameters::EllipticCurve(curve), Algorithm::ES256) => {
            (curve.curve == EllipticCurve::P256, KeyAlgorithm::ES256)
        }
        (AlgorithmParameters::OctetKeyPair(pair), Algorithm::EdDSA) => {
            (pair.curve == EllipticCurve::Ed25519, KeyAlgorithm::EdDSA)
        }
        _ => return false,
    };
    let signs = key.common.public_key_use.as_ref().is_none_or(|used| *used == PublicKeyUse::Signature);
    kind && signs && key.common.key_algorithm.is_none_or(|algorithm| algorithm == named)
}

/// What is known of an issuer's keys.
#[derive(Debug, Clone, Default)]
struct Known {
    /// The last set that could be read, and when that was.
    set: Option<(Arc<KeySet>, Instant)>,
    /// How often it was tried.
    attempts: u64,
    /// Whether the last try failed.
    failed: bool,
}

/// Why there is no key for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoKey {
    /// The issuer has no such key.
    Unknown,
    /// What keys the issuer has cannot be said now.
    Unavailable,
}

/// The keys of an issuer, kept up to date by a task.
#[derive(Debug)]
pub struct Jwks {
    known: watch::Receiver<Known>,
    max_age: Duration,
    wanted: Arc<Notify>,
    asked: Mutex<Option<Asked>>,
}

/// The last reading that an unknown key has asked for.
#[derive(Debug, Clone, Copy)]
struct Asked {
    at: Instant,
    attempts: u64,
}

/// Keeps a set up to date.
#[derive(Debug)]
pub struct Keeper {
    source: Source,
    algorithm: Algorithm,
    refresh: Duration,
    client: reqwest::Client,
    known: watch::Sender<Known>,
    wanted: Arc<Notify>,
    readiness: Readiness,
}

impl Jwks {
    /// The keys of `source`, and the task that keeps them. Until there is a set, the service is not ready: a wrong address is noticed when a new
    /// version is rolled out. Later on it stays ready without one, since callers with API keys are served all the same.
    ///
    /// # Errors
    /// When there can be no client for HTTP.
    pub fn new(
        source: Source,
        algorithm: Algorithm,
        (refresh, max_age): (Duration, Duration),
        readiness: Readiness,
    ) -> Result<(Self, Keeper), reqwest::Error> {
        shared::crypto::install();
        let client = reqwest::Client::builder()
            .timeout(FETCH_PATIENCE)
            // The address is the operator's; where it leads to is not for somebody else to say.
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        readiness.missing(READY, "the keys of the issuer were not read yet");
        let (sender, known) = watch::channel(Known::default());
        let wanted = Arc::new(Notify::new());
        let keeper =
            Keeper { source, algorithm, refresh, client, known: sender, wanted: Arc::clone(&wanted), readiness };
        Ok((Self { known, max_age, wanted, asked: Mutex::new(None) }, keeper))
    }

    /// The set as it is known, if that is not too old.
    #[must_use]
    pub fn set(&self) -> Option<Arc<KeySet>> {
        let known = self.known.borrow();
        known.set.as_ref().filter(|(_, read)| read.elapsed() <= self.max_age).map(|(set, _)| Arc::clone(set))
    }

    /// The set that has the key with that id; if none is known, the issuer is asked once more, unless it just was.
    ///
    /// # Errors
    /// When there is none.
    pub async fn set_with(&self, id: Option<&str>) -> Result<Arc<KeySet>, NoKey> {
        let found = |set: &Arc<KeySet>| set.key(id).is_some();
        if let Some(set) = self.set().filter(found) {
            return Ok(set);
        }
        if id.is_some() {
            self.ask().await;
        }
        match self.set() {
            Some(set) if found(&set) => Ok(set),
            // It may have the key by now.
            _ if self.known.borrow().failed => Err(NoKey::Unavailable),
            Some(_) => Err(NoKey::Unknown),
            None => Err(NoKey::Unavailable),
        }
    }

    /// Waits for one more reading, if it is not too soon for that.
    async fn ask(&self) {
        let mut known = self.known.clone();
        let attempts = known.borrow_and_update().attempts;
        {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            match *asked {
                // Somebody has asked already, and the answer is still to come.
                Some(last) if last.attempts == attempts => {}
                Some(last) if last.at.elapsed() < ASK_EVERY => return,
                _ => {
                    *asked = Some(Asked { at: Instant::now(), attempts });
                    self.wanted.notify_one();
                }
            }
        }
        let _ = timeout(ASK_PATIENCE, known.wait_for(|known| known.attempts > attempts)).await;
    }
}

impl Keeper {
    /// Keeps the set until the shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_mins(1));
        while !shutdown.is_requested() {
            let read = tokio::select! {
                read = self.read() => read,
                () = shutdown.requested() => return,
            };
            let wait = match read {
                Ok(set) => {
                    if backoff.attempts() > 0 {
                        tracing::info!("the keys of the issuer of tokens can be read again");
                    }
                    backoff.reset();
                    self.keep(set);
                    self.refresh
                }
                Err(error) => {
                    if backoff.attempts() == 0 {
                        tracing::warn!(
                            "the set of keys of the issuer of tokens {error}; the last one that was read counts for a while"
                        );
                    }
                    self.known.send_modify(|known| {
                        known.attempts += 1;
                        known.failed = true;
                    });
                    backoff.random_delay()
                }
            };
            tokio::select! {
                _ = shutdown.sleep(wait) => {}
                () = self.wanted.notified() => {}
            }
        }
    }

    fn keep(&self, set: KeySet) {
        self.known.send_modify(|known| {
            let now = Instant::now();
            match &mut known.set {
                // What was checked with it need not be checked again.
                Some((old, read)) if old.text == set.text => *read = now,
                other => *other = Some((Arc::new(set), now)),
            }
            known.attempts += 1;
            known.failed = false;
        });
        self.readiness.met(READY);
    }

    async fn read(&self) -> Result<KeySet, Unusable> {
        let text = match &self.source {
            Source::File(path) => tokio::fs::read(path).await?,
            Source::Url(url) => self.fetch(url.clone()).await?,
        };
        KeySet::parse(&text, self.algorithm)
    }

    async fn fetch(&self, url: Url) -> Result<Vec<u8>, Unusable> {
        // An address may hold a secret; whoever reads the log knows which one was set.
        let failed = |error: reqwest::Error| Unusable::Fetch(error.without_url());
        let mut answer = self.client.get(url).send().await.map_err(failed)?;
        if answer.status() != StatusCode::OK {
            return Err(Unusable::Status(answer.status()));
        }
        let mut text = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if text.len() + chunk.len() > SET_BYTES_MAX {
                return Err(Unusable::TooLong);
            }
            text.extend_from_slice(&chunk);
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn count(keys: &serde_json::Value, algorithm: Algorithm) -> usize {
        let text = json!({ "keys": keys }).to_string();
        KeySet::parse(text.as_bytes(), algorithm).map_or(0, |set| set.keys.len())
    }

    #[test]
    fn only_keys_of_the_algorithm_are_taken() {
        let rsa = |bytes: usize, more: &serde_json::Value| {
            // Four letters are three bytes.
            let mut key = json!({ "kty": "RSA", "e": "AQAB", "n": "__".repeat(bytes.div_ceil(3) * 2) });
            key.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            key
        };
        let good = rsa(258, &json!({ "kid": "a" }));
        assert_eq!(count(&json!([good, { "kty": "new" }, 7]), Algorithm::RS256), 1, "the others are passed over");
        assert_eq!(count(&json!([good]), Algorithm::ES256), 0);
        assert_eq!(count(&json!([good]), Algorithm::HS256), 0);
        for (bytes, more) in [(129, json!({})), (258, json!({ "use": "enc" })), (258, json!({ "alg": "PS256" }))] {
            assert_eq!(count(&json!([rsa(bytes, &more)]), Algorithm::RS256), 0, "{bytes} {more}");
        }
        let secret = json!([{ "kty": "oct", "k": "c2VjcmV0", "kid": "a" }]);
        for algorithm in [Algorithm::HS256, Algorithm::RS256, Algorithm::EdDSA] {
            assert_eq!(count(&secret, algorithm), 0, "a secret is no public key");
        }
        let curve = |name: &str| json!([{ "kty": "EC", "crv": name, "x": "AAAA", "y": "AAAA" }]);
        assert_eq!([count(&curve("P-256"), Algorithm::ES256), count(&curve("P-384"), Algorithm::ES256)], [1, 0]);
        for text in ["", "{}", "[]", "{\"keys\": 7}"] {
            assert!(matches!(KeySet::parse(text.as_bytes(), Algorithm::RS256), Err(Unusable::NoSet)), "{text}");
        }
    }

    #[test]
    fn a_token_without_an_id_means_the_only_key() {
        let key = |id: &str| json!({ "kty": "OKP", "crv": "Ed25519", "x": "AAAA", "kid": id });
        let of = |keys: serde_json::Value| {
            KeySet::parse(json!({ "keys": keys }).to_string().as_bytes(), Algorithm::EdDSA).expect("a set")
        };
        let one = of(json!([key("a")]));
        assert!(one.key(None).is_some() && one.key(Some("a")).is_some() && one.key(Some("b")).is_none());
        let two = of(json!([key("a"), key("b")]));
        assert!(two.key(None).is_none() && two.key(Some("b")).is_some());
    }
}
