//! Cancelling and deleting orders, conditional requests.

use serde_json::json;
use shared::testing::TestDatabase;
use tokio::task::JoinSet;

use crate::http::{Answer, request, send};
use crate::service::{Api, ORDER, execute, shown, statement_waits};

async fn change(api: &Api, method: &str, path: &str, headers: &str) -> Answer {
    send(api.address, request(method, path, headers, b"")).await
}

/// The versions of order 1 as its history and its events tell them: version, status before, status after, type of the event.
async fn life(database: &TestDatabase) -> Vec<(i64, Option<String>, String, String)> {
    sqlx::query_as(
        "SELECT t.version, t.from_status, t.to_status, e.type FROM order_transitions t
        JOIN outbox e ON e.event_id = t.event_id AND e.aggregate_id = t.order_id::text AND e.aggregate_version = t.version
        WHERE t.order_id = 1 ORDER BY e.id",
    )
    .fetch_all(&database.pool)
    .await
    .expect("the tables can be joined")
}

fn step(version: i64, from: Option<&str>, to: &str, event: &str) -> (i64, Option<String>, String, String) {
    (version, from.map(str::to_owned), to.to_owned(), event.to_owned())
}

#[tokio::test]
async fn a_pending_order_is_cancelled_and_each_version_has_one_transition_and_one_event() {
    let database = TestDatabase::create("cancel").await;
    let api = Api::start(&database).await;
    let created = api.post(ORDER).await;
    assert_eq!(created.header("etag"), Some("\"1\""));
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let cancelled = change(&api, "POST", "/orders/1/cancel", &format!("traceparent: {traceparent}\r\n")).await;
    assert_eq!((cancelled.status, cancelled.header("etag")), (200, Some("\"2\"")), "{cancelled:?}");
    assert_eq!((&cancelled.json()["status"], &cancelled.json()["version"]), (&json!("Cancelled"), &json!(2)));
    assert_eq!(api.get("/orders/1").await.body, cancelled.body);
    let (payload, headers): (String, serde_json::Value) =
        sqlx::query_as("SELECT payload::text, headers FROM outbox WHERE type = 'order.cancelled'")
            .fetch_one(&database.pool)
            .await
            .expect("the event is there");
    assert_eq!((shown(payload), headers), (cancelled.body, json!({"traceparent": traceparent})));

    let again = change(&api, "POST", "/orders/1/cancel", "").await;
    assert_eq!((again.status, again.problem().as_str()), (409, "/problems/order-not-pending"));
    assert!(again.json()["detail"].as_str().is_some_and(|detail| detail.contains("Cancelled")), "it says the state");
    let expected =
        [step(1, None, "Pending", "order.created"), step(2, Some("Pending"), "Cancelled", "order.cancelled")];
    assert_eq!(life(&database).await, expected);
    api.stop().await;
}

#[tokio::test]
async fn a_deleted_order_is_in_no_answer_any_more() {
    let database = TestDatabase::create("delete").await;
    let api = Api::start(&database).await;
    api.post(ORDER).await;
    execute(&database, "UPDATE orders SET status = 'Processed'").await;
    let deleted = change(&api, "DELETE", "/orders/1", "").await;
    assert_eq!((deleted.status, deleted.body.as_str()), (204, ""));
    for (method, path) in
        [("GET", "/orders/1"), ("DELETE", "/orders/1"), ("POST", "/orders/1/cancel"), ("DELETE", "/orders/2")]
    {
        let answer = change(&api, method, path, "").await;
        assert_eq!((answer.status, answer.problem().as_str()), (404, "/problems/order-not-found"), "{method} {path}");
    }
    assert_eq!(api.get("/orders").await.json(), json!({"orders": [], "next": null}));
    let expected = [step(1, None, "Pending", "order.created"), step(2, Some("Processed"), "Deleted", "order.deleted")];
    assert_eq!(life(&database).await, expected);
    api.stop().await;
}

#[tokio::test]
async fn a_change_is_made_only_at_the_version_that_the_caller_has_seen() {
    let database = TestDatabase::create("if_match").await;
    let api = Api::start(&database).await;
    api.post(ORDER).await;
    for (method, path) in [("POST", "/orders/1/cancel"), ("DELETE", "/orders/1")] {
        for tags in ["\"2\"", "W/\"2\"", "\"x\"", "1"] {
            let answer = change(&api, method, path, &format!("if-match: {tags}\r\n")).await;
            assert_eq!((answer.status, answer.problem().as_str()), (412, "/problems/precondition-failed"), "{tags}");
        }
    }
    let cancelled = change(&api, "POST", "/orders/1/cancel", "if-match: \"7\", \"1\"\r\n").await;
    assert_eq!(cancelled.status, 200);
    assert_eq!(change(&api, "DELETE", "/orders/1", "if-match: \"1\"\r\n").await.status, 412);
    assert_eq!(change(&api, "DELETE", "/orders/1", "if-match: *\r\n").await.status, 204);
    api.stop().await;
}

#[tokio::test]
async fn a_reader_that_has_the_order_already_is_told_so() {
    let database = TestDatabase::create("if_none_match").await;
    let api = Api::start(&database).await;
    api.post(ORDER).await;
    let read = change(&api, "GET", "/orders/1", "if-none-match: \"7\"\r\n").await;
    assert_eq!((read.status, read.header("etag")), (200, Some("\"1\"")));
    let read = change(&api, "GET", "/orders/1", "if-none-match: W/\"1\"\r\n").await;
    assert_eq!((read.status, read.header("etag"), read.body.as_str()), (304, Some("\"1\""), ""));
    change(&api, "POST", "/orders/1/cancel", "").await;
    assert_eq!(change(&api, "GET", "/orders/1", "if-none-match: \"1\"\r\n").await.status, 200);
    api.stop().await;
}

/// Held between two changes that were both begun on a Pending order: the second is waited for and must see what the first has left.
#[tokio::test]
async fn of_changes_that_meet_one_is_made_and_the_other_sees_what_it_left() {
    let database = TestDatabase::create("meet").await;
    let api = Api::with(&database, |limits| limits.workers = 2).await;
    api.post(ORDER).await;
    let mut holder = database.pool.begin().await.expect("a transaction begins");
    sqlx::query("SELECT 1 FROM orders FOR UPDATE").execute(&mut *holder).await.expect("the row is locked");
    let mut changes = JoinSet::new();
    for _ in 0..4 {
        changes.spawn(send(api.address, request("POST", "/orders/1/cancel", "", b"")));
    }
    statement_waits(&database, "-- cancel_order%", 4).await;
    holder.rollback().await.expect("the row is free");
    let mut statuses: Vec<u16> = changes.join_all().await.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409, 409, 409]);
    assert_eq!(life(&database).await.len(), 2);
    api.stop().await;
}
