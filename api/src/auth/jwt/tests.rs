use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use jsonwebtoken::{EncodingKey, Header, crypto, encode};
use serde_json::json;
use shared::config::Secret;

use super::super::scopes::{Scope, Scopes};
use super::super::settings::KeysConfig;
use super::claims::{ClaimPath, RequiredClaim};
use super::*;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const HEADER: &str = r#"{"alg": "HS256"}"#;

fn with_rules(rules: ClaimRules) -> Jwt {
    let config = JwtConfig {
        algorithm: Algorithm::HS256,
        keys: KeysConfig::Secret(Secret::new("unused")),
        issuer: "me".to_owned(),
        audiences: vec!["orders".to_owned(), "api://orders".to_owned()],
        leeway_secs: 30,
        claims: rules,
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

/// Signs two parts as they are.
fn signed(header: &str, payload: &str) -> String {
    let message = format!("{header}.{payload}");
    let key = EncodingKey::from_secret(SECRET);
    let signature = crypto::sign(message.as_bytes(), &key, Algorithm::HS256).expect("a signature");
    format!("{message}.{signature}")
}

fn signed_texts(header: &str, payload: &str) -> String {
    signed(&URL_SAFE_NO_PAD.encode(header), &URL_SAFE_NO_PAD.encode(payload))
}

async fn verify(change: Value) -> Result<Caller, Reason> {
    let jwt = with_rules(ClaimRules::default());
    let token = token(&change);
    let (first, again) = (jwt.verify(&token).await, jwt.verify(&token).await);
    assert_eq!(first, again, "and the same when it is remembered");
    first
}

async fn verify_text(token: &str) -> Result<Caller, Reason> {
    with_rules(ClaimRules::default()).verify(token).await
}

#[tokio::test]
async fn every_claim_is_looked_at() {
    let now = jsonwebtoken::get_current_timestamp();
    let caller = verify(json!({})).await.expect("good");
    assert_eq!((caller.name(), caller.user_id(), caller.scopes()), ("jwt:me|a", None, Scopes::default()));
    for good in [
        json!({ "exp": now - 20 }),
        json!({ "exp": u64::MAX }),
        json!({ "nbf": now + 20 }),
        json!({ "aud": ["x", "orders"] }),
        json!({ "aud": "api://orders" }),
        json!({ "sub": "a".repeat(1_024) }),
    ] {
        assert!(verify(good.clone()).await.is_ok(), "{good}");
    }
    for (claims, expected) in [
        (json!({ "exp": now - 40 }), Reason::Expired),
        (json!({ "exp": null }), Reason::WrongClaims),
        (json!({ "exp": "tomorrow" }), Reason::WrongClaims),
        (json!({ "exp": (now + 100).to_string() }), Reason::WrongClaims),
        (json!({ "exp": -1 }), Reason::WrongClaims),
        (json!({ "exp": 1e300 }), Reason::WrongClaims),
        (json!({ "nbf": now + 40 }), Reason::NotYetValid),
        (json!({ "nbf": u64::MAX }), Reason::NotYetValid),
        (json!({ "nbf": "tomorrow" }), Reason::WrongClaims),
        (json!({ "nbf": [now] }), Reason::WrongClaims),
        (json!({ "iss": "you" }), Reason::WrongIssuer),
        (json!({ "iss": null }), Reason::WrongClaims),
        (json!({ "iss": ["me"] }), Reason::WrongClaims),
        (json!({ "aud": "others" }), Reason::WrongAudience),
        (json!({ "aud": "orders,api://orders" }), Reason::WrongAudience),
        (json!({ "aud": [] }), Reason::WrongAudience),
        (json!({ "aud": ["orders", 7] }), Reason::WrongClaims),
        (json!({ "aud": { "orders": true } }), Reason::WrongClaims),
        (json!({ "aud": null }), Reason::WrongClaims),
        (json!({ "sub": null }), Reason::WrongClaims),
        (json!({ "sub": 7 }), Reason::WrongClaims),
        (json!({ "sub": "" }), Reason::WrongClaims),
        (json!({ "sub": "a".repeat(1_025) }), Reason::WrongClaims),
    ] {
        assert_eq!(verify(claims.clone()).await, Err(expected), "{claims}");
    }
}

#[tokio::test]
async fn the_audience_of_another_claim_must_be_there_and_right_as_well() {
    let path = ClaimPath::parse("client_id").expect("a path");
    let jwt = with_rules(ClaimRules { audience: path, ..ClaimRules::default() });
    for good in [json!({ "client_id": "orders", "aud": null }), json!({ "client_id": ["orders"], "aud": "others" })] {
        assert!(jwt.verify(&token(&good)).await.is_ok(), "{good}");
    }
    for (claims, expected) in [
        (json!({}), Reason::WrongClaims),
        (json!({ "client_id": "others" }), Reason::WrongAudience),
        (json!({ "client_id": "" }), Reason::WrongAudience),
        (json!({ "client_id": 7 }), Reason::WrongClaims),
    ] {
        assert_eq!(jwt.verify(&token(&claims)).await, Err(expected), "{claims}");
    }
}

#[tokio::test]
async fn a_token_for_something_else_than_an_api_is_refused() {
    for claims in [
        json!({ "token_use": "id" }),
        json!({ "token_use": "Access" }),
        json!({ "token_use": ["access"] }),
        json!({ "typ": "ID" }),
        json!({ "typ": "Refresh" }),
        json!({ "typ": "offline" }),
        json!({ "typ": "Logout" }),
        json!({ "at_hash": "MTIzNDU2Nzg5MDEyMzQ1Ng" }),
        json!({ "c_hash": "MTIzNDU2Nzg5MDEyMzQ1Ng" }),
        json!({ "events": { "http://schemas.openid.net/event/backchannel-logout": {} } }),
    ] {
        assert_eq!(verify(claims.clone()).await, Err(Reason::WrongType), "{claims}");
    }
    for claims in [
        json!({ "token_use": "access" }),
        json!({ "typ": "Bearer" }),
        json!({ "typ": 7, "events": "many" }),
        json!({ "events": { "another": {} } }),
    ] {
        assert!(verify(claims.clone()).await.is_ok(), "{claims}");
    }
}

#[tokio::test]
async fn a_claim_that_is_required_must_be_there() {
    let required = RequiredClaim::parse_list("token_use=access, tid").expect("claims");
    let jwt = with_rules(ClaimRules { required, ..ClaimRules::default() });
    assert!(jwt.verify(&token(&json!({ "token_use": "access", "tid": "any" }))).await.is_ok());
    for claims in [json!({}), json!({ "token_use": "access" }), json!({ "tid": "any" })] {
        assert_eq!(jwt.verify(&token(&claims)).await, Err(Reason::WrongClaims), "{claims}");
    }
}

#[tokio::test]
async fn a_caller_that_is_to_be_bound_and_cannot_be_is_refused() {
    let user = Some(ClaimPath::parse("uid").expect("a path"));
    let jwt = with_rules(ClaimRules { user, ..ClaimRules::default() });
    for (claim, expected) in [(json!(7), 7), (json!("7"), 7)] {
        let caller = jwt.verify(&token(&json!({ "uid": claim }))).await.expect("good");
        assert_eq!(caller.user_id(), Some(expected));
    }
    for claim in
        [json!(null), json!(0), json!(-7), json!(7.5), json!("+7"), json!(""), json!("7a"), json!([7]), json!(1e30)]
    {
        assert_eq!(jwt.verify(&token(&json!({ "uid": claim }))).await, Err(Reason::NoUser), "{claim}");
    }
}

#[tokio::test]
async fn scopes_are_those_of_the_token() {
    let scopes = verify(json!({ "scope": "openid orders:read" })).await.expect("good").scopes();
    assert!(scopes.has(Scope::Read) && !scopes.has(Scope::Write));
}

#[tokio::test]
async fn a_signature_does_not_save_a_token_that_can_be_read_in_two_ways() {
    let good = r#"{"iss": "me", "aud": "orders", "sub": "a", "exp": 4102444800}"#;
    assert!(verify_text(&signed_texts(HEADER, good)).await.is_ok());
    for header in [
        r#"{"alg": "HS256", "alg": "HS256"}"#,
        r#"{"alg": "none", "alg": "HS256"}"#,
        r#"{"alg": "HS256", "\u0061lg": "HS256"}"#,
        r#"{"alg": "HS256", "kid": "a", "kid": "b"}"#,
        r#"{"alg": "HS256", "x": 1, "x": 1}"#,
        r#"{"alg": "HS256", "crit": null}"#,
        r#"{"alg": "HS256", "crit": ["b64"], "b64": false}"#,
        r#"{"alg": "HS256", "b64": false}"#,
        r#"{"alg": null}"#,
        r#"{"alg": "HS256"} "and more""#,
        "{}",
    ] {
        assert_eq!(verify_text(&signed_texts(header, good)).await, Err(Reason::Malformed), "{header}");
    }
    for typ in ["dpop+jwt", "logout+jwt", "secevent+jwt"] {
        let header = format!(r#"{{"alg": "HS256", "typ": "{typ}"}}"#);
        assert_eq!(verify_text(&signed_texts(&header, good)).await, Err(Reason::WrongType), "{typ}");
    }
    let nested = format!("{}1{}", r#"{"a": "#.repeat(5_000), "}".repeat(5_000));
    for more in [
        r#""sub": "b""#,
        r#""s\u0075b": "b""#,
        r#""exp": 4102444801"#,
        r#""iss": "you""#,
        r#""aud": "others""#,
        r#""scope": "orders:read", "scope": "orders:write""#,
        r#""scope": "orders:read", "scope": "orders:read""#,
        r#""realm_access": {"roles": [], "roles": ["orders:write"]}"#,
        r#""nbf": NaN"#,
        r#""nbf": 1e999"#,
        r#""nbf": null"#,
        &format!(r#""nested": {nested}"#),
        "\"text\": \"\\ud800\"",
    ] {
        let payload = format!("{}, {more}}}", good.trim_end_matches('}'));
        assert_eq!(verify_text(&signed_texts(HEADER, &payload)).await, Err(Reason::WrongClaims), "{more}");
    }
    for payload in ["", "7", "[]", "null", &format!("[{good}]"), &format!("{good}{good}"), &format!("\u{feff}{good}")] {
        assert_eq!(verify_text(&signed_texts(HEADER, payload)).await, Err(Reason::WrongClaims), "{payload}");
    }
}

#[tokio::test]
async fn a_token_is_written_in_one_way_only() {
    // No multiple of three bytes, so that there is something to fill up.
    let good = r#"{"iss": "me", "aud": "orders", "sub": "a" , "exp": 4102444800}"#;
    assert_eq!(good.len() % 3, 2, "its last letter has bits to spare");
    let (header, payload) = (URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(good));
    let whole = signed(&header, &payload);
    assert!(verify_text(&whole).await.is_ok());
    // Other bits in what is left over of the last letter: the same bytes to a reader that is not strict.
    let (front, last) = payload.split_at(payload.len() - 1);
    let spare = format!("{front}{}", char::from(last.as_bytes()[0] + 1));
    for text in [
        signed(&header, &URL_SAFE.encode(good)),
        signed(&URL_SAFE.encode(HEADER), &payload),
        signed(&header, &spare),
        signed(&header, &format!("{front}\n{last}")),
        signed(&header, &format!(" {payload}")),
        format!("{whole}="),
        format!("{whole}\n"),
        format!("{whole} "),
        format!("{whole}."),
        format!(".{whole}"),
        format!("{header}.{payload}"),
        format!("{header}.{payload}."),
        format!("{header}..{}", whole.rsplit('.').next().expect("a signature")),
    ] {
        let refused = verify_text(&text).await;
        assert!(matches!(refused, Err(Reason::Malformed | Reason::WrongSignature)), "{text}: {refused:?}");
    }
}
