//! The header of a token (RFC 7515, section 4.1), where it says more than how the token is signed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::strict_json::StrictObject;
use crate::auth::refusal::Reason;

/// Types of access tokens: RFC 7519, section 5.1, and RFC 9068, section 2.1. Each may begin with `application/`.
const ACCESS_TOKEN_TYPES: [&str; 2] = ["jwt", "at+jwt"];
/// Members that change how a token is to be read. `crit` lists what a reader must understand; RFC 7519 forbids `b64`; the others are for
/// encrypted tokens.
const NOT_UNDERSTOOD: [&str; 4] = ["crit", "b64", "enc", "zip"];

/// Refuses headers that can be read in two ways, that ask for something which is not done here, or that name another type of token.
///
/// # Errors
/// With the reason.
pub fn check(token: &str) -> Result<(), Reason> {
    let encoded = token.split('.').next().unwrap_or_default();
    let text = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| Reason::Malformed)?;
    let StrictObject(header) = serde_json::from_slice(&text).map_err(|_| Reason::Malformed)?;
    // Whether a member is there counts, and not its value: `"crit": null` is no valid header either.
    if NOT_UNDERSTOOD.iter().any(|member| header.contains_key(*member)) {
        return Err(Reason::Malformed);
    }
    text_of(&header, "kid")?;
    match text_of(&header, "typ")? {
        None => Ok(()),
        Some(name) if is_access_token(name) => Ok(()),
        Some(_) => Err(Reason::WrongType),
    }
}

/// A member that may be missing and must be a text otherwise.
fn text_of<'a>(header: &'a Map<String, Value>, member: &str) -> Result<Option<&'a str>, Reason> {
    match header.get(member) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Reason::Malformed),
    }
}

fn is_access_token(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ACCESS_TOKEN_TYPES.contains(&name.strip_prefix("application/").unwrap_or(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(header: &str) -> Result<(), Reason> {
        check(&format!("{}.e30.c2ln", URL_SAFE_NO_PAD.encode(header)))
    }

    #[test]
    fn types_of_access_tokens_are_taken_in_any_case() {
        for name in ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", "application/AT+jwt", "application/jwt"] {
            assert_eq!(of(&format!(r#"{{"alg": "HS256", "typ": "{name}"}}"#)), Ok(()), "{name}");
        }
        assert_eq!(of(r#"{"alg": "HS256"}"#), Ok(()));
        assert_eq!(of(r#"{"alg": "HS256", "kid": "a", "x5t": null, "more": {"crit": 1}}"#), Ok(()));
    }

    #[test]
    fn other_types_are_refused() {
        for name in [
            "",
            " ",
            "JOSE",
            "dpop+jwt",
            "logout+jwt",
            "secevent+jwt",
            "oauth-authz-req+jwt",
            "vc+sd-jwt",
            "at+jwt ",
            "application/",
            "application/application/jwt",
        ] {
            assert_eq!(of(&format!(r#"{{"alg": "HS256", "typ": "{name}"}}"#)), Err(Reason::WrongType), "{name}");
        }
    }

    #[test]
    fn a_header_that_is_not_understood_is_refused() {
        for header in [
            r#"{"alg": "HS256", "crit": null}"#,
            r#"{"alg": "HS256", "crit": []}"#,
            r#"{"alg": "HS256", "crit": ["b64"], "b64": false}"#,
            r#"{"alg": "HS256", "b64": false}"#,
            r#"{"alg": "HS256", "b64": true}"#,
            r#"{"alg": "dir", "enc": "A128GCM"}"#,
            r#"{"alg": "HS256", "zip": "DEF"}"#,
            r#"{"alg": "HS256", "typ": null}"#,
            r#"{"alg": "HS256", "typ": ["JWT"]}"#,
            r#"{"alg": "HS256", "kid": null}"#,
            r#"{"alg": "HS256", "kid": 7}"#,
            r#"{"alg": "HS256", "alg": "HS256"}"#,
            r#"{"alg": "HS256", "typ": "JWT", "typ": "JWT"}"#,
            r#"{"alg": "HS256", "jwk": {"kty": "oct", "kty": "RSA"}}"#,
            r#"["alg", "HS256"]"#,
            "",
        ] {
            assert_eq!(of(header), Err(Reason::Malformed), "{header}");
        }
    }
}
