//! Forms of HTTP that real clients use beside the plain one: upgrades that are offered, versions, expectations.

use std::net::SocketAddr;
use std::time::Duration;

use api::edge::public_url::PublicUrl;
use api::edge::settings::Edge;
use shared::testing::{PATIENCE, TestDatabase};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::http::{open, request, send};
use crate::service::{Api, ORDER, written};
use crate::watcher::Watcher;

/// Reads one answer with a `content-length` from a connection that stays open.
async fn answer(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    let mut byte = [0];
    let mut read = async || {
        assert_eq!(timeout(PATIENCE, stream.read(&mut byte)).await.expect("more").expect("no reset"), 1, "it ended");
        char::from(byte[0])
    };
    while !text.ends_with("\r\n\r\n") {
        text.push(read().await);
    }
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    for _ in 0..length.parse().expect("a number") {
        text.push(read().await);
    }
    text
}

/// All that comes back for `sent`, until the server closes.
async fn said(address: SocketAddr, sent: &str) -> String {
    let mut stream = open(address, sent.as_bytes()).await;
    let mut text = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut text)).await.expect("it is closed").expect("no reset");
    text
}

fn order(headers: &str) -> String {
    let length = ORDER.len();
    format!(
        "POST /orders HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n{ORDER}"
    )
}

#[tokio::test]
async fn an_upgrade_that_is_offered_changes_nothing() {
    let database = TestDatabase::create("upgrades").await;
    let api = Api::start(&database).await;
    let offers = [
        // Java's HttpClient, with each request over plain HTTP.
        "connection: Upgrade, HTTP2-Settings\r\nhttp2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nupgrade: h2c\r\n",
        "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZQ==\r\n",
        "connection: Upgrade\r\nupgrade: TLS/1.2, HTTP/2.0\r\n",
        "upgrade: something\r\n",
    ];
    for offer in offers {
        // On one connection, which stays open.
        let mut stream = open(api.address, b"").await;
        for _ in 0..10 {
            stream.write_all(order(offer).as_bytes()).await.expect("it is read");
            let answer = answer(&mut stream).await;
            assert!(answer.starts_with("HTTP/1.1 201 "), "{offer}: {answer}");
            let head = answer.to_lowercase();
            assert!(!head.contains("\r\nconnection: upgrade") && !head.contains("\r\nupgrade:"), "{offer}: {answer}");
            assert!(!head.contains("\r\nconnection: close"), "{offer}: {answer}");
        }
    }
    assert_eq!(written(&database).await, (40, 40, 40));
    // The framing of a stream stays HTTP's.
    let asked = format!("GET /orders/events HTTP/1.1\r\nhost: test\r\n{}\r\n", offers[1]);
    let mut stream = open(api.address, asked.as_bytes()).await;
    let mut buffer = vec![0; 4 * 1024];
    let mut text = String::new();
    while !text.contains("id:") {
        let count = timeout(PATIENCE, stream.read(&mut buffer)).await.expect("more").expect("no reset");
        assert!(count > 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("transfer-encoding: chunked"), "{head}");
    let size = body.lines().next().expect("a chunk");
    assert!(u64::from_str_radix(size, 16).is_ok_and(|size| size > 0), "{body}");
    drop(stream);
    api.stop().await;
}

#[tokio::test]
async fn http_1_0_gets_what_it_knows() {
    let database = TestDatabase::create("http_1_0").await;
    let api = Api::start(&database).await;
    for (asked, status) in [
        (order("").replace("HTTP/1.1", "HTTP/1.0"), 201),
        ("GET /orders/1 HTTP/1.0\r\n\r\n".to_owned(), 200),
        ("GET /orders HTTP/1.0\r\nhost: test\r\n\r\n".to_owned(), 200),
        ("GET /nowhere HTTP/1.0\r\n\r\n".to_owned(), 404),
        ("HEAD /orders/1 HTTP/1.0\r\n\r\n".to_owned(), 200),
    ] {
        let answer = said(api.address, &asked).await;
        assert!(answer.starts_with(&format!("HTTP/1.0 {status} ")), "{asked}: {answer}");
        let (head, _) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(!head.contains("transfer-encoding"), "{answer}");
    }
    // A stream ends with its connection.
    let mut stream = open(api.address, b"GET /orders/events HTTP/1.0\r\n\r\n").await;
    let mut buffer = vec![0; 4 * 1024];
    let mut text = String::new();
    while !text.contains("id:") {
        let count = timeout(PATIENCE, stream.read(&mut buffer)).await.expect("more").expect("no reset");
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    assert!(
        !head.contains("transfer-encoding")
            && (body.starts_with("id:") || body.starts_with("retry:") || body.starts_with(':')),
        "{text}"
    );
    drop(stream);
    // One that asks for the connection to stay gets it.
    let mut stream = open(api.address, b"").await;
    for _ in 0..3 {
        stream.write_all(b"GET /orders/1 HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await.expect("it is read");
        let answer = answer(&mut stream).await;
        assert!(answer.contains("connection: keep-alive"), "{answer}");
    }
    drop(stream);
    api.stop().await;
}

#[tokio::test]
async fn a_body_that_will_be_refused_is_not_asked_for() {
    let database = TestDatabase::create("expectations").await;
    let api = Api::start(&database).await;
    let expecting = |method: &str, path: &str, headers: &str, length: usize| {
        format!(
            "{method} {path} HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\n{headers}content-length: {length}\r\n\r\n"
        )
    };
    let json = "content-type: application/json\r\n";
    for (asked, status) in [
        (expecting("POST", "/orders", json, 1_000_000), 413),
        (expecting("POST", "/orders", "content-type: text/xml\r\n", ORDER.len()), 415),
        (expecting("POST", "/nowhere", json, ORDER.len()), 404),
        (expecting("PUT", "/orders", json, ORDER.len()), 405),
    ] {
        let answer = said(api.address, &asked).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{asked}: {answer}");
    }
    let mut stream = open(api.address, expecting("POST", "/orders", json, ORDER.len()).as_bytes()).await;
    let mut asked_for = [0; 25];
    timeout(PATIENCE, stream.read_exact(&mut asked_for)).await.expect("an answer").expect("no reset");
    assert_eq!(&asked_for, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(ORDER.as_bytes()).await.expect("it is read");
    assert!(answer(&mut stream).await.starts_with("HTTP/1.1 201 "));
    drop(stream);
    api.stop().await;
}

#[tokio::test]
async fn an_answer_that_comes_before_the_body_reaches_a_client_that_goes_on_sending() {
    let database = TestDatabase::create("early_answers").await;
    let api = Api::start(&database).await;
    for _ in 0..20 {
        let head =
            "POST /orders HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: 200000\r\n\r\n";
        let mut stream = open(api.address, head.as_bytes()).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        // 413 has been said, and the connection is about to be closed.
        stream.write_all(&b" ".repeat(200_000)).await.expect("it is read");
        let mut text = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut text)).await.expect("it is closed").expect("no reset");
        assert!(text.starts_with("HTTP/1.1 413 "), "{text}");
    }
    api.stop().await;
}

/// nginx and Apache change the tag of an answer that they compress.
#[tokio::test]
async fn a_tag_that_a_proxy_has_changed_is_known() {
    let database = TestDatabase::create("changed_tags").await;
    let api = Api::start(&database).await;
    for (number, tag) in ["W/\"1\"", "\"1-gzip\"", "W/\"1-br\""].into_iter().enumerate() {
        assert_eq!(api.post(ORDER).await.status, 201);
        let path = format!("/orders/{}", number + 1);
        let read = send(api.address, request("GET", &path, &format!("if-none-match: {tag}\r\n"), b"")).await;
        assert_eq!(read.status, 304, "{tag}");
        let changed =
            send(api.address, request("POST", &format!("{path}/cancel"), &format!("if-match: {tag}\r\n"), b"")).await;
        assert_eq!(changed.status, 200, "{tag}: {changed:?}");
        // The version has changed, and the tag has not.
        let stale = send(api.address, request("DELETE", &path, &format!("if-match: {tag}\r\n"), b"")).await;
        assert_eq!((stale.status, stale.problem().as_str()), (412, "/problems/precondition-failed"), "{tag}");
    }
    api.stop().await;
}

/// As `event-source-polyfill` reconnects.
#[tokio::test]
async fn the_last_event_may_be_named_by_a_parameter() {
    let database = TestDatabase::create("last_event_parameter").await;
    let api = Api::start(&database).await;
    let mut watcher = Watcher::open(api.address, "/orders/events", None).await;
    let position = watcher.next().await.expect("it begins").id.expect("a position");
    assert_eq!(api.post(ORDER).await.status, 201);
    let path = format!("/orders/events?user_id=1&lastEventId={position}");
    let mut resumed = Watcher::open(api.address, &path, None).await;
    assert_eq!(resumed.change().await.change(), Some((1, 1)));
    let mut of_order = Watcher::open(api.address, "/orders/1/events?lastEventId=0", None).await;
    assert_eq!(of_order.change().await.change(), Some((1, 1)));
    // The header is newer than the address, which stays as it was when the page was loaded.
    let mut both = Watcher::open(api.address, "/orders/1/events?lastEventId=7", Some("0")).await;
    assert_eq!(both.change().await.change(), Some((1, 1)));
    for path in ["/orders/events?lastEventId=x", "/orders/1/events?lastEventId=x"] {
        let answer = api.get(path).await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, "/problems/invalid-event-id"), "{path}");
    }
    drop((watcher, resumed, of_order, both));
    api.stop().await;
}

#[tokio::test]
async fn behind_a_path_prefix_every_address_that_is_answered_has_it() {
    let database = TestDatabase::create("path_prefix").await;
    let url = PublicUrl::parse("https://api.example.com/shop/").expect("it is good");
    let edge = Edge { public_url: Some(url), ..Edge::default() };
    let api = Api::at(database.config("outrider_api"), edge, |_| ()).await;
    // Not by `send`, which compares with the description.
    for _ in 0..2 {
        let made = said(api.address, &order("connection: close\r\n")).await;
        assert!(made.contains("\r\nlocation: /shop/orders/"), "{made}");
    }
    let get = async |path: &str| {
        said(api.address, &format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")).await
    };
    let page = get("/orders?limit=1").await;
    assert!(page.contains("\r\nlink: </shop/orders?limit=1&cursor="), "{page}");
    for (path, kind) in [
        ("/orders/9", "order-not-found"),
        ("/nowhere", "not-found"),
        ("/orders?x=1", "invalid-query"),
        ("/problems/order-not-found", "order-not-found"),
    ] {
        let answer = get(path).await;
        assert!(answer.contains(&format!("\"type\":\"/shop/problems/{kind}\"")), "{path}: {answer}");
    }
    let batch = "[{}]";
    let asked = format!(
        "POST /orders/batch HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{batch}",
        batch.len()
    );
    let answer = said(api.address, &asked).await;
    assert!(answer.contains("\"type\":\"/shop/problems/invalid-order\""), "{answer}");
    api.stop().await;
}
