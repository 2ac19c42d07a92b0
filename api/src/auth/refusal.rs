//! Why a request is refused before anything is done for it: what its sender is told, what is counted, and what is logged.

use std::borrow::Cow;
use std::net::IpAddr;

use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpResponse, ResponseError as _};
use shared::throttle::Throttle;

use super::key::KeyId;
use super::scopes::Scope;
use crate::metrics::AuthMetrics;
use crate::problem::{Kind, Problem};

/// What is wrong with a request's credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// There are none.
    Missing,
    /// They are of no form that is taken.
    Malformed,
    /// There is no such API key.
    UnknownKey,
    /// There is, with another secret.
    WrongSecret,
    /// The API key was revoked.
    Revoked,
    /// The API key or the token has expired.
    Expired,
    /// The token is to be used later.
    NotYetValid,
    /// The token is no access token.
    WrongType,
    /// The token is signed in another way.
    WrongAlgorithm,
    /// The token is signed by somebody else, or was changed.
    WrongSignature,
    /// The token is signed with a key that the issuer does not have.
    UnknownKeyOfIssuer,
    /// The token is of another issuer.
    WrongIssuer,
    /// The token is for somebody else.
    WrongAudience,
    /// The token lacks a claim, or has one that cannot be read or has another value.
    WrongClaims,
    /// The token does not say whose orders it is for.
    NoUser,
    /// They are good, for other things.
    MissingScope(Scope),
    /// Whether they are good cannot be said now.
    Unavailable,
}

impl Reason {
    /// All of them, with one scope for both.
    pub const ALL: [Self; 17] = [
        Self::Missing,
        Self::Malformed,
        Self::UnknownKey,
        Self::WrongSecret,
        Self::Revoked,
        Self::Expired,
        Self::NotYetValid,
        Self::WrongType,
        Self::WrongAlgorithm,
        Self::WrongSignature,
        Self::UnknownKeyOfIssuer,
        Self::WrongIssuer,
        Self::WrongAudience,
        Self::WrongClaims,
        Self::NoUser,
        Self::MissingScope(Scope::Read),
        Self::Unavailable,
    ];

    /// Its label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::UnknownKey => "unknown_key",
            Self::WrongSecret => "wrong_secret",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::WrongType => "wrong_type",
            Self::WrongAlgorithm => "wrong_algorithm",
            Self::WrongSignature => "wrong_signature",
            Self::UnknownKeyOfIssuer => "unknown_issuer_key",
            Self::WrongIssuer => "wrong_issuer",
            Self::WrongAudience => "wrong_audience",
            Self::WrongClaims => "wrong_claims",
            Self::NoUser => "no_user",
            Self::MissingScope(_) => "missing_scope",
            Self::Unavailable => "unavailable",
        }
    }

    /// What the sender is told. Whether a key exists is nothing that can be found out: only who has the secret hears more.
    fn problem(self) -> Problem {
        let detail: Cow<'static, str> = match self {
            Self::Missing => "Send an API key or a token in the header Authorization: Bearer.".into(),
            Self::Malformed => "The header Authorization must be Bearer and one API key or token.".into(),
            Self::UnknownKey | Self::WrongSecret => "There is no such API key.".into(),
            Self::Revoked => "The API key was revoked.".into(),
            Self::Expired => "The API key or token has expired.".into(),
            Self::NotYetValid => "The token is not valid yet.".into(),
            Self::WrongType => "The token is no access token.".into(),
            Self::WrongAlgorithm | Self::WrongSignature | Self::UnknownKeyOfIssuer => {
                "The signature of the token is not good.".into()
            }
            Self::WrongIssuer => "The token is of another issuer.".into(),
            Self::WrongAudience => "The token is for another audience.".into(),
            Self::WrongClaims => "The token lacks a claim, or has one that cannot be read or has another value.".into(),
            Self::NoUser => "The token does not say whose orders it is for.".into(),
            Self::MissingScope(scope) => format!("This needs the scope {}.", scope.name()).into(),
            Self::Unavailable => "Whether the credentials are good cannot be said now.".into(),
        };
        let kind = match self {
            Self::MissingScope(_) => Kind::Forbidden,
            Self::Unavailable => Kind::Unavailable,
            _ => Kind::Unauthorized,
        };
        Problem::new(kind, detail)
    }

    /// What `WWW-Authenticate` says: RFC 6750, section 3.
    const fn challenge(self) -> Option<&'static str> {
        match self {
            Self::Unavailable => None,
            Self::Missing => Some("Bearer realm=\"outrider\""),
            Self::MissingScope(Scope::Read) => {
                Some("Bearer realm=\"outrider\", error=\"insufficient_scope\", scope=\"orders:read\"")
            }
            Self::MissingScope(Scope::Write) => {
                Some("Bearer realm=\"outrider\", error=\"insufficient_scope\", scope=\"orders:write\"")
            }
            _ => Some("Bearer realm=\"outrider\", error=\"invalid_token\""),
        }
    }

    /// The answer.
    #[must_use]
    pub fn response(self) -> HttpResponse {
        let mut response = self.problem().error_response();
        if let Some(challenge) = self.challenge() {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response
    }
}

/// Takes note of what was refused.
#[derive(Debug)]
pub struct Refusals {
    metrics: AuthMetrics,
    /// By reason.
    log: Throttle,
}

impl Refusals {
    /// Counts in `metrics`.
    #[must_use]
    pub const fn new(metrics: AuthMetrics) -> Self {
        Self { metrics, log: Throttle::new() }
    }

    /// A request was refused. Who has sent it and which key it named may be logged; nothing else that it has sent is.
    pub fn note(&self, reason: Reason, address: Option<IpAddr>, key: Option<KeyId>) {
        self.metrics.refused(reason.name());
        // Nobody has tried to get in: anybody's first request, or the port's scanners.
        if reason == Reason::Missing {
            return;
        }
        if let Some(others) = self.log.pass(reason.name()) {
            tracing::warn!(
                reason = reason.name(),
                client.address = address.map(tracing::field::display),
                api_key = key.map(tracing::field::display),
                others_since_the_last = others,
                "a request was refused for its credentials"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_learns_whether_a_key_exists() {
        let [unknown, wrong] = [Reason::UnknownKey, Reason::WrongSecret];
        assert_eq!((unknown.problem(), unknown.challenge()), (wrong.problem(), wrong.challenge()));
    }

    #[test]
    fn what_is_refused_is_counted() {
        let refusals = Refusals::new(AuthMetrics::default());
        refusals.note(Reason::MissingScope(Scope::Read), None, None);
        assert_eq!(refusals.metrics.refused_so_far("missing_scope"), 1);
    }
}
