//! Requests that are malformed or too large: a clean answer, and where one of ours is possible, a problem.

use shared::testing::{PATIENCE, TestDatabase};
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use crate::http::{open, request, send};
use crate::service::{Api, ORDER, written};

/// Sends `bytes` and reads all that comes back.
async fn said(api: &Api, bytes: &[u8]) -> String {
    let mut stream = open(api.address, bytes).await;
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it is closed");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn heads_and_uris_have_limits_that_are_told() {
    let database = TestDatabase::create("head_limits").await;
    let api = Api::start(&database).await;
    let headers =
        |count: usize, length: usize| -> String { format!("x-padding: {}\r\n", "a".repeat(length)).repeat(count) };
    let answer = send(api.address, request("GET", "/orders", &headers(30, 1_000), b"")).await;
    assert_eq!(answer.status, 200, "a large token and cookies fit");
    let answer = send(api.address, request("GET", "/orders", &headers(40, 1_000), b"")).await;
    assert_eq!((answer.status, answer.problem().as_str()), (431, "/problems/headers-too-large"));
    for (path, status) in [("/orders?x=", 400), ("/orders/", 404)] {
        let answer = send(api.address, request("GET", &format!("{path}{}", "9".repeat(8_000)), "", b"")).await;
        assert_eq!(answer.status, status, "{answer:?}");
        for length in [8_200, 60_000] {
            let answer = send(api.address, request("GET", &format!("{path}{}", "9".repeat(length)), "", b"")).await;
            assert_eq!((answer.status, answer.problem().as_str()), (414, "/problems/uri-too-long"), "{length}");
        }
    }
    // Beyond these, it is the HTTP server that answers: no problem, but a clean end.
    for (bytes, status) in [
        (request("GET", "/orders", &headers(100, 10), b""), 431),
        (request("GET", "/orders", &headers(2, 100_000), b""), 431),
        (request("GET", &format!("/orders/{}", "9".repeat(66_000)), "", b""), 414),
    ] {
        let answer = said(&api, &bytes).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
    }
    assert_eq!(api.get("/livez").await.status, 200);
    api.stop().await;
}

#[tokio::test]
async fn what_is_no_request_is_answered_400_and_nothing_breaks() {
    let database = TestDatabase::create("no_request").await;
    let api = Api::start(&database).await;
    let json = "host: test\r\ncontent-type: application/json\r\n";
    let malformed = [
        "nonsense\r\n\r\n".to_owned(),
        "GET\r\n\r\n".to_owned(),
        "GET /orders HTTP/9.9\r\n\r\n".to_owned(),
        "GET /orders HTTP/1.1\r\n\r\n".to_owned(),
        "GET /or ders HTTP/1.1\r\nhost: test\r\n\r\n".to_owned(),
        "G\u{e9}T /orders HTTP/1.1\r\nhost: test\r\n\r\n".to_owned(),
        "GET /orders HTTP/1.1\r\nhost: test\r\nhost: other\r\n\r\n".to_owned(),
        "GET /orders HTTP/1.1\r\nhost: test\r\nbad header\r\n\r\n".to_owned(),
        format!("POST /orders HTTP/1.1\r\n{json}content-length: many\r\n\r\n"),
        format!("POST /orders HTTP/1.1\r\n{json}content-length: -1\r\n\r\n"),
        format!("POST /orders HTTP/1.1\r\n{json}content-length: 5\r\ncontent-length: 6\r\n\r\n{ORDER}"),
        format!("POST /orders HTTP/1.1\r\n{json}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("POST /orders HTTP/1.1\r\n{json}transfer-encoding: gzip\r\n\r\n"),
        format!("POST /orders HTTP/1.1\r\n{json}transfer-encoding: chunked\r\n\r\nzz\r\n{ORDER}\r\n0\r\n\r\n"),
        "\u{0}\u{1}\u{2}\u{3}".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
    ];
    for text in malformed {
        let answer = said(&api, text.as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{text:?}: {answer}");
        assert!(!answer.contains("panic") && !answer.contains(".rs:"), "{answer}");
    }
    assert_eq!(api.get("/livez").await.status, 200);
    assert_eq!(written(&database).await, (0, 0, 0));
    api.stop().await;
}

#[tokio::test]
async fn odd_paths_and_methods_are_problems() {
    let database = TestDatabase::create("odd_paths").await;
    let api = Api::start(&database).await;
    for path in [
        "/orders/%ff",
        "/orders/%00",
        "/orders/%",
        "/orders/%2f",
        "/orders/..",
        "/%2e%2e/etc",
        "//orders",
        "/orders/1%20",
    ] {
        let answer = api.get(path).await;
        assert!((400..500).contains(&answer.status), "{path}: {answer:?}");
        answer.problem();
    }
    for query in ["%ff=1", "user_id=%ff", "&&&", "user_id", "=", "user_id=1&user_id=2"] {
        let answer = api.get(&format!("/orders?{query}")).await;
        if answer.status != 200 {
            assert_eq!((answer.status, answer.problem().as_str()), (400, "/problems/invalid-query"), "{query}");
        }
    }
    for method in ["PUT", "PATCH", "OPTIONS", "TRACE", "BREW", "get"] {
        let answer = send(api.address, request(method, "/orders/1", "", b"")).await;
        assert_eq!((answer.status, answer.problem().as_str()), (405, "/problems/method-not-allowed"), "{method}");
    }
    for (line, status) in
        [("OPTIONS * HTTP/1.1", 404), ("CONNECT other:443 HTTP/1.1", 404), ("GET http://other/orders HTTP/1.1", 200)]
    {
        let answer = said(&api, format!("{line}\r\nhost: test\r\nconnection: close\r\n\r\n").as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {answer}");
    }
    let upgrade = "GET /orders HTTP/1.1\r\nhost: test\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n\r\n";
    assert!(said(&api, upgrade.as_bytes()).await.starts_with("HTTP/1.1 200 "));
    api.stop().await;
}
