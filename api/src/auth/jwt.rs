//! Tokens of an issuer: JSON Web Tokens (RFC 7519), of one algorithm, one issuer and for one audience.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use self::claims::{ClaimRules, Claims};
use self::strict_json::StrictObject;
use super::jwks::{Jwks, KeySet, NoKey};
use super::refusal::Reason;
use super::settings::JwtConfig;
use crate::caller::Caller;

pub mod claims;
mod header;
mod strict_json;

/// Tokens that were checked and are remembered. Beyond that, all are forgotten and checked again.
const CHECKED_MAX: usize = 10_000;

/// Checks tokens.
#[derive(Debug)]
pub struct Jwt {
    keys: Keys,
    validation: Validation,
    algorithm: Algorithm,
    issuer: String,
    audiences: Vec<String>,
    leeway_secs: u64,
    rules: ClaimRules,
    /// By the SHA-256 of the token, so that no token is kept. A signature costs a tenth of a millisecond to check, and a client sends the same token
    /// with each request.
    checked: Mutex<HashMap<[u8; 32], Checked>>,
}

/// What tokens are checked with.
#[derive(Debug)]
pub enum Keys {
    /// A secret that the issuer has too.
    Secret(DecodingKey),
    /// Its public keys.
    Public(Jwks),
}

/// A token that was good.
#[derive(Debug)]
struct Checked {
    caller: Caller,
    expires: Instant,
    /// The set that it was checked with; when another one takes its place, the key may be gone.
    set: Option<Arc<KeySet>>,
}

impl Jwt {
    /// Checks tokens as `config` says, with `keys`.
    #[must_use]
    pub fn new(config: &JwtConfig, keys: Keys) -> Self {
        let mut validation = Validation::new(config.algorithm);
        validation.set_issuer(&[&config.issuer]);
        // By `ClaimRules::check`, which no token passes over: not every issuer names the audience in `aud`.
        validation.validate_aud = false;
        // A claim that is not there is not looked at otherwise.
        validation.set_required_spec_claims(&["exp", "iss", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = config.leeway_secs;
        Self {
            keys,
            validation,
            algorithm: config.algorithm,
            issuer: config.issuer.clone(),
            audiences: config.audiences.clone(),
            leeway_secs: config.leeway_secs,
            rules: config.claims.clone(),
            checked: Mutex::default(),
        }
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// When it is not good, or there is no telling now.
    pub async fn verify(&self, token: &str) -> Result<Caller, Reason> {
        let fingerprint: [u8; 32] = Sha256::digest(token).into();
        let current = match &self.keys {
            Keys::Secret(_) => None,
            Keys::Public(jwks) => Some(jwks.set().ok_or(Reason::Unavailable)?),
        };
        if let Some(caller) = self.remembered(&fingerprint, current.as_ref()) {
            return Ok(caller);
        }
        let header = decode_header(token).map_err(|error| reason(&error))?;
        // Before a key is looked for, and for a key of that algorithm only: no token chooses how it is checked.
        if header.alg != self.algorithm {
            return Err(Reason::WrongAlgorithm);
        }
        header::check(token)?;
        let (claims, set) = match &self.keys {
            Keys::Secret(key) => (self.decode(token, key)?, None),
            Keys::Public(jwks) => {
                let id = header.kid.as_deref();
                let set = jwks.set_with(id).await.map_err(|error| match error {
                    NoKey::Unknown => Reason::UnknownKeyOfIssuer,
                    NoKey::Unavailable => Reason::Unavailable,
                })?;
                let key = set.key(id).ok_or(Reason::UnknownKeyOfIssuer)?;
                (self.decode(token, key)?, Some(Arc::clone(&set)))
            }
        };
        let (caller, expires) = self.caller(&claims)?;
        self.remember(fingerprint, Checked { caller: caller.clone(), expires, set });
        Ok(caller)
    }

    fn decode(&self, token: &str, key: &DecodingKey) -> Result<Claims, Reason> {
        decode::<StrictObject>(token, key, &self.validation).map(|data| data.claims.0).map_err(|error| {
            match error.kind() {
                // The header was read before.
                ErrorKind::Json(_) => Reason::WrongClaims,
                _ => reason(&error),
            }
        })
    }

    /// When a token is not taken any more.
    fn expires(&self, exp: f64) -> Instant {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Further away than any token lives, and no more than an instant can hold.
        let left = Duration::try_from_secs_f64((exp - now.as_secs_f64()).clamp(0.0, 1e9)).unwrap_or_default();
        Instant::now() + left + Duration::from_secs(self.leeway_secs)
    }

    /// Whose token it is, and until when.
    fn caller(&self, claims: &Claims) -> Result<(Caller, Instant), Reason> {
        // Not a list of issuers, which the library would take too.
        if claims.get("iss").and_then(Value::as_str).ok_or(Reason::WrongClaims)? != self.issuer {
            return Err(Reason::WrongIssuer);
        }
        if claims::is_for_something_else(claims) {
            return Err(Reason::WrongType);
        }
        self.rules.check(claims, &self.audiences)?;
        let expires = self.expires(claims.get("exp").and_then(Value::as_f64).ok_or(Reason::WrongClaims)?);
        let name = format!("jwt:{}|{}", self.issuer, claims::subject(claims)?);
        let caller = Caller::new(name, self.rules.user_id(claims)?, self.rules.scopes(claims));
        Ok((caller.until(Some(expires)), expires))
    }

    fn remembered(&self, fingerprint: &[u8; 32], current: Option<&Arc<KeySet>>) -> Option<Caller> {
        let checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        let found = checked.get(fingerprint)?;
        let same = match (&found.set, current) {
            (None, None) => true,
            (Some(set), Some(current)) => Arc::ptr_eq(set, current),
            _ => false,
        };
        (same && Instant::now() < found.expires).then(|| found.caller.clone())
    }

    fn remember(&self, fingerprint: [u8; 32], token: Checked) {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if checked.len() >= CHECKED_MAX {
            checked.clear();
        }
        checked.insert(fingerprint, token);
    }
}

fn reason(error: &Error) -> Reason {
    match error.kind() {
        ErrorKind::ExpiredSignature => Reason::Expired,
        ErrorKind::ImmatureSignature => Reason::NotYetValid,
        ErrorKind::InvalidIssuer => Reason::WrongIssuer,
        ErrorKind::InvalidAlgorithm => Reason::WrongAlgorithm,
        ErrorKind::InvalidSignature => Reason::WrongSignature,
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) => Reason::WrongClaims,
        // Everything else is a text that is no token; `none` is no algorithm that there is a name for.
        _ => Reason::Malformed,
    }
}

#[cfg(test)]
mod tests;
