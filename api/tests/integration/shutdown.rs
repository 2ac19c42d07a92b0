//! How the service starts and ends.

use std::time::Duration;

use api::Server;
use api::config::Limits;
use shared::shutdown::Shutdown;
use shared::testing::{TestDatabase, eventually};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::http::{open, order_request, request, send};
use crate::service::{Api, ORDER, config, hold, statement_held, written};

#[tokio::test]
async fn queued_orders_are_answered_on_shutdown() {
    let database = TestDatabase::create("shutdown").await;
    let api = Api::with(&database, |limits| {
        limits.statements_max = 1;
        limits.batch_rows_max = 2;
    })
    .await;
    let held = hold(&database.pool).await;
    let mut posting = vec![api.posting(ORDER)];
    statement_held(&database).await;
    posting.extend((0..5).map(|_| api.posting(ORDER)));
    api.queued(5).await;
    api.shutdown.request();
    eventually("no more connections are taken", async || TcpStream::connect(api.address).await.is_err().then_some(()))
        .await;
    let ready = send(api.admin, request("GET", "/readyz", "", b"")).await;
    assert_eq!(ready.status, 503, "{ready:?}");
    assert!(!api.running.is_finished(), "it waits for its orders");
    drop(held);
    for answer in posting {
        assert_eq!(answer.await.expect("no panic").status, 201);
    }
    api.running.await.expect("no panic").expect("it ends in order");
    assert_eq!(written(&database).await, (6, 6, 6));
}

#[tokio::test]
async fn orders_taken_are_written_even_when_the_time_to_answer_them_is_over() {
    let database = TestDatabase::create("drain_over").await;
    let api = Api::with(&database, |limits| {
        limits.statements_max = 1;
        limits.batch_rows_max = 1;
        limits.drain_secs = 1;
    })
    .await;
    let held = hold(&database.pool).await;
    let mut clients = vec![open(api.address, &order_request(ORDER)).await];
    statement_held(&database).await;
    for _ in 0..3 {
        clients.push(open(api.address, &order_request(ORDER)).await);
    }
    api.queued(3).await;
    api.shutdown.request();
    for mut client in clients {
        let mut answer = Vec::new();
        // Closed or reset: either way nobody is answered any more.
        let _ = client.read_to_end(&mut answer).await;
        assert!(answer.is_empty());
    }
    // That something does not happen shows only by waiting: a service that forgot its queue would end here.
    let mut running = api.running;
    assert!(
        timeout(Duration::from_secs(3), &mut running).await.is_err(),
        "it must not end before its orders are written"
    );
    drop(held);
    running.await.expect("no panic").expect("it ends in order");
    assert_eq!(written(&database).await, (4, 4, 4));
}

#[tokio::test]
async fn an_idle_connection_does_not_hold_up_the_shutdown() {
    let database = TestDatabase::create("idle_connection").await;
    let api = Api::start(&database).await;
    let mut idle = open(api.address, b"GET /livez HTTP/1.1\r\nhost: test\r\n\r\n").await;
    let mut buffer = [0; 1024];
    assert!(idle.read(&mut buffer).await.expect("an answer") > 0);
    api.shutdown.request();
    let ended = timeout(Duration::from_secs(10), api.running).await;
    ended.expect("it ends before its deadline").expect("no panic").expect("in order");
}

#[tokio::test]
async fn a_port_in_use_is_named_with_its_variable() {
    let database = TestDatabase::create("port_in_use").await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().map(|address| (taken, address)).expect("an address");
    for variable in ["API_BIND", "ADMIN_BIND"] {
        let mut config = config(database.config("outrider_api"), Limits::default());
        if variable == "API_BIND" {
            config.bind = taken.1;
        } else {
            config.admin_bind = taken.1;
        }
        let error = Server::start(config, &Shutdown::new()).await.err().expect("the port is taken").to_string();
        assert_eq!(
            error,
            format!(
                "{variable}: {} is in use by another program; stop it, or set {variable} to another port (0 takes a free one)",
                taken.1
            )
        );
    }
}
