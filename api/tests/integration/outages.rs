//! Postgres goes and comes back; the service says so and goes on by itself.

use std::time::{Duration, Instant};

use api::config::Limits;
use shared::config::Env;
use shared::db::DatabaseConfig;
use shared::testing::{TestDatabase, eventually};
use sqlx::Connection as _;

use crate::http::{request, send};
use crate::proxy::{Proxy, Way};
use crate::service::{Api, ORDER, written};
use crate::watcher::Watcher;

/// An API whose way to Postgres goes through a proxy, with short time-outs.
async fn behind_proxy(database: &TestDatabase, change: impl FnOnce(&mut Limits)) -> (Proxy, Api) {
    let direct = database.config("outrider_api");
    let server = format!("{}:{}", direct.server().get_host(), direct.server().get_port());
    assert!(database.url.contains(&server), "DATABASE_URL names host and port");
    let proxy = Proxy::to(server.clone()).await;
    let url = database.url.replace(&server, &proxy.address.to_string());
    let env = Env::from_pairs([("DATABASE_URL", url.as_str()), ("DB_ROLE", "outrider_api")]);
    let config = DatabaseConfig::from_env(&env, "outrider-test").expect("the URL is good");
    let api = Api::on(config, |limits| {
        limits.connect_timeout_ms = 300;
        limits.statement_timeout_ms = 300;
        change(limits);
    })
    .await;
    (proxy, api)
}

#[tokio::test]
async fn a_server_that_takes_no_writes_for_a_while_is_a_503_and_comes_back() {
    let database = TestDatabase::create("read_only").await;
    let (_proxy, api) = behind_proxy(&database, |_| ()).await;
    assert_eq!(api.post(ORDER).await.status, 201);
    let name: String =
        sqlx::query_scalar("SELECT current_database()::text").fetch_one(&database.pool).await.expect("a name");
    // As behind an address that leads to a read-only server: new sessions take no writes, and stay so.
    let set = async |value: &str| {
        let sql = format!("ALTER DATABASE \"{name}\" SET default_transaction_read_only = {value}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&database.pool).await.expect("altered");
    };
    let end_sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'outrider-test' AND pid <> pg_backend_pid()";
    set("on").await;
    sqlx::query(end_sessions).execute(&database.pool).await.expect("ended");
    eventually("orders are refused", async || (api.post(ORDER).await.status == 503).then_some(())).await;
    eventually("readiness is red", async || (api.get("/readyz").await.status == 503).then_some(())).await;
    // Reading goes on.
    eventually("orders are read", async || (api.get("/orders/1").await.status == 200).then_some(())).await;
    set("off").await;
    let start = Instant::now();
    eventually("orders are accepted again", async || (api.post(ORDER).await.status == 201).then_some(())).await;
    eventually("readiness is green", async || (api.get("/readyz").await.status == 200).then_some(())).await;
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    api.stop().await;
}

/// The first order needs no new connection, which on a busy server takes longer than an order may wait.
#[tokio::test]
async fn a_ready_api_has_its_writers_connections() {
    let database = TestDatabase::create("opened_ahead").await;
    let api = Api::with(&database, |limits| limits.statements_max = 3).await;
    eventually("it is ready", async || (api.get("/readyz").await.status == 200).then_some(())).await;
    // A database can be closed from another one only.
    let (server, name) = database.url.rsplit_once('/').expect("a URL");
    let mut other = sqlx::PgConnection::connect(&format!("{server}/postgres")).await.expect("it is there");
    let mut allow = async |allowed: bool| {
        let sql = format!("ALTER DATABASE \"{name}\" ALLOW_CONNECTIONS {allowed}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut other).await.expect("altered");
    };
    allow(false).await;
    for answer in futures_util::future::join_all((0..9).map(|_| api.post(ORDER))).await {
        assert_eq!(answer.status, 201);
    }
    allow(true).await;
    assert_eq!(written(&database).await, (9, 9, 9));
    api.stop().await;
}

#[tokio::test]
async fn postgres_away_is_a_503_and_comes_back() {
    let database = TestDatabase::create("away").await;
    let (proxy, api) = behind_proxy(&database, |_| ()).await;
    assert_eq!(api.post(ORDER).await.status, 201);
    let mut accepted = 1;
    for way in [Way::Cut, Way::Frozen] {
        proxy.set(way);
        let start = Instant::now();
        for answer in [api.post(ORDER).await, api.get("/orders/1").await, api.post(ORDER).await] {
            assert_eq!((answer.status, answer.problem().as_str()), (503, "/problems/unavailable"), "{way:?}");
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{way:?}: each wait is bounded");
        eventually("readiness is red", async || (api.get("/readyz").await.status == 503).then_some(())).await;
        assert_eq!(api.get("/livez").await.status, 200);
        assert_eq!(send(api.admin, request("GET", "/readyz", "", b"")).await.status, 503);
        proxy.set(Way::Open);
        eventually("orders are accepted again", async || (api.post(ORDER).await.status == 201).then_some(())).await;
        accepted += 1;
        eventually("orders are read again", async || (api.get("/orders/1").await.status == 200).then_some(())).await;
        eventually("readiness is green", async || (api.get("/readyz").await.status == 200).then_some(())).await;
    }
    // Nothing went through while it was away, so nothing is in doubt.
    assert_eq!(written(&database).await, (accepted, accepted, accepted));
    api.stop().await;
}

#[tokio::test]
async fn every_route_says_that_postgres_is_away_and_works_again_by_itself() {
    let database = TestDatabase::create("away_routes").await;
    let (proxy, api) = behind_proxy(&database, |_| ()).await;
    assert_eq!(api.post(ORDER).await.status, 201);
    let json = "content-type: application/json\r\n";
    let position = Watcher::open(api.address, "/orders/events", None).await.next().await.expect("it begins").id;
    let resume = format!("last-event-id: {}\r\n", position.expect("it says where it is"));
    let requests = [
        ("POST", "/orders", json, ORDER),
        ("GET", "/orders", "", ""),
        ("GET", "/orders?user_id=1&status=Pending", "", ""),
        ("GET", "/orders/1", "", ""),
        ("HEAD", "/orders/1", "", ""),
        ("GET", "/orders/1/timeline", "", ""),
        ("GET", "/orders/1/events", "", ""),
        ("GET", "/orders/events", "", ""),
        ("GET", "/orders/events", &resume, ""),
        ("POST", "/orders/1/cancel", "if-match: \"7\"\r\n", ""),
        ("DELETE", "/orders/1", "if-match: \"7\"\r\n", ""),
    ];
    for way in [Way::Cut, Way::Frozen] {
        proxy.set(way);
        for (method, path, headers, body) in requests {
            let start = Instant::now();
            let answer = send(api.address, request(method, path, headers, body.as_bytes())).await;
            assert_eq!(answer.status, 503, "{way:?}, {method} {path}: {answer:?}");
            assert_eq!(answer.header("retry-after"), Some("1"), "{method} {path}");
            if method != "HEAD" {
                assert_eq!(answer.problem(), "/problems/unavailable", "{method} {path}");
            }
            assert!(start.elapsed() < Duration::from_secs(5), "{way:?}, {method} {path}: {:?}", start.elapsed());
        }
        // Each order of a batch is answered by itself.
        let batch = send(api.address, request("POST", "/orders/batch", json, format!("[{ORDER}]").as_bytes())).await;
        assert_eq!((batch.status, &batch.json()["results"][0]["status"]), (200, &503.into()), "{batch:?}");
        proxy.set(Way::Open);
        for path in ["/orders", "/orders/1", "/orders/1/timeline"] {
            eventually(path, async || (api.get(path).await.status == 200).then_some(())).await;
        }
        for path in ["/orders/events", "/orders/1/events"] {
            eventually(path, async || {
                let stream = Watcher::try_open(api.address, path, None).await;
                stream.is_some_and(|stream| stream.status == 200).then_some(())
            })
            .await;
        }
    }
    assert_eq!(written(&database).await, (1, 1, 1));
    api.stop().await;
}

#[tokio::test]
async fn everyone_who_waits_for_an_absent_postgres_is_answered_soon() {
    let database = TestDatabase::create("away_queue").await;
    // If each waited for its own attempt to connect, the last would wait for half a minute.
    let (proxy, api) = behind_proxy(&database, |limits| limits.batch_rows_max = 1).await;
    proxy.set(Way::Frozen);
    let start = Instant::now();
    let posting: Vec<_> = (0..200).map(|_| api.posting(ORDER)).collect();
    for answer in posting {
        assert_eq!(answer.await.expect("no panic").status, 503);
    }
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(api.metric("api_queue_depth").await, 0);
    api.stop().await;
}

#[tokio::test]
async fn a_connection_that_broke_while_it_rested_costs_no_order() {
    let database = TestDatabase::create("rested").await;
    let api = Api::with(&database, |limits| limits.statements_max = 1).await;
    assert_eq!(api.post(ORDER).await.status, 201);
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND query LIKE '-- insert_orders%' AND state_change < now() - interval '1100 ms'";
    eventually("the connection has rested and is ended", async || {
        let ended: i64 = sqlx::query_scalar(terminate).fetch_one(&database.pool).await.expect("the owner may");
        (ended > 0).then_some(())
    })
    .await;
    assert_eq!(api.post(ORDER).await.status, 201);
    api.stop().await;
}
