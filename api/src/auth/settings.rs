//! Settings of who may do what: `API_AUTH`, `API_JWT_*`, `API_RATE_*`.

use std::path::PathBuf;
use std::time::Duration;

use jsonwebtoken::Algorithm;
use reqwest::Url;
use serde::Deserialize;
use shared::config::{ConfigError, Env, Secret, check_file};

use super::jwks::{KeySet, Source};
use super::jwt::claims::{ClaimPath, ClaimRules, RequiredClaim, ScopeMap};
use crate::config::within;

/// The shortest secret for HS256, in bytes: RFC 7518, section 3.2, asks for as many bits as the hash has.
const SECRET_BYTES_MIN: usize = 32;

/// Who may do what.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// Who is asked for credentials; none: nobody is.
    pub required: Option<Credentials>,
    /// How much a caller may ask for; none: as much as there is.
    pub rate: Option<RateConfig>,
}

/// Which credentials are taken, besides API keys.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// How long what the database says of an API key counts, and so how long a revoked one may still be taken.
    pub keys_cache: Duration,
    /// The longest that an event stream stays open before its reader has to show its credentials again.
    pub stream: Duration,
    /// Tokens of an issuer, if they are taken.
    pub jwt: Option<JwtConfig>,
}

/// Which tokens are taken.
#[derive(Debug, Clone)]
pub struct JwtConfig {
    /// The one algorithm.
    pub algorithm: Algorithm,
    /// Where its keys come from.
    pub keys: KeysConfig,
    /// What `iss` must be.
    pub issuer: String,
    /// Of whom the audience must be one, or have one.
    pub audiences: Vec<String>,
    /// By how much clocks may differ, in seconds.
    pub leeway_secs: u64,
    /// Which claim says what.
    pub claims: ClaimRules,
}

/// Where the keys for tokens come from.
#[derive(Debug, Clone)]
pub enum KeysConfig {
    /// A secret that the issuer has too.
    Secret(Secret),
    /// A set of public keys, which may change.
    Jwks {
        /// Where the set is.
        source: Source,
        /// How often it is read again.
        refresh: Duration,
        /// How long the last one that could be read counts.
        max_age: Duration,
    },
}

/// How much a caller may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateConfig {
    /// Requests a second.
    pub limit: u32,
    /// Requests at once.
    pub burst: u32,
}

#[derive(Deserialize)]
struct Variables {
    #[serde(default = "required")]
    auth: String,
    #[serde(default = "ten")]
    keys_cache_secs: u64,
    #[serde(default = "five_minutes")]
    sse_credentials_secs: u64,
    #[serde(default)]
    rate_limit: u32,
    rate_burst: Option<u32>,
}

#[derive(Deserialize)]
struct Jwt {
    algorithm: Option<String>,
    jwks_url: Option<String>,
    jwks_file: Option<PathBuf>,
    secret: Option<Secret>,
    issuer: Option<String>,
    audience: Option<String>,
    #[serde(default = "thirty")]
    leeway_secs: u64,
    #[serde(default = "aud")]
    audience_claim: String,
    scopes_claim: Option<String>,
    scope_map: Option<String>,
    required_claims: Option<String>,
    user_claim: Option<String>,
    #[serde(default = "refresh", deserialize_with = "shared::duration::deserialize")]
    jwks_refresh: Duration,
    #[serde(default = "max_age", deserialize_with = "shared::duration::deserialize")]
    jwks_max_age: Duration,
}

fn required() -> String {
    "required".to_owned()
}

fn aud() -> String {
    "aud".to_owned()
}

const fn ten() -> u64 {
    10
}

const fn thirty() -> u64 {
    30
}

const fn five_minutes() -> u64 {
    300
}

const fn refresh() -> Duration {
    Duration::from_mins(5)
}

const fn max_age() -> Duration {
    Duration::from_hours(24)
}

impl AuthConfig {
    /// Everybody may do everything, and as much as there is.
    #[must_use]
    pub const fn none() -> Self {
        Self { required: None, rate: None }
    }

    /// Reads them.
    ///
    /// # Errors
    /// When one is missing, cannot be parsed, is out of its bounds or contradicts another; the error names it.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let auth: Variables = env.section("API_")?;
        within("API_KEYS_CACHE_SECS", &auth.keys_cache_secs, 1..=300)?;
        within("API_SSE_CREDENTIALS_SECS", &auth.sse_credentials_secs, 1..=86_400)?;
        let required = match auth.auth.as_str() {
            "required" => Some(Credentials {
                keys_cache: Duration::from_secs(auth.keys_cache_secs),
                stream: Duration::from_secs(auth.sse_credentials_secs),
                jwt: JwtConfig::from_env(env)?,
            }),
            // A forgotten API_JWT_* is no reason to refuse: whoever says none is told in the log what that means.
            "none" => None,
            other => return Err(ConfigError::new("API_AUTH", format!("must be required or none ('{other}' given)"))),
        };
        Ok(Self { required, rate: RateConfig::new(auth.rate_limit, auth.rate_burst)? })
    }
}

impl RateConfig {
    const MAX: u32 = 1_000_000;

    fn new(limit: u32, burst: Option<u32>) -> Result<Option<Self>, ConfigError> {
        within("API_RATE_LIMIT", &limit, 0..=Self::MAX)?;
        let burst = burst.unwrap_or(limit);
        if limit == 0 {
            return Ok(None);
        }
        within("API_RATE_BURST", &burst, 1..=Self::MAX)?;
        Ok(Some(Self { limit, burst }))
    }
}

impl JwtConfig {
    /// None: no variable asks for tokens.
    fn from_env(env: &Env) -> Result<Option<Self>, ConfigError> {
        let jwt: Jwt = env.section("API_JWT_")?;
        let given = [
            jwt.algorithm.is_some(),
            jwt.jwks_url.is_some(),
            jwt.jwks_file.is_some(),
            jwt.secret.is_some(),
            jwt.issuer.is_some(),
            jwt.audience.is_some(),
            jwt.audience_claim != aud(),
            jwt.scopes_claim.is_some(),
            jwt.scope_map.is_some(),
            jwt.required_claims.is_some(),
            jwt.user_claim.is_some(),
        ];
        if !given.contains(&true) {
            return Ok(None);
        }
        let algorithm = algorithm(jwt.algorithm.as_deref())?;
        let keys = keys(&jwt, algorithm)?;
        within("API_JWT_LEEWAY_SECS", &jwt.leeway_secs, 0..=600)?;
        let claims = claim_rules(&jwt)?;
        let needed = |variable: &str, value: Option<String>| {
            value.ok_or_else(|| {
                ConfigError::new(variable, "is not set; tokens are taken of one issuer and for one audience only")
            })
        };
        Ok(Some(Self {
            algorithm,
            keys,
            issuer: needed("API_JWT_ISSUER", jwt.issuer)?,
            audiences: audiences(&needed("API_JWT_AUDIENCE", jwt.audience)?)?,
            leeway_secs: jwt.leeway_secs,
            claims,
        }))
    }
}

/// Several between commas: two names of one API, or the clients of an issuer that names no API.
fn audiences(text: &str) -> Result<Vec<String>, ConfigError> {
    let audiences: Vec<String> = text.split(',').map(|audience| audience.trim().to_owned()).collect();
    if audiences.iter().any(String::is_empty) {
        return Err(ConfigError::new("API_JWT_AUDIENCE", format!("has a comma too many ('{text}' given)")));
    }
    Ok(audiences)
}

fn claim_rules(jwt: &Jwt) -> Result<ClaimRules, ConfigError> {
    // All tokens have the same issuer: one for any API would be good.
    if jwt.audience_claim.trim() == "iss" {
        return Err(ConfigError::new("API_JWT_AUDIENCE_CLAIM", "must name a claim that says whom a token is for"));
    }
    let audience = ClaimPath::parse(&jwt.audience_claim);
    Ok(ClaimRules {
        audience: audience.map_err(|problem| ConfigError::new("API_JWT_AUDIENCE_CLAIM", problem))?,
        scopes: parsed("API_JWT_SCOPES_CLAIM", jwt.scopes_claim.as_ref(), ClaimPath::parse_list)?.unwrap_or_default(),
        scope_map: parsed("API_JWT_SCOPE_MAP", jwt.scope_map.as_ref(), ScopeMap::parse)?.unwrap_or_default(),
        required: parsed("API_JWT_REQUIRED_CLAIMS", jwt.required_claims.as_ref(), RequiredClaim::parse_list)?
            .unwrap_or_default(),
        user: parsed("API_JWT_USER_CLAIM", jwt.user_claim.as_ref(), ClaimPath::parse)?,
    })
}

/// The value of a variable that may be missing.
fn parsed<T>(
    variable: &str,
    text: Option<&String>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, ConfigError> {
    text.map(|text| parse(text)).transpose().map_err(|problem| ConfigError::new(variable, problem))
}

/// The one algorithm of tokens: what a token itself says only has to agree.
fn algorithm(name: Option<&str>) -> Result<Algorithm, ConfigError> {
    match name {
        Some("RS256") => Ok(Algorithm::RS256),
        Some("ES256") => Ok(Algorithm::ES256),
        Some("EdDSA") => Ok(Algorithm::EdDSA),
        Some("HS256") => Ok(Algorithm::HS256),
        other => Err(ConfigError::new(
            "API_JWT_ALGORITHM",
            format!(
                "must be RS256, ES256, EdDSA or HS256 ({})",
                other.map_or_else(|| "not set".to_owned(), |name| format!("'{name}' given"))
            ),
        )),
    }
}

fn keys(jwt: &Jwt, algorithm: Algorithm) -> Result<KeysConfig, ConfigError> {
    let source = match (&jwt.secret, &jwt.jwks_url, &jwt.jwks_file) {
        (Some(secret), None, None) if algorithm == Algorithm::HS256 => {
            if secret.expose().len() < SECRET_BYTES_MIN {
                return Err(ConfigError::new("API_JWT_SECRET", format!("must have {SECRET_BYTES_MIN} bytes or more")));
            }
            return Ok(KeysConfig::Secret(secret.clone()));
        }
        (None, Some(url), None) if algorithm != Algorithm::HS256 => Source::Url(jwks_url(url)?),
        (None, None, Some(path)) if algorithm != Algorithm::HS256 => {
            check_file("API_JWT_JWKS_FILE", Some(path))?;
            let unusable = |reason: String| ConfigError::new("API_JWT_JWKS_FILE", reason);
            let text = std::fs::read(path).map_err(|error| unusable(format!("cannot be read: {error}")))?;
            KeySet::parse(&text, algorithm).map_err(|error| unusable(format!("'{}' {error}", path.display())))?;
            Source::File(path.clone())
        }
        _ if algorithm == Algorithm::HS256 => {
            return Err(ConfigError::new(
                "API_JWT_SECRET",
                "must be set for HS256, and API_JWT_JWKS_URL and API_JWT_JWKS_FILE must not",
            ));
        }
        _ => {
            return Err(ConfigError::new(
                "API_JWT_JWKS_URL",
                "or API_JWT_JWKS_FILE must be set, one of them, for an algorithm with public keys, and API_JWT_SECRET must not",
            ));
        }
    };
    let (refresh, max_age) = (jwt.jwks_refresh, jwt.jwks_max_age);
    if !(Duration::from_secs(10)..=Duration::from_hours(24)).contains(&refresh) {
        return Err(ConfigError::new("API_JWT_JWKS_REFRESH", "must be from 10s to 24h"));
    }
    if !(refresh..=Duration::from_hours(30 * 24)).contains(&max_age) {
        return Err(ConfigError::new("API_JWT_JWKS_MAX_AGE", "must be from API_JWT_JWKS_REFRESH to 30d"));
    }
    Ok(KeysConfig::Jwks { source, refresh, max_age })
}

/// Whoever can change the answer on its way makes the keys: only over TLS, or from this very machine.
fn jwks_url(text: &str) -> Result<Url, ConfigError> {
    let url: Url = text
        .parse()
        .map_err(|error| ConfigError::new("API_JWT_JWKS_URL", format!("is no URL: {error} ('{text}' given)")))?;
    let host = url.host_str().unwrap_or_default();
    let here = host == "localhost"
        || host.trim_matches(['[', ']']).parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback());
    match url.scheme() {
        "https" => Ok(url),
        "http" if here => Ok(url),
        _ => Err(ConfigError::new(
            "API_JWT_JWKS_URL",
            "must begin with https:// (http:// only for an address of this machine: whoever can change the answer could log in as anybody)",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: (&str, &str) = ("API_JWT_SECRET", "0123456789abcdef0123456789abcdef");
    const ISSUER: (&str, &str) = ("API_JWT_ISSUER", "https://id.example");
    const AUDIENCE: (&str, &str) = ("API_JWT_AUDIENCE", "orders");
    const URL: (&str, &str) = ("API_JWT_JWKS_URL", "https://id.example/keys");
    const HS256: (&str, &str) = ("API_JWT_ALGORITHM", "HS256");
    const RS256: (&str, &str) = ("API_JWT_ALGORITHM", "RS256");

    fn read(pairs: &[(&str, &str)]) -> Result<AuthConfig, ConfigError> {
        AuthConfig::from_env(&Env::from_pairs(pairs.iter().copied()))
    }

    fn refused(pairs: &[(&str, &str)]) -> String {
        read(pairs).expect_err("it is refused").to_string()
    }

    #[test]
    fn credentials_are_asked_for_unless_somebody_says_none() {
        let credentials = read(&[]).expect("complete").required.expect("required");
        assert!(credentials.jwt.is_none());
        assert_eq!((credentials.keys_cache, credentials.stream), (Duration::from_secs(10), Duration::from_mins(5)));
        assert!(read(&[("API_AUTH", "none"), RS256]).expect("complete").required.is_none());
        assert_eq!(refused(&[("API_AUTH", "None")]), "API_AUTH: must be required or none ('None' given)");
        assert_eq!(refused(&[("API_KEYS_CACHE_SECS", "0")]), "API_KEYS_CACHE_SECS: must be from 1 to 300 ('0' given)");
    }

    #[test]
    fn tokens_need_an_issuer_an_audience_and_the_right_kind_of_key() {
        let jwt = |pairs: &[_]| read(pairs).expect("complete").required.expect("required").jwt.expect("tokens");
        let config = jwt(&[HS256, SECRET, ISSUER, AUDIENCE]);
        assert!(matches!(config.keys, KeysConfig::Secret(_)));
        assert_eq!((config.leeway_secs, config.claims.user), (30, None));
        let config = jwt(&[HS256, SECRET, ISSUER, ("API_JWT_AUDIENCE", "api://orders, orders")]);
        assert_eq!(config.audiences, ["api://orders", "orders"]);
        assert!(matches!(jwt(&[RS256, URL, ISSUER, AUDIENCE]).keys, KeysConfig::Jwks { source: Source::Url(_), .. }));
        for (pairs, variable) in [
            (&[ISSUER][..], "API_JWT_ALGORITHM"),
            (&[SECRET], "API_JWT_ALGORITHM"),
            (&[("API_JWT_ALGORITHM", "none"), SECRET, ISSUER, AUDIENCE], "API_JWT_ALGORITHM"),
            (&[("API_JWT_ALGORITHM", "HS512"), SECRET, ISSUER, AUDIENCE], "API_JWT_ALGORITHM"),
            (&[HS256, SECRET, AUDIENCE], "API_JWT_ISSUER"),
            (&[HS256, SECRET, ISSUER], "API_JWT_AUDIENCE"),
            (&[HS256, URL, ISSUER, AUDIENCE], "API_JWT_SECRET"),
            (&[HS256, URL, SECRET, ISSUER, AUDIENCE], "API_JWT_SECRET"),
            (&[HS256, ("API_JWT_SECRET", "short"), ISSUER, AUDIENCE], "API_JWT_SECRET"),
            (&[RS256, SECRET, ISSUER, AUDIENCE], "API_JWT_JWKS_URL"),
            (&[RS256, URL, SECRET, ISSUER, AUDIENCE], "API_JWT_JWKS_URL"),
            (&[RS256, ISSUER, AUDIENCE], "API_JWT_JWKS_URL"),
            (&[RS256, ("API_JWT_JWKS_FILE", "/nowhere"), ISSUER, AUDIENCE], "API_JWT_JWKS_FILE"),
            (&[RS256, URL, ISSUER, AUDIENCE, ("API_JWT_JWKS_REFRESH", "1s")], "API_JWT_JWKS_REFRESH"),
            (&[RS256, URL, ISSUER, AUDIENCE, ("API_JWT_JWKS_MAX_AGE", "1m")], "API_JWT_JWKS_MAX_AGE"),
            (&[RS256, URL, ISSUER, AUDIENCE, ("API_JWT_LEEWAY_SECS", "3600")], "API_JWT_LEEWAY_SECS"),
            (&[RS256, URL, ISSUER, ("API_JWT_AUDIENCE", "orders,")], "API_JWT_AUDIENCE"),
            (&[RS256, URL, ISSUER, ("API_JWT_AUDIENCE", " ")], "API_JWT_AUDIENCE"),
        ] {
            assert!(refused(pairs).starts_with(&format!("{variable}: ")), "{pairs:?}: {}", refused(pairs));
        }
        assert!(!refused(&[HS256, ("API_JWT_SECRET", "hunter2"), ISSUER, AUDIENCE]).contains("hunter2"));
    }

    #[test]
    fn a_setting_of_claims_that_makes_no_sense_is_named() {
        for (variable, value) in [
            ("API_JWT_AUDIENCE_CLAIM", "iss"),
            ("API_JWT_AUDIENCE_CLAIM", " "),
            ("API_JWT_SCOPES_CLAIM", "scp,"),
            ("API_JWT_SCOPES_CLAIM", "realm_access..roles"),
            ("API_JWT_SCOPES_CLAIM", ".roles"),
            ("API_JWT_SCOPE_MAP", "Order.Reader"),
            ("API_JWT_SCOPE_MAP", "Order.Reader="),
            ("API_JWT_SCOPE_MAP", "=orders:read"),
            ("API_JWT_SCOPE_MAP", "Order.Reader=orders:read,"),
            ("API_JWT_SCOPE_MAP", "Order.Reader=orders:all"),
            ("API_JWT_SCOPE_MAP", "Order.Reader=Orders:Read"),
            ("API_JWT_REQUIRED_CLAIMS", "token_use="),
            ("API_JWT_REQUIRED_CLAIMS", "=access"),
            ("API_JWT_REQUIRED_CLAIMS", "azp,,tid"),
            ("API_JWT_USER_CLAIM", "user."),
        ] {
            let error = refused(&[RS256, URL, ISSUER, AUDIENCE, (variable, value)]);
            assert!(error.starts_with(&format!("{variable}: ")) && !error.contains('\n'), "{value}: {error}");
            // Alone, it asks for tokens all the same: a forgotten API_JWT_ALGORITHM is not passed over.
            assert!(refused(&[(variable, value)]).starts_with("API_JWT_ALGORITHM: "), "{variable}");
        }
        let map = ("API_JWT_SCOPE_MAP", "a=orders:read, Order.Reader=orders:all");
        assert_eq!(
            refused(&[RS256, URL, ISSUER, AUDIENCE, map]),
            "API_JWT_SCOPE_MAP: must map to orders:read or orders:write ('orders:all' given for 'Order.Reader')"
        );
    }

    #[test]
    fn keys_are_not_fetched_where_somebody_could_change_them() {
        for url in
            ["https://id.example/keys", "http://127.0.0.1:8000/keys", "http://[::1]/keys", "http://localhost/keys"]
        {
            assert!(jwks_url(url).is_ok(), "{url}");
        }
        for url in ["http://id.example/keys", "http://127.0.0.1.id.example/", "file:///keys", "keys", ""] {
            assert_eq!(jwks_url(url).expect_err(url).variable, "API_JWT_JWKS_URL");
        }
    }

    #[test]
    fn a_burst_is_a_seconds_worth_unless_it_is_set() {
        let rate = |pairs: &[_]| read(pairs).expect("complete").rate;
        assert_eq!(rate(&[]), None);
        assert_eq!(rate(&[("API_RATE_BURST", "5")]), None);
        assert_eq!(rate(&[("API_RATE_LIMIT", "50")]), Some(RateConfig { limit: 50, burst: 50 }));
        assert_eq!(
            rate(&[("API_RATE_LIMIT", "50"), ("API_RATE_BURST", "5")]),
            Some(RateConfig { limit: 50, burst: 5 })
        );
        assert!(refused(&[("API_RATE_LIMIT", "50"), ("API_RATE_BURST", "0")]).starts_with("API_RATE_BURST: "));
    }
}
