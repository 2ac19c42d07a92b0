//! The headers that every answer has, whatever it is: those that protect its reader, and the request's id.

use shared::testing::TestDatabase;
use uuid::Uuid;

use crate::http::{Answer, order_request, request, send};
use crate::service::{Api, ORDER};
use crate::watcher::Watcher;

/// One answer of every kind, with what it may be kept for.
async fn answers(api: &Api, headers: &str) -> Vec<(&'static str, Answer, &'static str)> {
    let json = format!("content-type: application/json\r\n{headers}");
    let if_none_match = format!("if-none-match: \"1\"\r\n{headers}");
    let requests = [
        ("accepted", request("POST", "/orders", &json, ORDER.as_bytes()), "no-store"),
        ("batch", request("POST", "/orders/batch", &json, format!("[{ORDER}]").as_bytes()), "no-store"),
        ("read", request("GET", "/orders/1", headers, b""), "private, no-cache"),
        ("head", request("HEAD", "/orders/1", headers, b""), "private, no-cache"),
        ("not modified", request("GET", "/orders/1", &if_none_match, b""), "private, no-cache"),
        ("list", request("GET", "/orders", headers, b""), "no-store"),
        ("timeline", request("GET", "/orders/1/timeline", headers, b""), "no-store"),
        ("cancelled", request("POST", "/orders/2/cancel", headers, b""), "no-store"),
        ("deleted", request("DELETE", "/orders/2", headers, b""), "no-store"),
        ("invalid", request("POST", "/orders", &json, b"{}"), "no-store"),
        ("missing", request("GET", "/orders/999", headers, b""), "no-store"),
        ("unknown", request("GET", "/nowhere", headers, b""), "no-store"),
        ("wrong method", request("PATCH", "/orders", headers, b""), "no-store"),
        ("odd method", request("BREW", "/orders/1", headers, b""), "no-store"),
        ("too long", request("GET", &format!("/orders/{}", "9".repeat(9_000)), headers, b""), "no-store"),
        ("alive", request("GET", "/livez", headers, b""), "no-store"),
        ("ready", request("GET", "/readyz", headers, b""), "no-store"),
    ];
    let mut answers = Vec::new();
    for (name, bytes, cache) in requests {
        answers.push((name, send(api.address, bytes).await, cache));
    }
    answers
}

#[tokio::test]
async fn every_answer_has_the_headers_that_protect_its_reader() {
    let database = TestDatabase::create("every_answer").await;
    let api = Api::start(&database).await;
    for (name, answer, cache) in answers(&api, "").await {
        for (header, value) in [
            ("x-content-type-options", "nosniff"),
            ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
            ("x-frame-options", "DENY"),
            ("cache-control", cache),
        ] {
            assert_eq!(answer.header(header), Some(value), "{name}: {answer:?}");
        }
        // Over plain HTTP a browser must not listen to it, and whoever ends TLS before us says it.
        assert_eq!(answer.header("strict-transport-security"), None, "{name}");
        assert_eq!(answer.header("access-control-allow-origin"), None, "{name}");
    }
    let stream = Watcher::open(api.address, "/orders/events", None).await;
    assert!(stream.head.contains("\r\ncache-control: no-store\r\n"), "{}", stream.head);
    assert!(stream.head.contains("\r\nx-content-type-options: nosniff\r\n"), "{}", stream.head);
    assert!(stream.head.contains("\r\nx-request-id: "), "{}", stream.head);
    drop(stream);
    api.stop().await;
}

#[tokio::test]
async fn every_answer_has_the_id_of_its_request_which_is_the_callers_if_that_is_sane() {
    let database = TestDatabase::create("request_ids").await;
    let api = Api::start(&database).await;
    for (name, answer, _) in answers(&api, "x-request-id: their-own/42\r\n").await {
        assert_eq!(answer.header("x-request-id"), Some("their-own/42"), "{name}: {answer:?}");
    }
    let mut made = Vec::new();
    for id in ["", "x-request-id: \r\n", "x-request-id: a b\r\n", &format!("x-request-id: {}\r\n", "a".repeat(129))] {
        for (name, answer, _) in answers(&api, id).await {
            let id = answer.header("x-request-id").unwrap_or_else(|| panic!("{name} has none"));
            made.push(Uuid::parse_str(id).unwrap_or_else(|error| panic!("{name}: {id}: {error}")));
        }
    }
    let count = made.len();
    made.sort_unstable();
    made.dedup();
    assert_eq!(made.len(), count, "no two requests have one id");
    assert_eq!(send(api.address, order_request(ORDER)).await.status, 201);
    api.stop().await;
}
