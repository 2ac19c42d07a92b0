//! Clients that take their time, and requests that take ours.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use shared::testing::{PATIENCE, TestDatabase, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::http::{open, order_request, request, send};
use crate::service::{Api, ORDER, hold, statement_waits, written};

/// Sends `head` and then a piece every 50 ms, until the server closes. Returns what it said, and how long it took.
async fn trickle(address: SocketAddr, head: &str, piece: &str) -> (String, Duration) {
    let start = Instant::now();
    let (mut from, mut to) = open(address, head.as_bytes()).await.into_split();
    let piece = piece.to_owned();
    let sending = tokio::spawn(async move {
        while to.write_all(piece.as_bytes()).await.is_ok() {
            sleep(Duration::from_millis(50)).await;
        }
    });
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, from.read_to_end(&mut answer)).await.expect("it is closed");
    sending.abort();
    (String::from_utf8_lossy(&answer).into_owned(), start.elapsed())
}

#[tokio::test]
async fn a_body_that_trickles_is_given_up_and_its_connection_closed() {
    let database = TestDatabase::create("trickle").await;
    let api = Api::with(&database, |limits| limits.body_timeout_ms = 500).await;
    let head = |method: &str, path: &str, body: &str| {
        format!("{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n{body}\r\n\r\n")
    };
    for path in ["/orders", "/orders/batch"] {
        for (body, piece) in [("content-length: 50000", " "), ("transfer-encoding: chunked", "1\r\n \r\n")] {
            let (answer, took) = trickle(api.address, &head("POST", path, body), piece).await;
            assert!(answer.starts_with("HTTP/1.1 408 "), "{path}, {body}: {answer}");
            assert!(answer.contains("/problems/request-timeout"), "{answer}");
            assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
            assert!(took >= Duration::from_millis(500) && took < Duration::from_secs(10), "{took:?}");
        }
    }
    // Where no body is read, there is an answer at once, and no waiting for the rest.
    for (method, path, status) in [("GET", "/orders", 200), ("DELETE", "/orders/1", 404), ("GET", "/livez", 200)] {
        let (answer, took) =
            trickle(api.address, &head(method, path, "transfer-encoding: chunked"), "1\r\n \r\n").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {path}: {answer}");
        assert!(took < Duration::from_secs(10), "{method} {path}: {took:?}");
    }
    assert_eq!(written(&database).await, (0, 0, 0));
    api.stop().await;
}

#[tokio::test]
async fn a_body_that_arrives_in_time_is_taken_however_it_is_cut() {
    let database = TestDatabase::create("in_pieces").await;
    let api = Api::start(&database).await;
    let whole = order_request(ORDER);
    let mut stream = TcpStream::connect(api.address).await.expect("a connection");
    for piece in whole.chunks(whole.len() / 7) {
        stream.write_all(piece).await.expect("it is read");
        sleep(Duration::from_millis(20)).await;
    }
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an answer").expect("no reset");
    assert!(answer.starts_with(b"HTTP/1.1 201 "));
    let expecting =
        format!("content-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {}\r\n", ORDER.len());
    let mut stream = open(api.address, &request("POST", "/orders", &expecting, b"")).await;
    let mut buffer = [0; 25];
    timeout(PATIENCE, stream.read_exact(&mut buffer)).await.expect("an answer").expect("no reset");
    assert_eq!(&buffer, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(ORDER.as_bytes()).await.expect("it is read");
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an answer").expect("no reset");
    assert!(answer.starts_with(b"HTTP/1.1 201 "), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(written(&database).await, (2, 2, 2));
    api.stop().await;
}

#[tokio::test]
async fn a_head_that_does_not_end_is_answered_408() {
    let database = TestDatabase::create("slow_head").await;
    let api = Api::with(&database, |limits| limits.head_timeout_ms = 300).await;
    let (answer, took) = trickle(api.address, "GET /livez HTTP/1.1\r\nhost: test\r\nx-slow: ", "a").await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    api.stop().await;
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_answered_503_and_what_it_asked_for_is_done_whole_or_not_at_all() {
    let database = TestDatabase::create("too_long").await;
    let api = Api::with(&database, |limits| {
        limits.request_timeout_ms = 3_000;
        limits.statements_max = 1;
    })
    .await;
    for _ in 0..2 {
        assert_eq!(api.post(ORDER).await.status, 201);
    }
    let held = hold(&database.pool).await;
    let start = Instant::now();
    let posting = api.posting(ORDER);
    let cancelling = tokio::spawn(send(api.address, request("POST", "/orders/1/cancel", "", b"")));
    let deleting = tokio::spawn(send(api.address, request("DELETE", "/orders/2", "", b"")));
    for statement in ["-- insert_orders%", "-- cancel_order%", "-- delete_order%"] {
        statement_waits(&database, statement, 1).await;
    }
    for asked in [posting, cancelling, deleting] {
        let answer = asked.await.expect("no panic");
        assert_eq!((answer.status, answer.problem().as_str()), (503, "/problems/unavailable"), "{answer:?}");
        assert!(answer.header("x-request-id").is_some() && answer.header("cache-control").is_some());
    }
    assert!(start.elapsed() < Duration::from_secs(30), "the statements may take 60 s");
    assert_eq!(api.metric("http_server_active_requests").await, 0, "nobody is waited for");
    drop(held);
    eventually("the order is written", async || (written(&database).await.0 == 3).then_some(())).await;
    // Of the others, Postgres may have been preparing the statement, and not been asked to execute it.
    let uneven: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM orders AS o
        WHERE version <> (SELECT count(*) FROM order_transitions WHERE order_id = o.id)
            OR version <> (SELECT count(*) FROM outbox WHERE aggregate_id = o.id::text)
            OR (version = 1) <> (status = 'Pending' AND deleted_at IS NULL)",
    )
    .fetch_one(&database.pool)
    .await
    .expect("orders can be counted");
    assert_eq!(uneven, 0, "a change is made whole or not at all");
    let metric =
        "http_server_request_duration_seconds_count{http_route=\"/orders\",http_response_status_class=\"5xx\"}";
    assert_eq!(api.metric(metric).await, 1);
    api.stop().await;
}

#[tokio::test]
async fn what_a_client_would_rather_wait_for_comes_on_top_of_its_time() {
    let database = TestDatabase::create("wait_on_top").await;
    let api = Api::with(&database, |limits| limits.request_timeout_ms = 500).await;
    let headers = "content-type: application/json\r\nprefer: wait=2\r\n";
    let start = Instant::now();
    let answer = send(api.address, request("POST", "/orders", headers, ORDER.as_bytes())).await;
    assert_eq!((answer.status, answer.header("preference-applied")), (201, Some("wait")), "{answer:?}");
    assert!(start.elapsed() >= Duration::from_secs(2));
    api.stop().await;
}

#[tokio::test]
async fn an_order_whose_request_was_given_up_keeps_its_key_until_it_is_written() {
    let database = TestDatabase::create("given_up_key").await;
    let api = Api::with(&database, |limits| {
        limits.request_timeout_ms = 2_000;
        limits.statements_max = 1;
    })
    .await;
    let held = hold(&database.pool).await;
    let keyed =
        || request("POST", "/orders", "content-type: application/json\r\nidempotency-key: k\r\n", ORDER.as_bytes());
    let first = tokio::spawn(send(api.address, keyed()));
    statement_waits(&database, "-- insert_keyed_orders%", 1).await;
    assert_eq!(first.await.expect("no panic").status, 503);
    assert_eq!(send(api.address, keyed()).await.problem(), "/problems/idempotency-in-progress");
    drop(held);
    let again = eventually("it is written", async || {
        let answer = send(api.address, keyed()).await;
        (answer.status == 201).then_some(answer)
    })
    .await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(written(&database).await, (1, 1, 1));
    api.stop().await;
}
