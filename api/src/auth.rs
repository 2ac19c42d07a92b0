//! Who may do what: asks each request for its credentials before anything is done for it, and counts what its caller asks for.
//!
//! Credentials are an API key ([`key`], [`keys`]) or a token of an issuer ([`jwt`], [`jwks`]), as `Authorization: Bearer` (RFC 6750). What
//! orders a caller may see and change then is decided where they are read and changed, by [`crate::caller::Caller::user_id`].

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::body::BoxBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderMap};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage as _, HttpRequest, HttpResponse, ResponseError as _};
use shared::health::Readiness;
use shared::shutdown::Shutdown;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::gate::Gate;
use self::jwks::Jwks;
use self::jwt::Jwt;
use self::key::{ApiKey, KeyId};
use self::keys::Keys;
use self::refusal::{Reason, Refusals};
use self::scopes::Scope;
use self::settings::{AuthConfig, JwtConfig, KeysConfig};
use crate::caller::Caller;
use crate::config::Limits;
use crate::metrics::AuthMetrics;
use crate::problem::{Kind, Problem};
use crate::rate::{Meter, Payer, Rate, TooMuch};
use crate::routes;
use crate::server::State;
use crate::shares::{Share, Shares};
use crate::store::Orders;
use crate::store::api_keys::ApiKeys;

pub mod gate;
pub mod jwks;
pub mod jwt;
pub mod key;
pub mod keys;
pub mod refusal;
pub mod scopes;
pub mod settings;

/// Stands at the door.
#[derive(Debug)]
pub struct Guard {
    /// None: nobody is asked for credentials.
    credentials: Option<Credentials>,
    rate: Option<Arc<Rate>>,
    /// Requests under way.
    requests: Arc<Shares<Payer>>,
    refusals: Refusals,
    metrics: AuthMetrics,
}

#[derive(Debug)]
struct Credentials {
    keys: Keys,
    jwt: Option<Jwt>,
    gate: Gate,
    stream: Duration,
}

/// What comes with a request that says who sends it.
enum Shown<'a> {
    Key(ApiKey),
    Token(&'a str),
}

/// A caller's share of the requests under way: in the extensions of an answer, until that is sent.
pub type RequestShare = Share<Payer>;

/// Why a request goes no further.
#[derive(Debug, Clone, Copy)]
enum Refused {
    Credentials(Reason),
    Rate,
    Share,
}

impl Guard {
    /// A guard as `config` says, which asks the database of `orders` for API keys. What it has to keep up to date, it keeps in `tasks`, which end with the
    /// shutdown.
    ///
    /// # Errors
    /// When there can be no client for HTTP.
    pub fn start(
        (config, limits): (&AuthConfig, &Limits),
        orders: &Orders,
        metrics: AuthMetrics,
        (readiness, shutdown): (&Readiness, &Shutdown),
        tasks: &mut JoinSet<()>,
    ) -> anyhow::Result<Self> {
        let credentials = match &config.required {
            None => {
                tracing::warn!("API_AUTH=none: whoever reaches the API port may read, make and change all orders");
                None
            }
            Some(required) => {
                let keys = Keys::new(ApiKeys::new(orders.clone()), required.keys_cache, limits.connect_timeout());
                tasks.spawn(keys::Keeper::new(keys.clone()).run(shutdown.clone()));
                let jwt = required.jwt.as_ref().map(|jwt| start_jwt(jwt, (readiness, shutdown), tasks)).transpose()?;
                tracing::info!(jwt = jwt.is_some(), "API_AUTH=required: the API asks for credentials");
                let gate = Gate::default();
                tasks.spawn(gate.keep_forgetting(shutdown.clone()));
                Some(Credentials { keys, jwt, gate, stream: required.stream })
            }
        };
        let rate = config.rate.map(|rate| Arc::new(Rate::new(rate)));
        if let Some(rate) = &rate {
            tasks.spawn(Arc::clone(rate).keep_forgetting(shutdown.clone()));
        }
        let requests = Shares::new(limits.requests_max());
        Ok(Self { credentials, rate, requests, refusals: Refusals::new(metrics.clone()), metrics })
    }

    /// Whether nobody is asked for credentials.
    #[must_use]
    pub const fn lets_anybody_in(&self) -> bool {
        self.credentials.is_none()
    }

    /// When an event stream of `caller` has to end, so that its credentials are looked at again.
    #[must_use]
    pub fn stream_end(&self, caller: &Caller) -> Option<Instant> {
        let latest = Instant::now() + self.credentials.as_ref()?.stream;
        Some(caller.expires().map_or(latest, |expires| expires.min(latest)))
    }

    /// Counts the orders of a batch, whose request counts as one already.
    ///
    /// # Errors
    /// When there are too many of them.
    pub fn count_orders(&self, request: &HttpRequest, count: usize) -> Result<(), Problem> {
        let extensions = request.extensions();
        let (Some(rate), Some(meter)) = (&self.rate, extensions.get::<Meter>()) else { return Ok(()) };
        rate.orders(meter, count).map_err(|error| match error {
            TooMuch::Now => {
                self.metrics.rate_limited.inc();
                too_many()
            }
            TooMuch::Ever { burst } => Problem::new(
                Kind::InvalidBatch,
                format!("The list has {count} orders; a caller may send {burst} at once (API_RATE_BURST)."),
            ),
        })
    }

    /// Serves a request, if its credentials are good for it.
    async fn pass(&self, request: ServiceRequest, next: Next<BoxBody>) -> Result<ServiceResponse<BoxBody>, Error> {
        let mut response = match self.admit(&request).await {
            Ok(share) => {
                let mut response = next.call(request).await?;
                // Until the answer is sent.
                response.response_mut().extensions_mut().insert(share);
                response
            }
            Err(refused) => request.into_response(self.refuse(refused)),
        };
        if let Some(rate) = &self.rate {
            // In a statement of its own, or the request would still be borrowed.
            let meter = response.request().extensions_mut().remove::<Meter>();
            if let Some(meter) = meter {
                rate.tell(&meter, response.headers_mut());
            }
        }
        Ok(response)
    }

    async fn admit(&self, request: &ServiceRequest) -> Result<RequestShare, Refused> {
        let address = request.peer_addr().map(|address| address.ip());
        let caller = match &self.credentials {
            None => None,
            Some(credentials) => {
                let (caller, key) = credentials.caller(request.headers(), address).await;
                let note = |reason| {
                    credentials.gate.refused(reason, address);
                    self.refusals.note(reason, address, key);
                    Refused::Credentials(reason)
                };
                let caller = caller.map_err(note)?;
                let needed = Scope::needed(request.method());
                if !caller.scopes().has(needed) {
                    return Err(note(Reason::MissingScope(needed)));
                }
                Some(caller)
            }
        };
        let payer = Payer::known_or_at(caller.as_ref().and_then(Caller::known_name), request.peer_addr());
        if let Some(rate) = &self.rate {
            let (meter, counted) = rate.request(payer.clone());
            request.extensions_mut().insert(meter);
            counted.map_err(|_| Refused::Rate)?;
        }
        let share = self.requests.take(payer).ok_or(Refused::Share)?;
        if let Some(caller) = caller {
            request.extensions_mut().insert(caller);
        }
        Ok(share)
    }

    fn refuse(&self, refused: Refused) -> HttpResponse {
        match refused {
            Refused::Credentials(reason) => reason.response(),
            Refused::Rate => {
                self.metrics.rate_limited.inc();
                too_many().error_response()
            }
            Refused::Share => {
                Problem::new(Kind::Overloaded, "Too many requests of this caller are being served.").error_response()
            }
        }
    }
}

impl Credentials {
    /// Whose credentials they are, and which API key they name, if they do.
    async fn caller(&self, headers: &HeaderMap, address: Option<IpAddr>) -> (Result<Caller, Reason>, Option<KeyId>) {
        let gate = || self.gate.check(address);
        match shown(headers) {
            Err(reason) => (Err(reason), None),
            Ok(Shown::Key(key)) => (self.keys.verify(&key, gate).await, Some(key.id())),
            Ok(Shown::Token(token)) => match &self.jwt {
                Some(jwt) => (jwt.verify(token, gate).await, None),
                None => (Err(Reason::Malformed), None),
            },
        }
    }
}

/// Serves `request` to `route`, if its credentials are good for it.
///
/// # Errors
/// Those of the service behind it.
pub async fn guard(
    route: &'static str,
    state: &State,
    request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    if routes::is_open(route) {
        return next.call(request).await;
    }
    state.guard.pass(request, next).await
}

fn shown(headers: &HeaderMap) -> Result<Shown<'_>, Reason> {
    let mut values = headers.get_all(header::AUTHORIZATION);
    let value = values.next().ok_or(Reason::Missing)?;
    if values.next().is_some() {
        return Err(Reason::Malformed);
    }
    let (scheme, credentials) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(Reason::Malformed)?;
    let credentials = credentials.trim_matches(' ');
    if !scheme.eq_ignore_ascii_case("Bearer") || credentials.is_empty() {
        return Err(Reason::Malformed);
    }
    if credentials.starts_with(key::PREFIX) {
        return ApiKey::parse(credentials).map(Shown::Key).ok_or(Reason::UnknownKey);
    }
    Ok(Shown::Token(credentials))
}

fn start_jwt(
    config: &JwtConfig,
    (readiness, shutdown): (&Readiness, &Shutdown),
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<Jwt> {
    let keys = match &config.keys {
        KeysConfig::Secret(secret) => {
            jwt::Keys::Secret(jsonwebtoken::DecodingKey::from_secret(secret.expose().as_bytes()))
        }
        KeysConfig::Jwks { source, refresh, max_age } => {
            let (jwks, keeper) = Jwks::new(source.clone(), config.algorithm, (*refresh, *max_age), readiness.clone())?;
            tasks.spawn(keeper.run(shutdown.clone()));
            jwt::Keys::Public(jwks)
        }
    };
    Ok(Jwt::new(config, keys))
}

fn too_many() -> Problem {
    Problem::new(Kind::RateLimited, "Too many requests of this caller; the header Retry-After says when to go on.")
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    fn of(values: &[&str]) -> Result<&'static str, Reason> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).expect("a value"));
        }
        shown(&headers).map(|shown| match shown {
            Shown::Key(_) => "key",
            Shown::Token(_) => "token",
        })
    }

    #[test]
    fn credentials_are_one_key_or_token() {
        let key = format!("Bearer {}", ApiKey::from_random(1, [2; 32]).expose());
        assert_eq!(of(&[&key]), Ok("key"));
        assert_eq!(of(&["bearer  a.b.c "]), Ok("token"));
        assert_eq!(of(&[]), Err(Reason::Missing));
        for values in [&["Basic YTpi"][..], &["Bearer"], &["Bearer "], &["a.b.c"], &["Bearer é"], &[&key, &key]] {
            assert_eq!(of(values), Err(Reason::Malformed), "{values:?}");
        }
        assert_eq!(of(&[&key[..key.len() - 1]]), Err(Reason::UnknownKey), "mistyped");
    }
}
