//! Tokens of an issuer: JSON Web Tokens (RFC 7519), of one algorithm, one issuer and for one audience.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::jwks::{Jwks, KeySet, NoKey};
use super::refusal::Reason;
use super::scopes::Scopes;
use super::settings::JwtConfig;
use crate::caller::Caller;

/// Tokens that were checked and are remembered. Beyond that, all are forgotten and checked again.
const CHECKED_MAX: usize = 10_000;

/// Checks tokens.
#[derive(Debug)]
pub struct Jwt {
    keys: Keys,
    validation: Validation,
    algorithm: Algorithm,
    issuer: String,
    leeway_secs: u64,
    user_claim: Option<String>,
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

/// What is read of a token, besides what [`Validation`] looks at.
#[derive(Debug, Deserialize)]
struct Claims {
    // Not a list of issuers, which the library would take too.
    iss: String,
    sub: String,
    exp: f64,
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl Jwt {
    /// Checks tokens as `config` says, with `keys`.
    #[must_use]
    pub fn new(config: &JwtConfig, keys: Keys) -> Self {
        let mut validation = Validation::new(config.algorithm);
        validation.set_issuer(&[&config.issuer]);
        validation.set_audience(&[&config.audience]);
        // A claim that is not there is not looked at otherwise.
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = config.leeway_secs;
        Self {
            keys,
            validation,
            algorithm: config.algorithm,
            issuer: config.issuer.clone(),
            leeway_secs: config.leeway_secs,
            user_claim: config.user_claim.clone(),
            checked: Mutex::default(),
        }
    }

    /// Whose token it is. Asks `gate` before it looks at a token that it does not remember.
    ///
    /// # Errors
    /// When it is not good, or there is no telling now.
    pub async fn verify(&self, token: &str, gate: impl FnOnce() -> Result<(), Reason>) -> Result<Caller, Reason> {
        let fingerprint: [u8; 32] = Sha256::digest(token).into();
        let current = match &self.keys {
            Keys::Secret(_) => None,
            Keys::Public(jwks) => Some(jwks.set().ok_or(Reason::Unavailable)?),
        };
        if let Some(caller) = self.remembered(&fingerprint, current.as_ref()) {
            return Ok(caller);
        }
        gate()?;
        let header = decode_header(token).map_err(|error| reason(&error))?;
        // Before a key is looked for, and for a key of that algorithm only: no token chooses how it is checked.
        if header.alg != self.algorithm {
            return Err(Reason::WrongAlgorithm);
        }
        // What must be understood is not: RFC 7515, section 4.1.11.
        if header.crit.is_some() {
            return Err(Reason::Malformed);
        }
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
        let expires = self.expires(claims.exp);
        let caller = self.caller(&claims)?.until(Some(expires));
        self.remember(fingerprint, Checked { caller: caller.clone(), expires, set });
        Ok(caller)
    }

    fn decode(&self, token: &str, key: &DecodingKey) -> Result<Claims, Reason> {
        decode(token, key, &self.validation).map(|data| data.claims).map_err(|error| match error.kind() {
            // The header was read before.
            ErrorKind::Json(_) => Reason::WrongClaims,
            _ => reason(&error),
        })
    }

    /// When a token is not taken any more.
    fn expires(&self, exp: f64) -> Instant {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Further away than any token lives, and no more than an instant can hold.
        let left = Duration::try_from_secs_f64((exp - now.as_secs_f64()).clamp(0.0, 1e9)).unwrap_or_default();
        Instant::now() + left + Duration::from_secs(self.leeway_secs)
    }

    fn caller(&self, claims: &Claims) -> Result<Caller, Reason> {
        if claims.iss != self.issuer {
            return Err(Reason::WrongIssuer);
        }
        let user_id = match &self.user_claim {
            None => None,
            // Whoever is to be bound and cannot be is nobody: not somebody who may see everything.
            Some(claim) => Some(claims.others.get(claim).and_then(user_id).ok_or(Reason::NoUser)?),
        };
        let name = format!("jwt:{}|{}", claims.iss, claims.sub);
        Ok(Caller::new(name, user_id, scopes(&claims.others)))
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

/// A user's id: a number, or its digits, since many issuers know texts only.
fn user_id(claim: &Value) -> Option<i64> {
    let id = match claim {
        Value::Number(number) => number.as_i64(),
        Value::String(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    };
    id.filter(|id| *id >= 1)
}

/// As in `scope` of RFC 9068, and as other issuers have it: `scp` or `scopes`, a list or a text with spaces.
fn scopes(claims: &Map<String, Value>) -> Scopes {
    let named = ["scope", "scp", "scopes"].iter().filter_map(|claim| claims.get(*claim));
    Scopes::named(named.flat_map(|value| match value {
        Value::String(text) => text.split(' ').collect(),
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect::<Vec<_>>(),
        _ => Vec::new(),
    }))
}

fn reason(error: &Error) -> Reason {
    match error.kind() {
        ErrorKind::ExpiredSignature => Reason::Expired,
        ErrorKind::ImmatureSignature => Reason::NotYetValid,
        ErrorKind::InvalidIssuer => Reason::WrongIssuer,
        ErrorKind::InvalidAudience => Reason::WrongAudience,
        ErrorKind::InvalidAlgorithm => Reason::WrongAlgorithm,
        ErrorKind::InvalidSignature => Reason::WrongSignature,
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) => Reason::WrongClaims,
        // Everything else is a text that is no token; `none` is no algorithm that there is a name for.
        _ => Reason::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::json;
    use shared::config::Secret;

    use super::super::scopes::Scope;
    use super::super::settings::KeysConfig;
    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn jwt(user_claim: Option<&str>) -> Jwt {
        let config = JwtConfig {
            algorithm: Algorithm::HS256,
            keys: KeysConfig::Secret(Secret::new("unused")),
            issuer: "me".to_owned(),
            audience: "orders".to_owned(),
            leeway_secs: 30,
            user_claim: user_claim.map(str::to_owned),
        };
        Jwt::new(&config, Keys::Secret(DecodingKey::from_secret(SECRET)))
    }

    fn token(change: &Value) -> String {
        let now = jsonwebtoken::get_current_timestamp();
        let mut claims = json!({ "iss": "me", "aud": "orders", "sub": "a", "exp": now + 100 });
        for (name, value) in change.as_object().expect("claims") {
            claims[name] = value.clone();
        }
        claims.as_object_mut().expect("claims").retain(|_, value| !value.is_null());
        encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(SECRET)).expect("a token")
    }

    async fn verify(change: Value) -> Result<Caller, Reason> {
        let jwt = jwt(None);
        let token = token(&change);
        let (first, again) = (jwt.verify(&token, || Ok(())).await, jwt.verify(&token, || Ok(())).await);
        assert_eq!(first, again, "and the same when it is remembered");
        first
    }

    #[tokio::test]
    async fn every_claim_is_looked_at() {
        let now = jsonwebtoken::get_current_timestamp();
        let caller = verify(json!({})).await.expect("good");
        assert_eq!((caller.name(), caller.user_id(), caller.scopes()), ("jwt:me|a", None, Scopes::default()));
        for good in [json!({ "exp": now - 20 }), json!({ "nbf": now + 20 }), json!({ "aud": ["x", "orders"] })] {
            assert!(verify(good.clone()).await.is_ok(), "{good}");
        }
        for (claims, expected) in [
            (json!({ "exp": now - 40 }), Reason::Expired),
            (json!({ "exp": null }), Reason::WrongClaims),
            (json!({ "exp": "tomorrow" }), Reason::WrongClaims),
            (json!({ "exp": 1e300 }), Reason::WrongClaims),
            (json!({ "nbf": now + 40 }), Reason::NotYetValid),
            (json!({ "nbf": "tomorrow" }), Reason::WrongClaims),
            (json!({ "iss": "you" }), Reason::WrongIssuer),
            (json!({ "iss": null }), Reason::WrongClaims),
            (json!({ "iss": ["me"] }), Reason::WrongClaims),
            (json!({ "aud": "others" }), Reason::WrongAudience),
            (json!({ "aud": [] }), Reason::WrongAudience),
            (json!({ "aud": null }), Reason::WrongClaims),
            (json!({ "sub": null }), Reason::WrongClaims),
            (json!({ "sub": 7 }), Reason::WrongClaims),
        ] {
            assert_eq!(verify(claims.clone()).await, Err(expected), "{claims}");
        }
    }

    #[tokio::test]
    async fn scopes_come_as_text_or_as_a_list() {
        for claims in [
            json!({ "scope": "openid orders:read" }),
            json!({ "scp": ["orders:read", 7] }),
            json!({ "scp": "orders:read" }),
            json!({ "scopes": ["orders:read"], "scope": 7 }),
        ] {
            let scopes = verify(claims.clone()).await.expect("good").scopes();
            assert!(scopes.has(Scope::Read) && !scopes.has(Scope::Write), "{claims}");
        }
    }

    #[tokio::test]
    async fn whoever_is_to_be_bound_and_cannot_be_is_refused() {
        let jwt = jwt(Some("uid"));
        for (claim, expected) in [(json!(7), 7), (json!("7"), 7)] {
            let caller = jwt.verify(&token(&json!({ "uid": claim })), || Ok(())).await.expect("good");
            assert_eq!(caller.user_id(), Some(expected));
        }
        for claim in
            [json!(null), json!(0), json!(-7), json!(7.5), json!("+7"), json!(""), json!("7a"), json!([7]), json!(1e30)]
        {
            assert_eq!(jwt.verify(&token(&json!({ "uid": claim })), || Ok(())).await, Err(Reason::NoUser), "{claim}");
        }
    }
}
