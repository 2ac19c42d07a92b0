//! Who is let in: tokens of an issuer.

use std::time::Duration;

use api::auth::jwks::Source;
use api::auth::jwt::claims::{ClaimPath, ClaimRules};
use api::auth::settings::{AuthConfig, Credentials, JwtConfig, KeysConfig};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use serde_json::{Value, json};
use shared::config::Secret;
use shared::testing::{TestDatabase, eventually};

use crate::auth::{ask, bearer, key};
use crate::service::Api;
use issuer::{Issuer, Signer};

mod issuer;
mod issuers;

const SECRET: &str = "a secret that the issuer has as well";
const READ: &str = "orders:read";

fn auth(algorithm: Algorithm, keys: KeysConfig) -> AuthConfig {
    let jwt = JwtConfig {
        algorithm,
        keys,
        issuer: "https://id.example".to_owned(),
        audiences: vec!["orders".to_owned()],
        leeway_secs: 30,
        claims: ClaimRules::default(),
    };
    let hour = Duration::from_hours(1);
    AuthConfig { required: Some(Credentials { keys_cache: hour, stream: hour, jwt: Some(jwt) }), rate: None }
}

fn keys(issuer: &Issuer, refresh: Duration, max_age: Duration) -> KeysConfig {
    KeysConfig::Jwks { source: Source::Url(issuer.url()), refresh, max_age }
}

async fn start(database: &TestDatabase, auth: AuthConfig) -> Api {
    Api::guarded(database.config("outrider_api"), auth, |_| ()).await
}

async fn ready(api: &Api) {
    eventually("the API is ready", async || (api.get("/readyz").await.status == 200).then_some(())).await;
}

/// Good claims, changed: null takes one away.
fn claims(change: &Value) -> Value {
    let now = get_current_timestamp();
    let mut claims =
        json!({ "iss": "https://id.example", "aud": "orders", "sub": "someone", "exp": now + 600, "scope": READ });
    for (name, value) in change.as_object().expect("claims") {
        claims[name] = value.clone();
    }
    claims.as_object_mut().expect("claims").retain(|_, value| !value.is_null());
    claims
}

fn header_of(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

async fn read(api: &Api, token: &str) -> u16 {
    let answer = ask(api, "GET", "/orders", &header_of(token)).await;
    if answer.status != 200 {
        let expected = if answer.status == 401 { "/problems/unauthorized" } else { "/problems/unavailable" };
        assert_eq!(answer.problem(), expected);
        assert!(!answer.body.contains(token), "an answer does not repeat a token");
    }
    answer.status
}

#[tokio::test]
async fn tokens_of_each_algorithm_are_taken() {
    let database = TestDatabase::create("algorithms").await;
    for signer in [Signer::rsa("k"), Signer::ec("k"), Signer::ed("k")] {
        let issuer = Issuer::start(&[&signer]).await;
        let hour = Duration::from_hours(1);
        let api = start(&database, auth(signer.algorithm, keys(&issuer, hour, hour))).await;
        ready(&api).await;
        assert_eq!(read(&api, &signer.sign(&claims(&json!({})))).await, 200, "{:?}", signer.algorithm);
        let token = signer.sign(&claims(&json!({})));
        assert_eq!(ask(&api, "POST", "/orders", &header_of(&token)).await.status, 403, "it may read only");
        assert_eq!(read(&api, &signer.tampered(&claims(&json!({})))).await, 401);
        api.stop().await;
    }
    let api = start(&database, auth(Algorithm::HS256, KeysConfig::Secret(Secret::new(SECRET)))).await;
    let sign = |secret: &str| {
        encode(&Header::new(Algorithm::HS256), &claims(&json!({})), &EncodingKey::from_secret(secret.as_bytes()))
    };
    assert_eq!(read(&api, &sign(SECRET).expect("a token")).await, 200);
    assert_eq!(read(&api, &sign("another secret").expect("a token")).await, 401);
    api.stop().await;
}

#[tokio::test]
async fn the_keys_of_an_issuer_may_be_in_a_file() {
    let database = TestDatabase::create("jwks_file").await;
    let folder = std::env::temp_dir().join(shared::testing::unique("jwks"));
    std::fs::create_dir(&folder).expect("a folder");
    let path = folder.join("keys.json");
    let [first, second] = [Signer::ec("a"), Signer::ec("b")];
    std::fs::write(&path, issuer::set_of(&[&first])).expect("a file");
    let (refresh, max_age) = (Duration::from_millis(100), Duration::from_hours(1));
    let source = Source::File(path.clone());
    let api = start(&database, auth(Algorithm::ES256, KeysConfig::Jwks { source, refresh, max_age })).await;
    ready(&api).await;
    let [old, new] = [first.sign(&claims(&json!({}))), second.sign(&claims(&json!({})))];
    assert_eq!((read(&api, &old).await, read(&api, &new).await), (200, 401));
    // A file that is half written does not count.
    std::fs::write(&path, "{\"keys\": [").expect("a file");
    assert_eq!(read(&api, &old).await, 200);
    std::fs::write(&path, issuer::set_of(&[&second])).expect("a file");
    eventually("the new key counts", async || (read(&api, &new).await == 200).then_some(())).await;
    assert_eq!(read(&api, &old).await, 401, "though it was good before: its key is gone");
    api.stop().await;
    std::fs::remove_dir_all(&folder).expect("it is there");
}

#[tokio::test]
async fn no_token_chooses_how_it_is_checked() {
    let database = TestDatabase::create("confusion").await;
    let (rsa, ec) = (Signer::rsa("rsa"), Signer::ec("ec"));
    let issuer = Issuer::start(&[&rsa, &ec]).await;
    let hour = Duration::from_hours(1);
    let api = start(&database, auth(Algorithm::RS256, keys(&issuer, hour, hour))).await;
    ready(&api).await;
    assert_eq!(read(&api, &rsa.sign(&claims(&json!({})))).await, 200);
    // What the public key of the issuer can be taken for: anybody has all of these.
    let mut secrets: Vec<Vec<u8>> =
        ["n", "e"].iter().map(|part| rsa.jwk[*part].as_str().expect("text").as_bytes().to_vec()).collect();
    secrets.extend([rsa.jwk.to_string().into_bytes(), Signer::rsa_public_pem(), Vec::new()]);
    for secret in &secrets {
        let header = Header { kid: Some("rsa".to_owned()), ..Header::new(Algorithm::HS256) };
        let token = encode(&header, &claims(&json!({})), &EncodingKey::from_secret(secret)).expect("a token");
        assert_eq!(read(&api, &token).await, 401);
    }
    for alg in ["none", "None", "NONE", "RS256", "HS256"] {
        for signature in ["", "AAAA"] {
            assert_eq!(read(&api, &issuer::unsigned(alg, &claims(&json!({})), signature)).await, 401, "{alg}");
        }
    }
    assert_eq!(read(&api, &ec.sign(&claims(&json!({})))).await, 401, "another algorithm, of a key of the issuer's");
    assert_eq!(read(&api, &ec.sign_as("rsa", &claims(&json!({})))).await, 401);
    // A key that comes with the token is nobody's.
    let stranger = Signer::sign_with_a_key_of_its_own(&rsa, &claims(&json!({})));
    assert_eq!(read(&api, &stranger).await, 401);
    for text in ["a.b.c", "..", "a.b", &"x".repeat(4_000)] {
        assert_eq!(read(&api, text).await, 401, "{text}");
    }
    api.stop().await;
}

#[tokio::test]
async fn a_token_that_can_be_read_in_two_ways_or_is_none_for_an_api_is_refused() {
    let database = TestDatabase::create("forms").await;
    let signer = Signer::ec("k");
    let issuer = Issuer::start(&[&signer]).await;
    let hour = Duration::from_hours(1);
    let api = start(&database, auth(Algorithm::ES256, keys(&issuer, hour, hour))).await;
    ready(&api).await;
    let header = r#"{"alg": "ES256", "kid": "k", "typ": "at+jwt"}"#;
    let payload = claims(&json!({})).to_string();
    assert_eq!(read(&api, &signer.sign_texts(header, &payload)).await, 200);
    let with = |text: &str, more: &str| format!("{}, {more}}}", text.strip_suffix('}').expect("an object"));
    let typed = |typ: &str| format!(r#"{{"alg": "ES256", "kid": "k", "typ": "{typ}"}}"#);
    let id_token = claims(&json!({ "at_hash": "MTIzNDU2Nzg5MDEyMzQ1Ng" })).to_string();
    for (header, payload, reason) in [
        (with(header, r#""crit": null"#), payload.clone(), "malformed"),
        (with(header, r#""alg": "ES256""#), payload.clone(), "malformed"),
        (with(header, r#""b64": false"#), payload.clone(), "malformed"),
        (typed("logout+jwt"), payload.clone(), "wrong_type"),
        (header.to_owned(), id_token, "wrong_type"),
        (header.to_owned(), with(&payload, r#""scope": "orders:write""#), "wrong_claims"),
        (header.to_owned(), with(&payload, r#""realm_access": {"roles": [], "roles": []}"#), "wrong_claims"),
    ] {
        let metric = format!("api_auth_refused_total{{reason=\"{reason}\"}}");
        let before = api.metric(&metric).await;
        assert_eq!(read(&api, &signer.sign_texts(&header, &payload)).await, 401, "{reason}");
        assert_eq!(api.metric(&metric).await, before + 1, "{header} {reason}");
    }
    // What is too long for a request is not looked at.
    let long = signer.sign(&claims(&json!({ "filling": "a".repeat(60_000) })));
    let answer = ask(&api, "GET", "/orders", &header_of(&long)).await;
    assert_eq!((answer.status, answer.problem().as_str()), (431, "/problems/headers-too-large"));
    api.stop().await;
}

#[tokio::test]
async fn a_token_for_another_time_place_or_person_is_refused() {
    let database = TestDatabase::create("claims").await;
    let mut auth = auth(Algorithm::HS256, KeysConfig::Secret(Secret::new(SECRET)));
    auth.required.as_mut().and_then(|required| required.jwt.as_mut()).expect("tokens").claims.user =
        ClaimPath::parse("uid").ok();
    let api = start(&database, auth).await;
    let sign = |change: Value| {
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        encode(&Header::new(Algorithm::HS256), &claims(&change), &key).expect("a token")
    };
    let now = get_current_timestamp();
    for (change, reason) in [
        (json!({ "uid": 1, "exp": now - 100 }), "expired"),
        (json!({ "uid": 1, "exp": null }), "wrong_claims"),
        (json!({ "uid": 1, "nbf": now + 100 }), "not_yet_valid"),
        (json!({ "uid": 1, "aud": "others" }), "wrong_audience"),
        (json!({ "uid": 1, "iss": "https://else.example" }), "wrong_issuer"),
        (json!({}), "no_user"),
        (json!({ "uid": "me" }), "no_user"),
    ] {
        assert_eq!(read(&api, &sign(change)).await, 401, "{reason}");
        assert!(api.metric(&format!("api_auth_refused_total{{reason=\"{reason}\"}}")).await > 0, "{reason}");
    }
    // Bound to the user of order 1, and not to that of order 2.
    let header = header_of(&sign(json!({ "uid": 1, "scope": "orders:write orders:read" })));
    assert_eq!(ask(&api, "POST", "/orders", &header).await.status, 201);
    let other = header_of(&sign(json!({ "uid": "2", "sub": "other", "scope": "orders:write orders:read" })));
    assert_eq!(ask(&api, "POST", "/orders", &other).await.status, 403, "an order of user 1");
    assert_eq!(ask(&api, "GET", "/orders/1", &header).await.status, 200);
    assert_eq!(ask(&api, "GET", "/orders/1", &other).await.status, 404);
    assert_eq!(ask(&api, "GET", "/orders", &header_of(&sign(json!({ "uid": 1, "scope": null })))).await.status, 403);
    api.stop().await;
}

#[tokio::test]
async fn a_new_key_of_the_issuer_is_fetched_once_and_made_up_ones_are_not() {
    let database = TestDatabase::create("rotation").await;
    let [old, new] = [Signer::ec("old"), Signer::ec("new")];
    let issuer = Issuer::start(&[&old]).await;
    let hour = Duration::from_hours(1);
    let api = start(&database, auth(Algorithm::ES256, keys(&issuer, hour, hour))).await;
    ready(&api).await;
    assert_eq!(read(&api, &old.sign(&claims(&json!({})))).await, 200);
    assert_eq!(issuer.asked(), 1);
    issuer.serve(200, &issuer::set_of(&[&old, &new]));
    let new_token = new.sign(&claims(&json!({})));
    let headers = header_of(&new_token);
    let at_once = (0..8).map(|_| crate::http::send(api.address, crate::http::request("GET", "/orders", &headers, b"")));
    for answer in futures_util::future::join_all(at_once).await {
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!(issuer.asked(), 2, "once for all of them");
    for number in 0..50 {
        assert_eq!(read(&api, &new.sign_as(&format!("made up {number}"), &claims(&json!({})))).await, 401);
    }
    assert!(issuer.asked() <= 8, "{}: once in ten seconds, however slow this machine is", issuer.asked());
    api.stop().await;
}

#[tokio::test]
async fn until_the_issuer_has_answered_the_service_is_not_ready_and_keys_work() {
    let database = TestDatabase::create("issuer_late").await;
    let signer = Signer::ec("k");
    let issuer = Issuer::start(&[&signer]).await;
    issuer.serve(500, "");
    let hour = Duration::from_hours(1);
    let api = start(&database, auth(Algorithm::ES256, keys(&issuer, hour, hour))).await;
    let answer = api.get("/readyz").await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("jwks: "), "{answer:?}");
    let token = signer.sign(&claims(&json!({})));
    assert_eq!(read(&api, &token).await, 503, "it may well be good");
    let key = key(&database, &[READ], None).await;
    assert_eq!(ask(&api, "GET", "/orders", &bearer(&key)).await.status, 200);
    issuer.serve(200, &issuer::set_of(&[&signer]));
    ready(&api).await;
    assert_eq!(read(&api, &token).await, 200);
    api.stop().await;
}

#[tokio::test]
async fn the_last_keys_of_an_issuer_that_is_away_count_for_a_while() {
    let database = TestDatabase::create("issuer_away").await;
    let signer = Signer::ec("k");
    let issuer = Issuer::start(&[&signer]).await;
    let source = keys(&issuer, Duration::from_millis(100), Duration::from_secs(4));
    let api = start(&database, auth(Algorithm::ES256, source)).await;
    ready(&api).await;
    let token = signer.sign(&claims(&json!({})));
    issuer.serve(200, "<html>moved</html>");
    let asked = issuer.asked();
    eventually("it was asked again", async || (issuer.asked() > asked + 1).then_some(())).await;
    assert_eq!(read(&api, &token).await, 200);
    // With a key that is not known, nobody can tell.
    assert_eq!(read(&api, &signer.sign_as("later", &claims(&json!({})))).await, 503);
    eventually("they are too old", async || (read(&api, &token).await == 503).then_some(())).await;
    assert_eq!(api.get("/readyz").await.status, 200, "callers with API keys are served all the same");
    issuer.serve(200, &issuer::set_of(&[&signer]));
    eventually("they count again", async || (read(&api, &token).await == 200).then_some(())).await;
    api.stop().await;
}
