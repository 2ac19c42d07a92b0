//! Orders of one connection stay in their order, and nobody waits for others without need, though two writers work at the same time.

use serde_json::Value;
use shared::testing::TestDatabase;
use tokio::io::AsyncReadExt as _;

use crate::http::{open, request, send};
use crate::service::{Api, ORDER, hold_product_13, statement_held, written};

fn order(product: usize) -> String {
    format!(r#"{{"user_id": 1, "product_id": {product}, "quantity": 3}}"#)
}

/// The ids of orders by their products, lowest first: the order in which they were written.
async fn products_by_id(database: &TestDatabase, products: std::ops::Range<i64>) -> Vec<i64> {
    sqlx::query_scalar("SELECT product_id FROM orders WHERE product_id >= $1 AND product_id < $2 ORDER BY id")
        .bind(products.start)
        .bind(products.end)
        .fetch_all(&database.pool)
        .await
        .expect("the orders")
}

#[tokio::test]
async fn requests_that_are_sent_ahead_on_one_connection_are_written_and_answered_in_their_order() {
    let database = TestDatabase::create("pipelined").await;
    let api = Api::with(&database, |limits| limits.workers = 2).await;
    // Others keep both writers busy meanwhile.
    let others: Vec<_> = (0..40).map(|_| api.posting(ORDER)).collect();
    let sent = (100..150).map(|product| {
        let body = order(product);
        let close = if product == 149 { "connection: close\r\n" } else { "" };
        let length = body.len();
        format!("POST /orders HTTP/1.1\r\nhost: test\r\n{close}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
    });
    let mut client = open(api.address, sent.collect::<String>().as_bytes()).await;
    let mut answers = String::new();
    client.read_to_string(&mut answers).await.expect("all answers, and then the end");
    assert_eq!(answers.matches("HTTP/1.1 201 Created\r\n").count(), 50, "{answers}");
    let answered: Vec<i64> = answers
        .split("\r\n")
        .filter(|line| line.starts_with('{'))
        .map(|line| {
            // What follows the body is the head of the next answer.
            let body = line.split("HTTP/1.1").next().expect("a body");
            let order: Value = serde_json::from_str(body).expect("an order");
            order["product_id"].as_i64().expect("a product")
        })
        .collect();
    let sent: Vec<i64> = (100..150).collect();
    assert_eq!(answered, sent);
    assert_eq!(products_by_id(&database, 100..150).await, sent);
    for other in others {
        assert_eq!(other.await.expect("no panic").status, 201);
    }
    api.stop().await;
}

#[tokio::test]
async fn the_orders_of_a_batch_are_written_in_its_order_though_they_need_several_statements() {
    let database = TestDatabase::create("batch_order").await;
    let api = Api::with(&database, |limits| limits.batch_rows_max = 50).await;
    let others: Vec<_> = (0..40).map(|_| api.posting(ORDER)).collect();
    let bodies: Vec<String> = (100..1_100).map(order).collect();
    let body = format!("[{}]", bodies.join(","));
    let headers = "content-type: application/json\r\n";
    let answer = send(api.address, request("POST", "/orders/batch", headers, body.as_bytes())).await;
    assert_eq!(answer.status, 200);
    let sent: Vec<i64> = (100..1_100).collect();
    assert_eq!(products_by_id(&database, 100..1_100).await, sent);
    for other in others {
        assert_eq!(other.await.expect("no panic").status, 201);
    }
    let largest = "SELECT max(count) FROM (SELECT count(*) FROM outbox GROUP BY txid) sizes";
    let largest: i64 = sqlx::query_scalar(largest).fetch_one(&database.pool).await.expect("the transactions");
    assert_eq!(largest, 50, "no statement has more rows than it may");
    api.stop().await;
}

#[tokio::test]
async fn a_request_alone_waits_for_no_other() {
    let database = TestDatabase::create("alone").await;
    let api = Api::start(&database).await;
    let held = hold_product_13(&database).await;
    let stopped = api.posting(&order(13));
    statement_held(&database).await;
    // Each is written by the other writer, at once and by itself.
    for _ in 0..10 {
        assert_eq!(api.post(ORDER).await.status, 201);
    }
    assert!(!stopped.is_finished());
    drop(held);
    assert_eq!(stopped.await.expect("no panic").status, 201);
    assert_eq!(api.metric("api_statement_rows_count").await, 11);
    assert_eq!(written(&database).await, (11, 11, 11));
    api.stop().await;
}
