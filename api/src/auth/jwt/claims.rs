//! Which claim of a token says what: issuers differ in the names and the forms of audience, scopes and users.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::auth::refusal::Reason;
use crate::auth::scopes::{Scope, Scopes};

/// Where scopes are looked for unless a claim is named: RFC 9068, and what other issuers call them. All of them count.
const USUAL_SCOPE_CLAIMS: [&str; 3] = ["scope", "scp", "scopes"];
/// The longest subject, in bytes. OpenID Connect has at most 255; some issuers put a whole distinguished name there.
const SUBJECT_BYTES_MAX: usize = 1_024;
/// The event of a logout token: OpenID Connect Back-Channel Logout, section 2.4.
const LOGOUT_EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

/// The claims of a token.
pub type Claims = Map<String, Value>;

/// The name of a claim; dots lead into objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimPath(String);

impl ClaimPath {
    /// Reads a path.
    ///
    /// # Errors
    /// With what is wrong, when a part of it is empty.
    pub fn parse(text: &str) -> Result<Self, String> {
        let path = text.trim();
        if path.split('.').any(str::is_empty) {
            return Err(format!("has no claim's name, or a dot too many ('{text}' given)"));
        }
        Ok(Self(path.to_owned()))
    }

    /// Several of them, between commas.
    ///
    /// # Errors
    /// With what is wrong, when one of them is.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        text.split(',').map(Self::parse).collect()
    }

    /// The value there.
    #[must_use]
    pub fn find<'a>(&self, claims: &'a Claims) -> Option<&'a Value> {
        find(claims, &self.0)
    }
}

/// A whole name comes first and then the longest part of one, since names have dots too: `https://example.com/roles`, or a client of Keycloak's
/// that is called `orders.example.com`. Each object of a token is looked into once at most.
fn find<'a>(object: &'a Claims, path: &str) -> Option<&'a Value> {
    object.get(path).or_else(|| {
        path.rmatch_indices('.').find_map(|(dot, _)| match object.get(&path[..dot]) {
            Some(Value::Object(inner)) => find(inner, &path[dot + 1..]),
            _ => None,
        })
    })
}

/// Scopes by the names that an issuer has for them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScopeMap(HashMap<String, Scopes>);

impl ScopeMap {
    /// Reads `NAME=SCOPE,NAME=SCOPE`. A name that stands more than once stands for several scopes.
    ///
    /// # Errors
    /// With what is wrong, when an entry has no such form or its scope is none of ours.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut map: HashMap<String, Scopes> = HashMap::new();
        for entry in text.split(',') {
            // The last one: a name may be a URL with a query.
            let (name, scope) = entry.rsplit_once('=').map_or(("", ""), |(name, scope)| (name.trim(), scope.trim()));
            if name.is_empty() {
                return Err(format!("must be NAME=SCOPE,NAME=SCOPE ('{}' is in it)", entry.trim()));
            }
            let Some(scope) = Scope::by_name(scope) else {
                let known = Scope::ALL.map(Scope::name).join(" or ");
                return Err(format!("must map to {known} ('{scope}' given for '{name}')"));
            };
            let scopes = map.entry(name.to_owned()).or_default();
            *scopes = scopes.with(scope);
        }
        Ok(Self(map))
    }

    /// What these names stand for. Our own names need no entry.
    fn scopes<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Scopes {
        names.into_iter().fold(Scopes::default(), |all, name| {
            let mapped = self.0.get(name).copied().unwrap_or_default();
            all.union(mapped).union(Scopes::named([name]))
        })
    }
}

/// A claim without which no token is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequiredClaim {
    path: ClaimPath,
    /// What it must be or have. Without it, the claim must be there.
    value: Option<String>,
}

impl RequiredClaim {
    /// Reads `NAME` or `NAME=VALUE`, several of them between commas.
    ///
    /// # Errors
    /// With what is wrong, when one has no name or nothing behind its `=`.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        text.split(',').map(Self::parse).collect()
    }

    fn parse(text: &str) -> Result<Self, String> {
        let (path, value) = match text.split_once('=') {
            None => (text, None),
            Some((path, value)) => (path, Some(value.trim().to_owned())),
        };
        if value.as_deref() == Some("") {
            return Err(format!("has nothing behind the = ('{}' is in it)", text.trim()));
        }
        Ok(Self { path: ClaimPath::parse(path)?, value })
    }

    fn is_met(&self, claims: &Claims) -> bool {
        let Some(found) = self.path.find(claims) else { return false };
        let Some(wanted) = &self.value else { return !found.is_null() };
        match found {
            Value::Array(list) => list.iter().any(|element| is_written(element, wanted)),
            one => is_written(one, wanted),
        }
    }
}

/// Whether a text, a number or a boolean is written like that.
fn is_written(value: &Value, text: &str) -> bool {
    match value {
        Value::String(value) => value == text,
        Value::Number(number) => number.to_string() == text,
        Value::Bool(value) => text.parse() == Ok(*value),
        _ => false,
    }
}

/// Which claim says what.
#[derive(Debug, Clone)]
pub struct ClaimRules {
    /// Whom a token is for: a text or a list of texts.
    pub audience: ClaimPath,
    /// What its bearer may do, a text with spaces or a list of texts: the first of these that a token has. Without any, it is
    /// `USUAL_SCOPE_CLAIMS`.
    pub scopes: Vec<ClaimPath>,
    /// What the issuer calls our scopes.
    pub scope_map: ScopeMap,
    /// What else must be there.
    pub required: Vec<RequiredClaim>,
    /// The user to whose orders the caller is bound. Without it, callers are bound to no user.
    pub user: Option<ClaimPath>,
}

impl Default for ClaimRules {
    fn default() -> Self {
        Self {
            audience: ClaimPath("aud".to_owned()),
            scopes: Vec::new(),
            scope_map: ScopeMap::default(),
            required: Vec::new(),
            user: None,
        }
    }
}

impl ClaimRules {
    /// Refuses a token that is for none of `audiences`, or lacks a claim that it must have.
    ///
    /// # Errors
    /// With the reason.
    pub fn check(&self, claims: &Claims, audiences: &[String]) -> Result<(), Reason> {
        let named: Option<Vec<&str>> = match self.audience.find(claims) {
            Some(Value::String(one)) => Some(vec![one]),
            Some(Value::Array(list)) => list.iter().map(Value::as_str).collect(),
            _ => None,
        };
        let named = named.ok_or(Reason::WrongClaims)?;
        if !audiences.iter().any(|audience| named.contains(&audience.as_str())) {
            return Err(Reason::WrongAudience);
        }
        if self.required.iter().all(|required| required.is_met(claims)) { Ok(()) } else { Err(Reason::WrongClaims) }
    }

    /// What the bearer may do.
    #[must_use]
    pub fn scopes(&self, claims: &Claims) -> Scopes {
        if self.scopes.is_empty() {
            let usual = USUAL_SCOPE_CLAIMS.iter().filter_map(|claim| claims.get(*claim));
            return self.scope_map.scopes(usual.flat_map(names));
        }
        // Only the first: what an application may do for a user (`scp`) is no more for what the user could do elsewhere (`roles`).
        let first = self.scopes.iter().find_map(|path| path.find(claims));
        self.scope_map.scopes(first.into_iter().flat_map(names))
    }

    /// Whose orders the caller is bound to.
    ///
    /// # Errors
    /// When it is to be bound and cannot be.
    pub fn user_id(&self, claims: &Claims) -> Result<Option<i64>, Reason> {
        let Some(path) = &self.user else { return Ok(None) };
        // A caller without the claim is refused: unbound, it would see the orders of all users.
        path.find(claims).and_then(user_id).map(Some).ok_or(Reason::NoUser)
    }
}

/// The names in a text with spaces or in a list. A name in a list may have spaces.
fn names(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => text.split(' ').collect(),
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
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

/// Whom the token speaks of.
///
/// # Errors
/// When that is no text, an empty one or one without an end.
pub fn subject(claims: &Claims) -> Result<&str, Reason> {
    let subject = claims.get("sub").and_then(Value::as_str).ok_or(Reason::WrongClaims)?;
    if (1..=SUBJECT_BYTES_MAX).contains(&subject.len()) { Ok(subject) } else { Err(Reason::WrongClaims) }
}

/// Whether a token says of itself that it is for something else than calling an API. An issuer signs those with the same key, and often for the same
/// audience: ID tokens tell a client who has logged in, and lie in many logs and browsers.
#[must_use]
pub fn is_for_something_else(claims: &Claims) -> bool {
    // Cognito.
    let other_use = claims.get("token_use").is_some_and(|token_use| token_use != "access");
    // Keycloak, which has `Bearer` in access tokens. Other issuers may have anything there.
    let other_type = claims
        .get("typ")
        .and_then(Value::as_str)
        .is_some_and(|typ| ["ID", "Refresh", "Offline", "Logout"].iter().any(|other| typ.eq_ignore_ascii_case(other)));
    // OpenID Connect: hashes of what an ID token came with.
    let is_id_token = ["at_hash", "c_hash"].iter().any(|claim| claims.contains_key(*claim));
    let is_logout = claims.get("events").is_some_and(|events| events.get(LOGOUT_EVENT).is_some());
    other_use || other_type || is_id_token || is_logout
}

#[cfg(test)]
mod tests;
