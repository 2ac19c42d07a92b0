//! Which pages of other origins may use the API (CORS): none, unless they are named.
//!
//! A browser asks first (the preflight), without any credentials, and gets its answer here, before anybody looks for some. A page that is
//! not allowed gets no header that says so, and its browser keeps the answer from it. Cookies play no part in this API, so the
//! answers never allow credentials; a token in `Authorization` is a header that the page sets itself.

use actix_cors::Cors;
use actix_web::http::header::{self, HeaderName};
use actix_web::http::{Method, Uri};
use actix_web::middleware::Condition;
use shared::config::ConfigError;

const VARIABLE: &str = "API_CORS_ORIGINS";

/// Seconds for which a browser may keep the answer to its preflight. Chromium keeps it for two hours at most.
const PREFLIGHT_SECS: usize = 2 * 60 * 60;

/// What a request to this API may carry.
const REQUEST_HEADERS: [HeaderName; 10] = [
    header::ACCEPT,
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    HeaderName::from_static("idempotency-key"),
    HeaderName::from_static("last-event-id"),
    HeaderName::from_static("prefer"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("x-request-id"),
];

/// What a page may read of an answer's headers, beyond those that it always may.
const ANSWER_HEADERS: [HeaderName; 12] = [
    header::ALLOW,
    header::ETAG,
    header::LINK,
    header::LOCATION,
    header::RETRY_AFTER,
    HeaderName::from_static("idempotency-replayed"),
    HeaderName::from_static("preference-applied"),
    HeaderName::from_static("ratelimit-limit"),
    HeaderName::from_static("ratelimit-remaining"),
    HeaderName::from_static("ratelimit-reset"),
    header::WWW_AUTHENTICATE,
    HeaderName::from_static("x-request-id"),
];

/// The origins whose pages may use the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// Everybody's.
    Any,
    /// These.
    Named(Vec<String>),
}

impl Origins {
    /// `*`, or origins with commas in between, each as a browser writes it.
    ///
    /// # Errors
    /// When one of them is no origin.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        if text.trim() == "*" {
            return Ok(Self::Any);
        }
        let origins = text.split(',').map(str::trim).filter(|origin| !origin.is_empty());
        let named = origins.map(|origin| if is_origin(origin) { Ok(origin.to_owned()) } else { Err(refusal(origin)) });
        Ok(Self::Named(named.collect::<Result<_, _>>()?))
    }
}

/// What browsers send: scheme, host, and the port unless it is the scheme's own. They are compared letter by letter.
fn is_origin(text: &str) -> bool {
    let (host, own_port) = match text.split_once("://") {
        Some(("https", host)) => (host, ":443"),
        Some(("http", host)) => (host, ":80"),
        _ => return false,
    };
    let is_part = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b':' | b'[' | b']');
    !host.is_empty() && host.bytes().all(is_part) && !host.ends_with(own_port) && text.parse::<Uri>().is_ok()
}

fn refusal(origin: &str) -> ConfigError {
    let form = "https://shop.example or http://localhost:3000, in lower case, without a path or the scheme's own port";
    ConfigError::new(VARIABLE, format!("'{origin}' is not an origin such as {form}; * is all of them"))
}

/// Puts the headers on answers; does nothing if no page of another origin may use the API.
pub fn headers(origins: Option<&Origins>) -> Condition<Cors> {
    let mut cors = Cors::default()
        .allowed_methods([Method::GET, Method::HEAD, Method::POST, Method::DELETE])
        .allowed_headers(REQUEST_HEADERS)
        .expose_headers(ANSWER_HEADERS)
        .max_age(PREFLIGHT_SECS);
    match origins {
        None => {}
        Some(Origins::Any) => cors = cors.allow_any_origin().send_wildcard(),
        Some(Origins::Named(named)) => {
            for origin in named {
                cors = cors.allowed_origin(origin);
            }
        }
    }
    Condition::new(origins.is_some(), cors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_taken_only_in_the_form_in_which_browsers_send_them() {
        assert_eq!(Origins::parse(" * "), Ok(Origins::Any));
        let named = Origins::parse("https://shop.example, http://localhost:3000,http://[::1]:8080,");
        let expected = ["https://shop.example", "http://localhost:3000", "http://[::1]:8080"];
        assert_eq!(named, Ok(Origins::Named(expected.map(str::to_owned).to_vec())));
        for wrong in [
            "shop.example",
            "https://shop.example/",
            "https://Shop.example",
            "https://shop.example:443",
            "http://shop.example:80",
            "https://",
            "ftp://shop.example",
            "null",
            "https://[",
            "https://*.shop.example",
            "https://a.example https://b.example",
        ] {
            let error = Origins::parse(wrong).unwrap_err();
            assert!(error.to_string().starts_with(&format!("API_CORS_ORIGINS: '{wrong}' is not")), "{error}");
        }
    }
}
