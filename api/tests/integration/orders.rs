//! What is written for an order, and what is answered.

use serde_json::json;
use shared::testing::TestDatabase;
use uuid::Uuid;

use crate::http::{order_request, request, send};
use crate::service::{Api, ORDER, execute, shown, written};

#[tokio::test]
async fn order_and_event_are_both_written_or_neither() {
    let database = TestDatabase::create("both_or_neither").await;
    let api = Api::start(&database).await;
    let answer = api.post(ORDER).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(answer.header("location"), Some("/orders/1"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(written(&database).await, (1, 1, 1));
    let (transition_event, event, payload, same): (Uuid, Uuid, String, bool) = sqlx::query_as(
        "SELECT t.event_id, e.event_id, e.payload::text,
            t.from_status IS NULL AND t.to_status = 'Pending' AND t.version = 1 AND e.aggregate_type = 'order'
                AND e.aggregate_id = '1' AND e.aggregate_version = 1 AND e.type = 'order.created' AND e.headers = '{}'
                AND o.created_at = o.updated_at AND o.created_at = t.occurred_at AND o.created_at = e.occurred_at
        FROM orders o JOIN order_transitions t ON t.order_id = o.id JOIN outbox e ON e.aggregate_id = o.id::text",
    )
    .fetch_one(&database.pool)
    .await
    .expect("all three rows are there");
    assert_eq!(transition_event, event);
    assert_eq!(event.get_version_num(), 7);
    assert_eq!(shown(payload), answer.body, "the event carries the order of the answer");
    assert!(same, "the rows agree with each other");

    // Each of the three inserts fails once; whichever it is, none of them must leave a row.
    for table in ["outbox", "order_transitions", "orders"] {
        let add = format!("ALTER TABLE {table} ADD CONSTRAINT test_check CHECK (false) NOT VALID");
        sqlx::query(sqlx::AssertSqlSafe(add)).execute(&database.pool).await.expect("a check can be added");
        let answer = api.post(ORDER).await;
        assert_eq!((answer.status, answer.problem().as_str()), (500, "/problems/internal"));
        assert!(!answer.body.contains("test_check"), "nothing internal leaks: {answer:?}");
        assert_eq!(written(&database).await, (1, 1, 1), "with {table} refusing");
        let drop = format!("ALTER TABLE {table} DROP CONSTRAINT test_check");
        sqlx::query(sqlx::AssertSqlSafe(drop)).execute(&database.pool).await.expect("a check can be dropped");
    }
    assert_eq!(api.post(ORDER).await.status, 201);
    api.stop().await;
}

#[tokio::test]
async fn without_a_partition_for_the_event_nothing_is_written_and_the_client_may_come_back() {
    let database = TestDatabase::create("no_partition").await;
    execute(&database, "ALTER TABLE outbox DETACH PARTITION outbox_p1").await;
    let api = Api::start(&database).await;
    let answer = api.post(ORDER).await;
    assert_eq!((answer.status, answer.problem().as_str()), (503, "/problems/unavailable"));
    assert_eq!(written(&database).await, (0, 0, 0));
    execute(&database, "ALTER TABLE outbox ATTACH PARTITION outbox_p1 FOR VALUES FROM (1) TO (5000001)").await;
    assert_eq!(api.post(ORDER).await.status, 201);
    api.stop().await;
}

#[tokio::test]
async fn an_order_whose_commit_fails_is_not_accepted() {
    let database = TestDatabase::create("commit_fails").await;
    execute(
        &database,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'at the commit'; END $$;
        CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    .await;
    let api = Api::start(&database).await;
    let answer = api.post(ORDER).await;
    assert_eq!((answer.status, answer.problem().as_str()), (500, "/problems/internal"));
    assert_eq!(written(&database).await, (0, 0, 0));
    api.stop().await;
}

#[tokio::test]
async fn nobody_sets_an_id_a_date_or_a_status() {
    let database = TestDatabase::create("nobody_sets").await;
    let api = Api::start(&database).await;
    let body = r#"{"ID": 0, "id": 77, "CreatedAt": "0001-01-01T00:00:00Z", "UpdatedAt": "0001-01-01T00:00:00Z",
        "created_at": "2001-01-01T00:00:00Z", "DeletedAt": null, "status": "Processed", "version": 9,
        "user_id": 9223372036854775807, "product_id": 2, "quantity": 10000}"#;
    let answer = api.post(body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let mut order = answer.json();
    let created_at = order["CreatedAt"].take();
    assert_eq!(created_at, order["UpdatedAt"].take());
    let recent = "SELECT $1::timestamptz BETWEEN now() - interval '10 minutes' AND now()";
    let created_at = created_at.as_str().expect("a date").to_owned();
    let recent: bool = sqlx::query_scalar(recent).bind(created_at).fetch_one(&database.pool).await.expect("a date");
    assert!(recent, "the date is the database's own");
    assert_eq!(
        order,
        json!({"ID": 1, "user_id": i64::MAX, "product_id": 2, "quantity": 10000, "status": "Pending", "version": 1,
            "CreatedAt": null, "UpdatedAt": null, "DeletedAt": null, "failure_reason": null})
    );
    api.stop().await;
}

#[tokio::test]
async fn an_order_is_read_as_it_is_now() {
    let database = TestDatabase::create("read").await;
    let api = Api::start(&database).await;
    let posted = api.post(ORDER).await;
    let read = api.get("/orders/1").await;
    assert_eq!((read.status, &read.body), (200, &posted.body));
    let head = send(api.address, request("HEAD", "/orders/1", "", b"")).await;
    assert_eq!(
        (head.status, head.header("content-length"), head.body.as_str()),
        (200, read.header("content-length"), "")
    );
    execute(&database, "UPDATE orders SET status = 'Processed', version = 2").await;
    let read = api.get("/orders/1").await.json();
    assert_eq!((&read["status"], &read["version"]), (&json!("Processed"), &json!(2)));
    for id in ["2", "0", "-1", "+1", "01", "abc", "1.0", "9223372036854775807", "9223372036854775808", "%00"] {
        let answer = api.get(&format!("/orders/{id}")).await;
        assert_eq!((answer.status, answer.problem().as_str()), (404, "/problems/order-not-found"), "{id}");
    }
    api.stop().await;
}

#[tokio::test]
async fn the_trace_of_the_caller_goes_with_the_event() {
    let database = TestDatabase::create("trace").await;
    let api = Api::start(&database).await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for traceparent in [traceparent, "00-nonsense"] {
        let headers = format!("content-type: application/json\r\ntraceparent: {traceparent}\r\ntracestate: a=b\r\n");
        let answer = send(api.address, request("POST", "/orders", &headers, ORDER.as_bytes())).await;
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    let headers: Vec<serde_json::Value> =
        sqlx::query_scalar("SELECT headers FROM outbox ORDER BY id").fetch_all(&database.pool).await.expect("two rows");
    assert_eq!(headers, [json!({"traceparent": traceparent, "tracestate": "a=b"}), json!({})]);
    api.stop().await;
}

#[tokio::test]
async fn of_a_callers_trace_nothing_reaches_the_event_but_the_trace() {
    let database = TestDatabase::create("trace_injection").await;
    let api = Api::start(&database).await;
    let ids = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
    let ours = format!("00-{ids}-01");
    let cases = [
        (format!("01-{ids}-01-\",\"tenant\":\"evil"), "a=b", json!({"traceparent": ours, "tracestate": "a=b"})),
        (format!("01-{ids}-01-\""), "", json!({"traceparent": ours})),
        (format!("cc-{ids}-ff-what-will-be"), "a=b", json!({"traceparent": ours, "tracestate": "a=b"})),
        (format!("00-{ids}-01-\""), "a=b", json!({})),
        (ours.clone(), "a=\",\"tenant\":\"evil", json!({"traceparent": ours, "tracestate": "a=\",\"tenant\":\"evil"})),
        (ours.clone(), "a=\\", json!({"traceparent": ours, "tracestate": "a=\\"})),
    ];
    // Together, so that one statement writes several of them.
    let posting: Vec<_> = cases
        .iter()
        .enumerate()
        .map(|(index, (traceparent, tracestate, _))| {
            let body = format!(r#"{{"user_id": {}, "product_id": 2, "quantity": 3}}"#, index + 1);
            let headers =
                format!("content-type: application/json\r\ntraceparent: {traceparent}\r\ntracestate: {tracestate}\r\n");
            tokio::spawn(send(api.address, request("POST", "/orders", &headers, body.as_bytes())))
        })
        .collect();
    for posted in posting {
        assert_eq!(posted.await.expect("no panic").status, 201);
    }
    let headers: Vec<serde_json::Value> =
        sqlx::query_scalar("SELECT headers FROM outbox ORDER BY (payload->>'user_id')::int")
            .fetch_all(&database.pool)
            .await
            .expect("a row each");
    assert_eq!(headers, cases.map(|(_, _, expected)| expected));
    api.stop().await;
}

#[tokio::test]
async fn the_rights_of_the_role_outrider_api_suffice() {
    let database = TestDatabase::create("role").await;
    execute(&database, "ALTER TABLE orders ADD CHECK (current_user = 'outrider_api')").await;
    let api = Api::start(&database).await;
    assert_eq!(api.post(ORDER).await.status, 201);
    assert_eq!(api.get("/orders/1").await.status, 200);
    assert_eq!(api.get("/readyz").await.status, 200);
    api.stop().await;
}

#[tokio::test]
async fn many_at_once_each_get_their_own_order() {
    let database = TestDatabase::create("many").await;
    let api = Api::with(&database, |limits| limits.workers = 2).await;
    let posting: Vec<_> = (1..=300)
        .map(|user| {
            let body = format!(r#"{{"user_id": {user}, "product_id": 2, "quantity": 3}}"#);
            (user, tokio::spawn(send(api.address, order_request(&body))))
        })
        .collect();
    for (user, answer) in posting {
        let answer = answer.await.expect("no panic");
        let order = answer.json();
        assert_eq!((answer.status, &order["user_id"]), (201, &json!(user)));
        let path = format!("/orders/{}", order["ID"]);
        assert_eq!(answer.header("location"), Some(path.as_str()));
        assert_eq!(api.get(&path).await.body, answer.body);
    }
    assert_eq!(written(&database).await, (300, 300, 300));
    let unlike: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM outbox e JOIN order_transitions t USING (event_id) JOIN orders o ON o.id = t.order_id
        WHERE e.aggregate_id <> o.id::text OR (e.payload->>'user_id')::bigint <> o.user_id OR (e.payload->>'id')::bigint <> o.id",
    )
    .fetch_one(&database.pool)
    .await
    .expect("the rows can be joined");
    assert_eq!(unlike, 0);
    api.stop().await;
}
