//! Requests that are refused: with a problem that says why, and without a trace in the database.

use shared::testing::TestDatabase;

use crate::http::{open, order_request, request, send};
use crate::service::{Api, ORDER, written};

#[tokio::test]
async fn a_bad_field_is_named_and_nothing_is_written() {
    let database = TestDatabase::create("bad_field").await;
    let api = Api::start(&database).await;
    let values =
        ["0", "-1", "1.5", "1.0", "1e3", "\"1\"", "null", "true", "[]", "{}", "9223372036854775808", "1e999", "1e-999"];
    let wrong = |field: &str, value: &str| {
        let of = |name: &str| if name == field { value.to_owned() } else { "1".to_owned() };
        format!(
            r#"{{"user_id": {}, "product_id": {}, "quantity": {}}}"#,
            of("user_id"),
            of("product_id"),
            of("quantity")
        )
    };
    let mut cases: Vec<(String, Vec<&str>)> = Vec::new();
    for field in ["user_id", "product_id", "quantity"] {
        cases.extend(values.iter().map(|value| (wrong(field, value), vec![field])));
        cases.push((wrong(field, &format!("1, \"{field}\": 1")), vec![field]));
    }
    cases.push((wrong("quantity", "10001"), vec!["quantity"]));
    cases.push(("{}".into(), vec!["user_id", "product_id", "quantity"]));
    cases.push((r#"{"user_id": 1, "quantity": 0}"#.into(), vec!["product_id", "quantity"]));
    for body in ["[]", "1", "null", "\"x\""] {
        cases.push((body.into(), vec![]));
    }
    for (body, fields) in cases {
        let answer = api.post(&body).await;
        assert_eq!((answer.status, answer.problem().as_str()), (422, "/problems/invalid-order"), "{body}");
        assert_eq!(answer.fields(), fields, "{body}");
    }
    assert_eq!(written(&database).await, (0, 0, 0));
    api.stop().await;
}

#[tokio::test]
async fn a_body_that_is_no_json_is_a_problem_and_nothing_is_written() {
    let database = TestDatabase::create("no_json").await;
    let api = Api::start(&database).await;
    let bodies: [&[u8]; 8] =
        [b"", b"  ", b"{", b"{\"user_id\": 1,}", b"{} {}", b"user_id=1", b"{\"user_id\": \"\xff\"}", b"\xef\xbb\xbf{}"];
    for body in bodies {
        let answer = send(api.address, request("POST", "/orders", "content-type: application/json\r\n", body)).await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, "/problems/malformed-body"), "{body:?}");
    }
    let types = [
        "",
        "content-type: text/plain\r\n",
        "content-type: application/x-www-form-urlencoded\r\n",
        "content-type: application/jsonp\r\n",
        "content-type: application/json\r\ncontent-encoding: gzip\r\n",
    ];
    for headers in types {
        let answer = send(api.address, request("POST", "/orders", headers, ORDER.as_bytes())).await;
        assert_eq!((answer.status, answer.problem().as_str()), (415, "/problems/unsupported-media-type"), "{headers}");
    }
    assert_eq!(written(&database).await, (0, 0, 0));
    for media_type in ["application/json; charset=utf-8", "Application/JSON", "application/json ;x=y"] {
        let headers = format!("content-type: {media_type}\r\n");
        let answer = send(api.address, request("POST", "/orders", &headers, ORDER.as_bytes())).await;
        assert_eq!(answer.status, 201, "{media_type}: {answer:?}");
    }
    api.stop().await;
}

#[tokio::test]
async fn a_body_over_64_kib_is_refused_however_it_is_sent() {
    let database = TestDatabase::create("too_large").await;
    let api = Api::start(&database).await;
    let padded = |length: usize| {
        let (start, end) = (r#"{"x": ""#, r#"", "user_id": 1, "product_id": 2, "quantity": 3}"#);
        format!("{start}{}{end}", "x".repeat(length - start.len() - end.len()))
    };
    assert_eq!(api.post(&padded(64 * 1024)).await.status, 201);
    let body = padded(64 * 1024 + 1);
    let chunked = format!(
        "POST /orders HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\n\
        transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    for bytes in [order_request(&body), chunked.into_bytes()] {
        let answer = send(api.address, bytes).await;
        assert_eq!((answer.status, answer.problem().as_str()), (413, "/problems/body-too-large"));
    }
    assert_eq!(written(&database).await, (1, 1, 1));
    api.stop().await;
}

#[tokio::test]
async fn an_unknown_path_and_a_wrong_method_are_problems() {
    let database = TestDatabase::create("unknown_path").await;
    let api = Api::start(&database).await;
    for path in ["/", "/order", "/orders/", "/orders/1/2", "/Orders"] {
        let answer = api.get(path).await;
        assert_eq!(answer.status, 404, "{path}");
        answer.problem();
    }
    let cases = [
        ("PUT", "/orders", "GET, HEAD, POST"),
        ("DELETE", "/orders", "GET, HEAD, POST"),
        ("POST", "/orders/1", "GET, HEAD, DELETE"),
        ("PUT", "/orders/1", "GET, HEAD, DELETE"),
        ("GET", "/orders/batch", "POST"),
        ("GET", "/orders/1/cancel", "POST"),
        ("POST", "/livez", "GET, HEAD"),
        ("POST", "/readyz", "GET, HEAD"),
    ];
    for (method, path, allow) in cases {
        let answer = send(api.address, request(method, path, "", b"")).await;
        assert_eq!(
            (answer.status, answer.problem().as_str()),
            (405, "/problems/method-not-allowed"),
            "{method} {path}"
        );
        assert_eq!(answer.header("allow"), Some(allow), "{method} {path}");
    }
    api.stop().await;
}

#[tokio::test]
async fn a_body_that_ends_early_writes_nothing() {
    let database = TestDatabase::create("ends_early").await;
    let api = Api::start(&database).await;
    let whole = order_request(ORDER);
    for cut in [whole.len() - 1, whole.len() - ORDER.len(), 20] {
        drop(open(api.address, &whole[..cut]).await);
    }
    assert_eq!(api.post(ORDER).await.status, 201);
    api.stop().await;
    assert_eq!(written(&database).await, (1, 1, 1), "only the whole one");
}
