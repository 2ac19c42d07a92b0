//! Orders under an idempotency key: however often they are sent, to however many servers, there is one of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use shared::testing::{TestDatabase, eventually};
use tokio::task::JoinSet;

use crate::http::{Answer, open, order_request, request, send};
use crate::service::{Api, ORDER, execute, hold, hold_product_13, statement_held, statement_waits, written};

/// An order's request under a key.
pub fn keyed(key: &str, body: &str) -> Vec<u8> {
    let headers = format!("content-type: application/json\r\nidempotency-key: {key}\r\n");
    request("POST", "/orders", &headers, body.as_bytes())
}

async fn post(api: &Api, key: &str, body: &str) -> Answer {
    send(api.address, keyed(key, body)).await
}

/// Answers with what differs between the first and a repeat: nothing but the header that says so.
pub fn assert_replayed(first: &Answer, again: &Answer) {
    assert_eq!((again.status, &again.body), (201, &first.body));
    for header in ["location", "etag", "content-type"] {
        assert!(first.header(header).is_some());
        assert_eq!(again.header(header), first.header(header), "{header}");
    }
    assert_eq!((first.header("idempotency-replayed"), again.header("idempotency-replayed")), (None, Some("true")));
}

async fn keys(database: &TestDatabase) -> i64 {
    let count = "SELECT count(DISTINCT key) FROM idempotency_keys";
    sqlx::query_scalar(count).fetch_one(&database.pool).await.expect("the keys can be counted")
}

#[tokio::test]
async fn a_repeat_gets_the_first_answer_byte_for_byte_and_makes_no_order() {
    let database = TestDatabase::create("repeat").await;
    let api = Api::start(&database).await;
    let first = post(&api, "k-1", ORDER).await;
    assert_eq!(first.status, 201);
    let id = first.json()["ID"].as_i64().expect("an id");
    // The order has moved on meanwhile; the answer is still the first one.
    let cancel = request("POST", &format!("/orders/{id}/cancel"), "", b"");
    assert_eq!(send(api.address, cancel).await.status, 200);
    let spelled_otherwise = r#"{ "quantity":3,"user_id":1,  "product_id":2, "note": "again" }"#;
    for (key, body) in [("k-1", ORDER), ("\"k-1\"", ORDER), ("k-1", spelled_otherwise)] {
        assert_replayed(&first, &post(&api, key, body).await);
    }
    let (orders, _, _) = written(&database).await;
    assert_eq!((orders, keys(&database).await), (1, 1));
    assert_eq!(api.metric("api_orders_replayed_total").await, 3);
    let other = post(&api, "k-2", ORDER).await;
    assert_eq!((other.status, other.header("idempotency-replayed")), (201, None));
    assert_ne!(other.header("location"), first.header("location"), "another key makes another order");
    api.stop().await;
}

#[tokio::test]
async fn a_key_with_another_order_is_refused() {
    let database = TestDatabase::create("reused").await;
    let api = Api::start(&database).await;
    assert_eq!(post(&api, "k", ORDER).await.status, 201);
    let other = post(&api, "k", r#"{"user_id": 1, "product_id": 2, "quantity": 4}"#).await;
    assert_eq!((other.status, other.problem().as_str()), (422, "/problems/idempotency-key-reused"));
    assert_eq!(written(&database).await, (1, 1, 1));
    api.stop().await;
}

#[tokio::test]
async fn a_request_that_was_refused_may_be_tried_again_under_its_key() {
    let database = TestDatabase::create("tried_again").await;
    execute(&database, "ALTER TABLE orders ADD CONSTRAINT test_check CHECK (product_id <> 2)").await;
    let api = Api::start(&database).await;
    assert_eq!(post(&api, "k", r#"{"user_id": 1, "product_id": 2}"#).await.status, 422);
    assert_eq!(post(&api, "k", ORDER).await.status, 500, "it cannot be written");
    assert_eq!(keys(&database).await, 0, "and so its key is not kept either");
    execute(&database, "ALTER TABLE orders DROP CONSTRAINT test_check").await;
    let answer = post(&api, "k", ORDER).await;
    assert_eq!((answer.status, answer.header("idempotency-replayed")), (201, None));
    api.stop().await;
}

#[tokio::test]
async fn a_key_while_its_request_is_under_way_is_told_to_come_again() {
    let database = TestDatabase::create("under_way").await;
    let api = Api::start(&database).await;
    let held = hold(&database.pool).await;
    let first = tokio::spawn(send(api.address, keyed("k", ORDER)));
    statement_waits(&database, "-- insert_keyed_orders%", 1).await;
    for body in [ORDER, r#"{"user_id": 9, "product_id": 9, "quantity": 9}"#] {
        let again = post(&api, "k", body).await;
        assert_eq!((again.status, again.problem().as_str()), (409, "/problems/idempotency-in-progress"));
        assert_eq!(again.header("retry-after"), Some("1"));
    }
    drop(held);
    let first = first.await.expect("no panic");
    assert_eq!(first.status, 201);
    assert_replayed(&first, &post(&api, "k", ORDER).await);
    assert_eq!(written(&database).await, (1, 1, 1));
    api.stop().await;
}

#[tokio::test]
async fn a_client_that_is_gone_keeps_its_key_until_its_order_is_written() {
    let database = TestDatabase::create("gone").await;
    let api = Api::start(&database).await;
    let held = hold(&database.pool).await;
    let client = open(api.address, &keyed("k", ORDER)).await;
    statement_waits(&database, "-- insert_keyed_orders%", 1).await;
    drop(client);
    // Nothing tells when the server notices; it must make no difference.
    for _ in 0..20 {
        assert_eq!(post(&api, "k", ORDER).await.status, 409);
    }
    drop(held);
    let again = eventually("the order is written", async || {
        Some(post(&api, "k", ORDER).await).filter(|answer| answer.status == 201)
    })
    .await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(written(&database).await, (1, 1, 1));
    api.stop().await;
}

#[tokio::test]
async fn what_is_no_key_is_refused_and_a_batch_takes_none() {
    let database = TestDatabase::create("no_key").await;
    let api = Api::start(&database).await;
    let (longest, too_long) = ("k".repeat(255), "k".repeat(256));
    for key in ["", "\"\"", "\"open", "\"a\";b=1", "caf\u{e9}", "a\tb", &too_long] {
        let answer = post(&api, key, ORDER).await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, "/problems/invalid-idempotency-key"), "{key}");
    }
    let twice = "content-type: application/json\r\nidempotency-key: a\r\nidempotency-key: b\r\n";
    let batch = "content-type: application/json\r\nidempotency-key: a\r\n";
    for (path, headers, body) in [("/orders", twice, ORDER.to_owned()), ("/orders/batch", batch, format!("[{ORDER}]"))]
    {
        let answer = send(api.address, request("POST", path, headers, body.as_bytes())).await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, "/problems/invalid-idempotency-key"), "{path}");
    }
    assert_eq!(written(&database).await, (0, 0, 0));
    for key in [longest.as_str(), "a b", "~!#$%&'*+-.^_`|{}()/:;<=>?@[]", "\"a \\\" b\""] {
        assert_eq!(post(&api, key, ORDER).await.status, 201, "{key}");
    }
    api.stop().await;
}

/// Sends one order again and again, `count` times over `clients` clients, and counts the answers by their status.
async fn repeat(servers: &[SocketAddr], key: &'static str, count: usize, clients: usize) -> BTreeMap<u16, usize> {
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let server = servers[client % servers.len()];
        tasks.spawn(async move {
            let mut answers = Vec::new();
            for _ in 0..count / clients {
                answers.push(send(server, keyed(key, ORDER)).await);
            }
            answers
        });
    }
    let answers: Vec<Answer> = tasks.join_all().await.into_iter().flatten().collect();
    let other = answers.iter().find(|answer| !matches!(answer.status, 201 | 409));
    assert!(other.is_none(), "{other:?}");
    let mut bodies: Vec<&str> =
        answers.iter().filter(|answer| answer.status == 201).map(|answer| answer.body.as_str()).collect();
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "all get the same answer");
    let first = answers.iter().filter(|answer| answer.status == 201 && answer.header("idempotency-replayed").is_none());
    assert_eq!(first.count(), 1, "one of them is the first");
    let mut statuses = BTreeMap::new();
    for answer in answers {
        *statuses.entry(answer.status).or_default() += 1;
    }
    statuses
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_concurrent_repeats_over_several_servers_make_one_order() {
    let database = TestDatabase::create("ten_thousand").await;
    let servers = [Api::start(&database).await, Api::start(&database).await, Api::start(&database).await];
    let addresses = servers.each_ref().map(|server| server.address);
    let statuses = repeat(&addresses, "k", 10_000, 200).await;
    assert_eq!(statuses.values().sum::<usize>(), 10_000);
    assert_eq!(written(&database).await, (1, 1, 1));
    assert_eq!(keys(&database).await, 1);
    for server in servers {
        server.stop().await;
    }
}

/// Sends requests, one after the other, while an order is being written, so that they share the next statement.
pub async fn grouped(database: &TestDatabase, api: &Api, requests: Vec<Vec<u8>>) -> Vec<Answer> {
    let held = hold(&database.pool).await;
    let first = api.posting(ORDER);
    statement_held(database).await;
    let mut group = Vec::new();
    for (count, request) in (1..).zip(requests) {
        group.push(tokio::spawn(send(api.address, request)));
        api.queued(count).await;
    }
    drop(held);
    assert_eq!(first.await.expect("no panic").status, 201);
    let mut answers = Vec::new();
    for answer in group {
        answers.push(answer.await.expect("no panic"));
    }
    answers
}

#[tokio::test]
async fn orders_keys_and_events_of_concurrent_requests_share_a_statement() {
    let database = TestDatabase::create("share").await;
    let api = Api::with(&database, |limits| limits.statements_max = 1).await;
    let requests =
        (0..20).map(|place| if place % 2 == 0 { keyed(&format!("k-{place}"), ORDER) } else { order_request(ORDER) });
    let answers = grouped(&database, &api, requests.collect()).await;
    assert!(answers.iter().all(|answer| answer.status == 201));
    assert_eq!((written(&database).await, keys(&database).await), ((21, 21, 21), 10));
    let of_one = "SELECT count(*) FROM outbox GROUP BY txid ORDER BY 1";
    let sizes: Vec<i64> = sqlx::query_scalar(of_one).fetch_all(&database.pool).await.expect("events by transaction");
    assert_eq!(sizes, [1, 20], "one for the first and one for all that waited");
    api.stop().await;
}

#[tokio::test]
async fn a_key_that_another_server_is_writing_holds_nobody_back_for_good_and_fails_nobody() {
    let database = TestDatabase::create("two_servers").await;
    let [api, other] = [Api::with(&database, |limits| limits.statements_max = 1).await, Api::start(&database).await];
    let held = hold_product_13(&database).await;
    let slow = r#"{"user_id": 1, "product_id": 13, "quantity": 1}"#;
    let first = tokio::spawn(send(other.address, keyed("k", slow)));
    statement_waits(&database, "-- insert_keyed_orders%", 1).await;

    let group = [keyed("k", slow), keyed("k", ORDER), order_request(ORDER), keyed("j", ORDER)];
    let mut group: Vec<_> = group.into_iter().map(|request| tokio::spawn(send(api.address, request))).collect();
    statement_waits(&database, "-- insert_keyed_orders%", 2).await;
    drop(held);
    let first = first.await.expect("no panic");
    assert_eq!(first.status, 201);
    let mut answers = Vec::new();
    for answer in group.drain(..) {
        answers.push(answer.await.expect("no panic"));
    }
    // The two with the same key came to one server: the second of them is told to come again, or came after the first was answered.
    for answer in &answers[..2] {
        match answer.status {
            201 => assert_replayed(&first, answer),
            409 => assert_eq!(answer.problem(), "/problems/idempotency-in-progress"),
            422 => assert_eq!(answer.problem(), "/problems/idempotency-key-reused"),
            _ => panic!("{answer:?}"),
        }
    }
    assert!(answers[..2].iter().any(|answer| matches!(answer.status, 201 | 422)), "one of them was looked up");
    assert_eq!((answers[2].status, answers[3].status), (201, 201));
    assert_eq!(written(&database).await, (3, 3, 3));
    api.stop().await;
    other.stop().await;
}
