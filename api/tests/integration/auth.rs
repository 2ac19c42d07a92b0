//! Who is let in: API keys.

use std::time::{Duration, Instant};

use api::auth::key::ApiKey;
use api::auth::settings::{AuthConfig, Credentials};
use shared::config::Env;
use shared::db::DatabaseConfig;
use shared::testing::{TestDatabase, eventually};

use crate::http::{Answer, request, send};
use crate::proxy::{Proxy, Way};
use crate::service::{Api, ORDER, execute};
use crate::watcher::Watcher;

/// Everything that is not open to everybody.
pub const ROUTES: [(&str, &str); 14] = [
    ("GET", "/orders"),
    ("HEAD", "/orders"),
    ("POST", "/orders"),
    ("PUT", "/orders"),
    ("POST", "/orders/batch"),
    ("GET", "/orders/events"),
    ("GET", "/orders/1"),
    ("HEAD", "/orders/1"),
    ("DELETE", "/orders/1"),
    ("POST", "/orders/1/cancel"),
    ("GET", "/orders/1/events"),
    ("GET", "/orders/1/timeline"),
    ("HEAD", "/orders/1/timeline"),
    ("GET", "/nothing/here"),
];

/// Keys that do not exist cost a look at the database each.
#[tokio::test]
async fn an_address_whose_credentials_were_refused_too_often_is_put_off_and_known_callers_pass() {
    let database = TestDatabase::create("refused_too_often").await;
    let api = start(&database).await;
    let good = bearer(&key(&database, BOTH, None).await);
    let get = async |credentials: &str| send(api.address, request("GET", "/orders", credentials, b"")).await;
    assert_eq!(get(&good).await.status, 200);
    let unknown = || bearer(&ApiKey::from_random(rand::random(), rand::random()));
    let mut statuses = Vec::new();
    for _ in 0..400 {
        let answer = get(&unknown()).await;
        if answer.status == 429 {
            assert_eq!(answer.problem(), "/problems/rate-limited");
        }
        statuses.push(answer.status);
    }
    let refused = statuses.iter().filter(|status| **status == 401).count();
    assert!((200..350).contains(&refused), "{refused} of 400 were looked at");
    assert!(statuses.contains(&429));
    // Behind a proxy, this is the same address.
    for _ in 0..50 {
        assert!([401, 429].contains(&get(&unknown()).await.status));
        assert_eq!(get(&good).await.status, 200, "a key that is known");
    }
    // And a new key is looked at again after a moment.
    let new = bearer(&key(&database, BOTH, None).await);
    eventually("it is let in", async || (get(&new).await.status == 200).then_some(())).await;
    api.stop().await;
}

const BOTH: &[&str] = &["orders:read", "orders:write"];

/// What asks for API keys, and believes what it knows of one for `keys_cache`.
pub fn with_keys(keys_cache: Duration) -> AuthConfig {
    AuthConfig { required: Some(Credentials { keys_cache, stream: Duration::from_hours(1), jwt: None }), rate: None }
}

/// An API that asks for API keys, and takes a long time to hear of changes.
pub async fn start(database: &TestDatabase) -> Api {
    Api::guarded(database.config("outrider_api"), with_keys(Duration::from_hours(1)), |_| ()).await
}

/// Makes a key in the database.
pub async fn key(database: &TestDatabase, scopes: &[&str], user_id: Option<i64>) -> ApiKey {
    let key = ApiKey::from_random(rand::random(), rand::random());
    let insert = "INSERT INTO api_keys (id, caller_id, secret_hash, name, scopes, user_id, created_by)
        VALUES ($1, $1, $2, 'test', $3, $4, 'a test')";
    sqlx::query(insert)
        .bind(key.id().to_string())
        .bind(key.secret_hash().to_vec())
        .bind(scopes)
        .bind(user_id)
        .execute(&database.pool)
        .await
        .expect("a key");
    key
}

/// The header that shows a key.
pub fn bearer(key: &ApiKey) -> String {
    format!("authorization: Bearer {}\r\n", key.expose())
}

pub async fn ask(api: &Api, method: &str, path: &str, headers: &str) -> Answer {
    let headers = format!("content-type: application/json\r\n{headers}");
    let body = match (method, path) {
        ("POST", "/orders") => ORDER.to_owned(),
        ("POST", "/orders/batch") => format!("[{ORDER}]"),
        _ => String::new(),
    };
    send(api.address, request(method, path, &headers, body.as_bytes())).await
}

async fn refused(api: &Api, reason: &str) -> i64 {
    api.metric(&format!("api_auth_refused_total{{reason=\"{reason}\"}}")).await
}

#[tokio::test]
async fn every_route_asks_for_credentials() {
    let database = TestDatabase::create("asks").await;
    let api = start(&database).await;
    for (method, path) in ROUTES {
        for headers in ["", "authorization: Bearer nonsense\r\n", "authorization: Basic YTpi\r\n"] {
            let answer = ask(&api, method, path, headers).await;
            assert_eq!(answer.status, 401, "{method} {path} {headers}");
            let challenge = answer.header("www-authenticate").expect("a challenge");
            assert_eq!(challenge.contains("invalid_token"), !headers.is_empty(), "{challenge}");
            if method != "HEAD" {
                assert_eq!(answer.problem(), "/problems/unauthorized");
            }
        }
    }
    for path in ["/livez", "/readyz"] {
        assert_eq!(api.get(path).await.status, 200, "{path}");
    }
    let count = i64::try_from(ROUTES.len()).expect("few");
    assert_eq!((refused(&api, "missing").await, refused(&api, "malformed").await), (count, 2 * count));
    let labels = "{http_route=\"/orders/{id}\",http_response_status_class=\"4xx\"}";
    assert_eq!(api.metric(&format!("http_server_request_duration_seconds_count{labels}")).await, 9);
    api.stop().await;
}

#[tokio::test]
async fn a_key_is_good_for_its_scopes() {
    let database = TestDatabase::create("scopes").await;
    let api = start(&database).await;
    let [reads, writes, both] = [
        key(&database, &["orders:read"], None).await,
        key(&database, &["orders:write"], None).await,
        key(&database, BOTH, None).await,
    ];
    assert_eq!(ask(&api, "POST", "/orders", &bearer(&both)).await.status, 201);
    for (method, path) in ROUTES.iter().filter(|(_, path)| !path.ends_with("/events")) {
        let reading = ["GET", "HEAD"].contains(method);
        let (may, may_not, scope) =
            if reading { (&reads, &writes, "orders:read") } else { (&writes, &reads, "orders:write") };
        let answer = ask(&api, method, path, &bearer(may_not)).await;
        assert_eq!(answer.status, 403, "{method} {path}");
        let challenge = answer.header("www-authenticate").expect("a challenge");
        assert!(challenge.contains("insufficient_scope") && challenge.contains(scope), "{challenge}");
        if *method != "HEAD" {
            assert_eq!(answer.problem(), "/problems/forbidden");
            assert!(answer.json()["detail"].as_str().expect("a detail").contains(scope), "{answer:?}");
        }
        let answer = ask(&api, method, path, &bearer(may)).await;
        assert!(![401, 403].contains(&answer.status), "{method} {path}: {answer:?}");
    }
    assert!(refused(&api, "missing_scope").await > 0);
    api.stop().await;
}

#[tokio::test]
async fn what_is_no_good_key_is_refused_and_nobody_learns_why() {
    let database = TestDatabase::create("no_good_key").await;
    let api = start(&database).await;
    let [good, revoked, expired] =
        [key(&database, BOTH, None).await, key(&database, BOTH, None).await, key(&database, BOTH, None).await];
    sqlx::query("UPDATE api_keys SET revoked_at = now() WHERE id = $1")
        .bind(revoked.id().to_string())
        .execute(&database.pool)
        .await
        .expect("revoked");
    sqlx::query(
        "UPDATE api_keys SET created_at = now() - interval '2 h', expires_at = now() - interval '1 s' WHERE id = $1",
    )
    .bind(expired.id().to_string())
    .execute(&database.pool)
    .await
    .expect("expired");
    let id_of = |key: &ApiKey| u64::from_str_radix(&key.id().to_string(), 16).expect("an id");
    let unknown = ApiKey::from_random(7, [7; 32]);
    let guessed = ApiKey::from_random(id_of(&good), [7; 32]);
    let guessed_revoked = ApiKey::from_random(id_of(&revoked), [7; 32]);
    let mut details = Vec::new();
    // Twice: from the database, and from what is known.
    for key in [&unknown, &unknown, &guessed, &guessed, &guessed_revoked] {
        let answer = ask(&api, "GET", "/orders/1", &bearer(key)).await;
        assert_eq!((answer.status, answer.problem().as_str()), (401, "/problems/unauthorized"));
        details.push((answer.body.clone(), answer.header("www-authenticate").map(str::to_owned)));
    }
    details.dedup();
    assert_eq!(details.len(), 1, "{details:?}");
    for key in [&revoked, &expired] {
        assert_eq!(ask(&api, "GET", "/orders/1", &bearer(key)).await.status, 401);
    }
    assert_eq!(ask(&api, "GET", "/orders/1", &bearer(&good)).await.status, 404);
    let twice = bearer(&good).repeat(2);
    assert_eq!(ask(&api, "GET", "/orders/1", &twice).await.status, 401, "which of them counts?");
    for (reason, count) in [("unknown_key", 2), ("wrong_secret", 3), ("revoked", 1), ("expired", 1), ("malformed", 1)] {
        assert_eq!(refused(&api, reason).await, count, "{reason}");
    }
    api.stop().await;
}

#[tokio::test]
async fn a_key_that_is_known_costs_no_query() {
    let database = TestDatabase::create("no_query").await;
    let api = start(&database).await;
    let [known, unknown] = [key(&database, BOTH, None).await, key(&database, BOTH, None).await];
    assert_eq!(ask(&api, "POST", "/orders", &bearer(&known)).await.status, 201);
    execute(&database, "REVOKE SELECT ON api_keys FROM outrider_api").await;
    for _ in 0..10 {
        assert_eq!(ask(&api, "GET", "/orders/1", &bearer(&known)).await.status, 200);
    }
    let answer = ask(&api, "GET", "/orders/1", &bearer(&unknown)).await;
    assert_eq!((answer.status, answer.problem().as_str()), (503, "/problems/unavailable"), "it may well be good");
    api.stop().await;
}

#[tokio::test]
async fn a_revoked_key_and_its_streams_end_while_requests_run() {
    let database = TestDatabase::create("revoked").await;
    let mut auth = with_keys(Duration::from_secs(1));
    auth.required.as_mut().expect("keys").stream = Duration::from_secs(2);
    let api = Api::guarded(database.config("outrider_api"), auth, |_| ()).await;
    let key = key(&database, BOTH, None).await;
    let header = bearer(&key);
    // In use all the time, so that what is known of it is read again before it is too old.
    for _ in 0..200 {
        assert_eq!(ask(&api, "POST", "/orders", &header).await.status, 201);
    }
    let mut stream = Watcher::open_as(api.address, "/orders/events", &header, None).await;
    let revoke = "UPDATE api_keys SET revoked_at = now() WHERE id = $1";
    sqlx::query(revoke).bind(key.id().to_string()).execute(&database.pool).await.expect("revoked");
    let start = Instant::now();
    eventually("the key is refused", async || {
        let sent = start.elapsed();
        let answer = ask(&api, "POST", "/orders", &header).await;
        assert!(answer.status == 401 || sent < Duration::from_secs(1), "taken {sent:?} after it was revoked");
        (answer.status == 401).then_some(())
    })
    .await;
    while stream.next().await.is_some() {}
    let answer = ask(&api, "GET", "/orders/events", &header).await;
    assert_eq!(answer.status, 401, "and its reader is not let in again");
    api.stop().await;
}

#[tokio::test]
async fn a_stream_goes_on_over_its_end_with_none_missed() {
    let database = TestDatabase::create("stream_end").await;
    let mut auth = with_keys(Duration::from_secs(10));
    auth.required.as_mut().expect("keys").stream = Duration::from_millis(300);
    let api = Api::guarded(database.config("outrider_api"), auth, |_| ()).await;
    let header = bearer(&key(&database, BOTH, None).await);
    let mut stream = Watcher::open_as(api.address, "/orders/events", &header, None).await;
    let mut told = Vec::new();
    for _ in 0..20 {
        assert_eq!(ask(&api, "POST", "/orders", &header).await.status, 201);
    }
    while told.len() < 20 {
        if let Some(message) = stream.next().await {
            told.extend(message.change());
        } else {
            let last = stream.last_id.clone();
            stream = Watcher::open_as(api.address, "/orders/events", &header, last.as_deref()).await;
        }
    }
    let expected: Vec<(i64, i64)> = (1..=20).map(|order| (order, 1)).collect();
    assert_eq!(told, expected);
    api.stop().await;
}

#[tokio::test]
async fn the_use_of_a_key_is_noted_once_a_minute() {
    let database = TestDatabase::create("last_used").await;
    let api = Api::guarded(database.config("outrider_api"), with_keys(Duration::from_millis(300)), |_| ()).await;
    let key = key(&database, BOTH, None).await;
    let used = async || {
        let read = "SELECT last_used_at::text FROM api_keys WHERE id = $1";
        let read = sqlx::query_scalar::<_, Option<String>>(read).bind(key.id().to_string());
        read.fetch_one(&database.pool).await.expect("the key")
    };
    let first = eventually("its use is noted", async || {
        assert_eq!(ask(&api, "GET", "/orders", &bearer(&key)).await.status, 200);
        used().await
    })
    .await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        assert_eq!(ask(&api, "GET", "/orders", &bearer(&key)).await.status, 200);
    }
    assert_eq!(used().await, Some(first));
    api.stop().await;
}

#[tokio::test]
async fn a_rotated_key_stands_for_the_same_caller() {
    let database = TestDatabase::create("rotated").await;
    let api = start(&database).await;
    let [old, new, other] =
        [key(&database, BOTH, None).await, key(&database, BOTH, None).await, key(&database, BOTH, None).await];
    sqlx::query("UPDATE api_keys SET caller_id = $1 WHERE id = $2")
        .bind(old.id().to_string())
        .bind(new.id().to_string())
        .execute(&database.pool)
        .await
        .expect("rotated");
    let post =
        async |key: &ApiKey| ask(&api, "POST", "/orders", &format!("idempotency-key: k\r\n{}", bearer(key))).await;
    let (first, again, others) = (post(&old).await, post(&new).await, post(&other).await);
    assert_eq!((first.status, again.status, others.status), (201, 201, 201));
    assert_eq!((&first.body, again.header("idempotency-replayed")), (&again.body, Some("true")));
    assert_eq!(others.header("idempotency-replayed"), None, "a key belongs to its caller");
    assert_ne!(first.body, others.body);
    api.stop().await;
}

#[tokio::test]
async fn postgres_away_is_not_a_refusal() {
    let database = TestDatabase::create("auth_away").await;
    let direct = database.config("outrider_api");
    let server = format!("{}:{}", direct.server().get_host(), direct.server().get_port());
    let proxy = Proxy::to(server.clone()).await;
    let url = database.url.replace(&server, &proxy.address.to_string());
    let env = Env::from_pairs([("DATABASE_URL", url.as_str()), ("DB_ROLE", "outrider_api")]);
    let config = DatabaseConfig::from_env(&env, "outrider-test").expect("the URL is good");
    let api = Api::guarded(config, with_keys(Duration::from_hours(1)), |limits| {
        limits.connect_timeout_ms = 300;
        limits.statement_timeout_ms = 300;
    })
    .await;
    let key = key(&database, BOTH, None).await;
    for way in [Way::Cut, Way::Frozen] {
        proxy.set(way);
        let start = Instant::now();
        // Keys that nobody has, so that each of them is asked for.
        let asking = (0..20).map(|id| {
            let key = ApiKey::from_random(id, [1; 32]);
            let headers = bearer(&key);
            tokio::spawn(send(api.address, request("GET", "/orders", &headers, b"")))
        });
        for answer in asking.collect::<Vec<_>>() {
            let answer = answer.await.expect("no panic");
            assert_eq!((answer.status, answer.problem().as_str()), (503, "/problems/unavailable"), "{way:?}");
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{way:?}: each wait is bounded");
        proxy.set(Way::Open);
        eventually("the key is taken", async || {
            (ask(&api, "GET", "/orders", &bearer(&key)).await.status == 200).then_some(())
        })
        .await;
    }
    api.stop().await;
}

#[tokio::test]
async fn the_api_can_make_no_key() {
    let database = TestDatabase::create("no_making").await;
    key(&database, BOTH, None).await;
    let mut connection = database.pool.acquire().await.expect("a connection");
    for (role, statement) in [
        ("outrider_api", "INSERT INTO api_keys SELECT * FROM api_keys"),
        ("outrider_api", "UPDATE api_keys SET scopes = '{orders:read}'"),
        ("outrider_api", "UPDATE api_keys SET revoked_at = NULL"),
        ("outrider_api", "DELETE FROM api_keys"),
        ("outrider_api", "SELECT * FROM api_key_log"),
        ("outrider_operator", "SELECT secret_hash FROM api_keys"),
        ("outrider_operator", "UPDATE api_keys SET secret_hash = '\\x00'"),
        ("outrider_operator", "DELETE FROM api_key_log"),
        ("outrider_relay", "SELECT id FROM api_keys"),
        ("outrider_processor", "SELECT id FROM api_keys"),
    ] {
        let text = sqlx::AssertSqlSafe(format!("SET ROLE {role}; {statement}"));
        let error = sqlx::raw_sql(text).execute(&mut *connection).await.expect_err(statement).to_string();
        assert!(error.contains("permission denied"), "{role}: {statement}: {error}");
        sqlx::raw_sql("RESET ROLE").execute(&mut *connection).await.expect("the owner again");
    }
}
