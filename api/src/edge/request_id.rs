//! The id of a request: the caller's own, if it sends a sane one, or one that is made. It is in the answer and in whatever the
//! log says of the request, so that a line of one's own log leads to the line of the other's.

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

/// The header, in both directions.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longer ones are not taken.
const LENGTH_MAX: usize = 128;

/// The id of a request with these headers.
#[must_use]
pub fn of(headers: &HeaderMap) -> HeaderValue {
    match headers.get(X_REQUEST_ID) {
        Some(id) if is_sane(id.as_bytes()) => id.clone(),
        _ => made(),
    }
}

/// 1 to 128 visible characters of ASCII: nothing that could forge a line of a log.
fn is_sane(id: &[u8]) -> bool {
    (1..=LENGTH_MAX).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

fn made() -> HeaderValue {
    let mut buffer = Uuid::encode_buffer();
    let id = Uuid::now_v7().hyphenated().encode_lower(&mut buffer);
    // Hexadecimal digits and hyphens are good in a header.
    HeaderValue::from_str(id).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_of(value: &[u8]) -> HeaderValue {
        let mut headers = HeaderMap::new();
        headers.insert(X_REQUEST_ID, HeaderValue::from_bytes(value).expect("a value"));
        of(&headers)
    }

    #[test]
    fn a_callers_id_is_taken_only_if_it_is_sane() {
        let long = [b'a'; LENGTH_MAX];
        for good in [&b"a"[..], b"1f0c-9/x=\"{}", &long] {
            assert_eq!(id_of(good).as_bytes(), good);
        }
        for bad in [&b""[..], b"a b", b"a\tb", b"caf\xc3\xa9", &[b'a'; LENGTH_MAX + 1]] {
            let made = id_of(bad);
            let made = Uuid::parse_str(made.to_str().expect("text")).expect("a UUID");
            assert_eq!(made.get_version_num(), 7, "{bad:?}");
        }
        assert_ne!(of(&HeaderMap::new()), of(&HeaderMap::new()));
    }
}
