//! Clients without credentials that would hold the service: each costs itself, within a bound.

mod http2;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use shared::testing::{PATIENCE, TestDatabase, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::http::{open, request, send};
use crate::service::Api;

const KEPT: &[u8] = b"GET /livez HTTP/1.1\r\nhost: test\r\n\r\n";

/// Reads one answer without a body that matters.
async fn answered(stream: &mut TcpStream) -> String {
    let mut buffer = [0; 4 * 1024];
    let count = timeout(PATIENCE, stream.read(&mut buffer)).await.expect("an answer").expect("no reset");
    String::from_utf8_lossy(&buffer[..count]).into_owned()
}

/// Whether it is over within `limit`, with what was said until then.
async fn is_closed(stream: &mut TcpStream, limit: Duration) -> Option<String> {
    let mut rest = Vec::new();
    // Reset or closed: either way it is over.
    timeout(limit, stream.read_to_end(&mut rest)).await.ok().map(|_| String::from_utf8_lossy(&rest).into_owned())
}

#[tokio::test]
async fn each_head_of_a_connection_has_a_clock() {
    let database = TestDatabase::create("second_heads").await;
    let api = Api::with(&database, |limits| limits.head_timeout_ms = 500).await;
    for whole_requests in [0, 1, 3] {
        let mut stream = open(api.address, b"").await;
        for _ in 0..whole_requests {
            stream.write_all(KEPT).await.expect("it is read");
            assert!(answered(&mut stream).await.starts_with("HTTP/1.1 200 "));
        }
        let start = Instant::now();
        let (mut from, mut to) = stream.into_split();
        let dripping = tokio::spawn(async move {
            for byte in b"GET /livez HTTP/1.1\r\nhost: test\r\nx-drip: ".iter().chain(std::iter::repeat(&b'a')) {
                if to.write_all(&[*byte]).await.is_err() {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        });
        let mut said = String::new();
        let _ = timeout(PATIENCE, from.read_to_string(&mut said)).await.expect("it is closed");
        assert!(said.starts_with("HTTP/1.1 408 "), "after {whole_requests}: {said}");
        assert!(start.elapsed() < Duration::from_secs(5), "after {whole_requests}: {:?}", start.elapsed());
        dripping.abort();
    }
    api.stop().await;
}

#[tokio::test]
async fn a_connection_at_rest_is_closed_after_its_time_and_not_before() {
    let database = TestDatabase::create("at_rest").await;
    let api = Api::with(&database, |limits| {
        limits.keep_alive_secs = 2;
        limits.head_timeout_ms = 500;
    })
    .await;
    let mut stream = open(api.address, KEPT).await;
    assert!(answered(&mut stream).await.starts_with("HTTP/1.1 200 "));
    sleep(Duration::from_millis(1_200)).await;
    stream.write_all(KEPT).await.expect("it is read");
    assert!(answered(&mut stream).await.starts_with("HTTP/1.1 200 "), "it had rested for less than its time");
    let start = Instant::now();
    assert_eq!(is_closed(&mut stream, PATIENCE).await.expect("it is closed"), "");
    let took = start.elapsed();
    assert!((Duration::from_millis(1_900)..Duration::from_secs(5)).contains(&took), "{took:?}");
    // One that never says anything has the time of a head.
    let mut silent = open(api.address, b"").await;
    let said = is_closed(&mut silent, Duration::from_secs(5)).await.expect("it is closed");
    assert!(said.starts_with("HTTP/1.1 408 "), "{said}");
    api.stop().await;
}

#[tokio::test]
async fn a_client_that_takes_no_answers_is_closed() {
    let database = TestDatabase::create("takes_nothing").await;
    let api = Api::with(&database, |limits| limits.send_timeout_ms = 1_000).await;
    let asked = b"GET /openapi.json HTTP/1.1\r\nhost: test\r\n\r\n".repeat(64);
    let mut greedy = Vec::new();
    for _ in 0..20 {
        let (mut stream, asked) = (open(api.address, b"").await, asked.clone());
        greedy.push(tokio::spawn(async move {
            let start = Instant::now();
            // Until it is reset: what is asked for is more than the system keeps for a connection.
            while stream.write_all(&asked).await.is_ok() {}
            start.elapsed()
        }));
    }
    for client in greedy {
        let took = timeout(PATIENCE, client).await.expect("it is closed").expect("no panic");
        assert!(took < Duration::from_secs(15), "{took:?}");
    }
    eventually("all of it is forgotten", async || (api.metric("http_server_active_requests").await == 0).then_some(()))
        .await;
    // A slow reader that goes on reading gets all of it, however long that takes.
    let mut slow = open(api.address, &request("GET", "/openapi.json", "", b"")).await;
    let (mut length, mut buffer) = (0, vec![0; 16 * 1024]);
    loop {
        match slow.read(&mut buffer).await.expect("no reset") {
            0 => break,
            count => length += count,
        }
        sleep(Duration::from_millis(200)).await;
    }
    let whole = send(api.address, request("GET", "/openapi.json", "", b"")).await;
    assert!(length > whole.body.len(), "{length}");
    api.stop().await;
}

/// What `sent` on a connection of its own is answered with, until the server closes it.
async fn said(address: SocketAddr, sent: &str) -> String {
    let mut stream = open(address, sent.as_bytes()).await;
    is_closed(&mut stream, PATIENCE).await.unwrap_or_else(|| panic!("it is not closed after {sent}"))
}

#[tokio::test]
async fn what_comes_behind_a_request_that_closes_is_not_served() {
    let database = TestDatabase::create("behind_close").await;
    let api = Api::start(&database).await;
    let closing = "GET /livez HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
    let answers = said(api.address, &closing.repeat(3)).await;
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{answers}");
    api.stop().await;
}
