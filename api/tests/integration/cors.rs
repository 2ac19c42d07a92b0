//! Pages of other origins: what their browsers are told.

use std::collections::BTreeSet;

use api::edge::cors::Origins;
use api::edge::settings::Edge;
use shared::testing::TestDatabase;

use crate::http::{Answer, request, send};
use crate::service::{Api, ORDER, written};

const SHOP: &str = "https://shop.example";

async fn start(database: &TestDatabase, origins: &str) -> Api {
    let cors = Some(Origins::parse(origins).expect("origins"));
    Api::at(database.config("outrider_api"), Edge { cors, ..Edge::default() }, |_| ()).await
}

/// What a browser asks before it lets a page of `origin` send this.
async fn preflight(api: &Api, origin: &str, method: &str, headers: &str) -> Answer {
    let head = format!(
        "origin: {origin}\r\naccess-control-request-method: {method}\r\naccess-control-request-headers: {headers}\r\n"
    );
    send(api.address, request("OPTIONS", "/orders", &head, b"")).await
}

fn listed(answer: &Answer, header: &str) -> BTreeSet<String> {
    let text = answer.header(header).unwrap_or_else(|| panic!("{header} is missing: {answer:?}"));
    text.split(',').map(|item| item.trim().to_lowercase()).collect()
}

#[tokio::test]
async fn a_page_that_is_named_may_send_all_that_this_api_takes_and_read_all_that_it_says() {
    let database = TestDatabase::create("named_page").await;
    let api = start(&database, "https://shop.example, http://localhost:3000").await;
    let asked = "authorization,content-type,idempotency-key,if-match,if-none-match,last-event-id,prefer,traceparent,x-request-id";
    for method in ["GET", "HEAD", "POST", "DELETE"] {
        let answer = preflight(&api, SHOP, method, asked).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.header("access-control-allow-origin"), Some(SHOP));
        assert_eq!(answer.header("access-control-max-age"), Some("7200"));
        assert_eq!(answer.header("access-control-allow-credentials"), None);
        assert!(listed(&answer, "access-control-allow-methods").contains(&method.to_lowercase()));
        let allowed = listed(&answer, "access-control-allow-headers");
        assert!(asked.split(',').all(|header| allowed.contains(header)), "{allowed:?}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert!(answer.header("x-request-id").is_some());
    }
    // Errors too: a page must be able to read why.
    let json = format!("origin: {SHOP}\r\ncontent-type: application/json\r\n");
    let accepted = send(api.address, request("POST", "/orders", &json, ORDER.as_bytes())).await;
    let invalid = send(api.address, request("POST", "/orders", &json, b"{}")).await;
    let too_long = format!("/orders/{}", "9".repeat(9_000));
    let too_long = send(api.address, request("GET", &too_long, &format!("origin: {SHOP}\r\n"), b"")).await;
    for (answer, status) in [(accepted, 201), (invalid, 422), (too_long, 414)] {
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (status, Some(SHOP)), "{answer:?}");
        let exposed = listed(&answer, "access-control-expose-headers");
        for header in
            ["etag", "location", "link", "retry-after", "idempotency-replayed", "preference-applied", "x-request-id"]
        {
            assert!(exposed.contains(header), "{header} is not in {exposed:?}");
        }
        assert!(listed(&answer, "vary").contains("origin"), "a cache must not show it to another origin");
    }
    api.stop().await;
}

#[tokio::test]
async fn a_page_that_is_not_named_gets_no_header_that_lets_it_in() {
    let database = TestDatabase::create("other_page").await;
    let api = start(&database, SHOP).await;
    for (origin, method, headers) in [
        ("https://evil.example", "POST", "content-type"),
        ("null", "POST", "content-type"),
        (SHOP, "PUT", "content-type"),
        (SHOP, "POST", "x-other"),
    ] {
        let answer = preflight(&api, origin, method, headers).await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, "/problems/bad-request"), "{answer:?}");
        assert_eq!(answer.header("access-control-allow-origin"), None, "{answer:?}");
    }
    let json = "origin: https://evil.example\r\ncontent-type: application/json\r\n";
    let answer = send(api.address, request("POST", "/orders", json, ORDER.as_bytes())).await;
    assert_eq!(answer.header("access-control-allow-origin"), None);
    api.stop().await;

    let api = Api::start(&database).await;
    let answer = preflight(&api, SHOP, "POST", "content-type").await;
    assert_eq!((answer.status, answer.problem().as_str()), (405, "/problems/method-not-allowed"), "off by default");
    assert_eq!(answer.header("access-control-allow-origin"), None);
    api.stop().await;
}

#[tokio::test]
async fn any_page_may_be_let_in() {
    let database = TestDatabase::create("any_page").await;
    let api = start(&database, "*").await;
    assert_eq!(preflight(&api, SHOP, "POST", "authorization").await.header("access-control-allow-origin"), Some("*"));
    let answer = send(api.address, request("GET", "/orders/1", &format!("origin: {SHOP}\r\n"), b"")).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (404, Some("*")));
    assert_eq!(answer.header("access-control-allow-credentials"), None);
    assert_eq!(written(&database).await, (0, 0, 0));
    api.stop().await;
}
