//! Orders that share a statement, and what that must not change.

use api::batcher::Batcher;
use api::config::Limits;
use api::domain::NewOrder;
use api::metrics::Metrics;
use prometheus_client::registry::Registry;
use shared::testing::{TestDatabase, eventually};
use tokio::task::JoinSet;

use crate::http::{open, order_request};
use crate::service::{Api, ORDER, execute, hold, statement_held, written};

#[tokio::test]
async fn one_failing_row_fails_only_its_own_request() {
    let database = TestDatabase::create("one_failing_row").await;
    execute(&database, "ALTER TABLE orders ADD CONSTRAINT test_check CHECK (product_id <> 13)").await;
    let api = Api::with(&database, |limits| limits.statements_max = 1).await;
    let held = hold(&database.pool).await;
    let first = api.posting(ORDER);
    statement_held(&database).await;
    // These queue up behind the first one, and so are one group.
    let group: Vec<_> = (10..20)
        .map(|product| (product, api.posting(&format!(r#"{{"user_id": 1, "product_id": {product}, "quantity": 3}}"#))))
        .collect();
    api.queued(10).await;
    drop(held);
    assert_eq!(first.await.expect("no panic").status, 201);
    for (product, answer) in group {
        let answer = answer.await.expect("no panic");
        if product == 13 {
            assert_eq!((answer.status, answer.problem().as_str()), (500, "/problems/internal"));
        } else {
            assert_eq!((answer.status, &answer.json()["product_id"]), (201, &product.into()));
        }
    }
    assert_eq!(written(&database).await, (10, 10, 10));
    // One statement for the first, one for the group, one for each of its rows.
    assert_eq!(api.metric("api_statement_rows_count").await, 12);
    assert_eq!(api.metric("api_statement_rows_sum").await, 21);
    api.stop().await;
}

#[tokio::test]
async fn a_full_queue_answers_503_at_once() {
    let database = TestDatabase::create("full_queue").await;
    let api = Api::with(&database, |limits| {
        limits.statements_max = 1;
        limits.queue_max = 2;
    })
    .await;
    let held = hold(&database.pool).await;
    let first = api.posting(ORDER);
    statement_held(&database).await;
    let queued = [api.posting(ORDER), api.posting(ORDER)];
    api.queued(2).await;
    // Answered while nothing can be written: nobody waited for anything.
    for _ in 0..20 {
        let answer = api.post(ORDER).await;
        assert_eq!((answer.status, answer.problem().as_str()), (503, "/problems/overloaded"));
    }
    assert!(!first.is_finished(), "the lock is still held");
    drop(held);
    for answer in std::iter::once(first).chain(queued) {
        assert_eq!(answer.await.expect("no panic").status, 201);
    }
    assert_eq!(written(&database).await, (3, 3, 3));
    api.stop().await;
}

#[tokio::test]
async fn an_order_handed_in_is_written_though_nobody_waits_for_it_any_more() {
    let database = TestDatabase::create("nobody_waits").await;
    let limits =
        Limits { statements_max: 1, statement_timeout_ms: 60_000, queue_age_max_ms: 60_000, ..Limits::default() };
    let metrics = Metrics::register(&mut Registry::default());
    let mut writers = JoinSet::new();
    let config = database.config("outrider_api");
    let batcher = Batcher::start(&config, &limits, &metrics, &mut writers).await.expect("a thread");
    let held = hold(&database.pool).await;
    let order = NewOrder::from_json(ORDER.as_bytes()).expect("an order");
    let mut waiting = Vec::new();
    for queued in 0..4 {
        let batcher = batcher.clone();
        waiting.push(tokio::spawn(async move { batcher.submit(order, None, None).await }));
        if queued == 0 {
            statement_held(&database).await;
        }
        eventually("it is queued", async || (metrics.queued.get() == queued).then_some(())).await;
    }
    for task in waiting {
        task.abort();
        assert!(task.await.expect_err("it was still waiting").is_cancelled());
    }
    drop((held, batcher));
    while let Some(ended) = writers.join_next().await {
        ended.expect("a writer ends when the queue is empty");
    }
    assert_eq!(written(&database).await, (4, 4, 4));
}

#[tokio::test]
async fn a_request_cut_off_is_written_whole_or_not_at_all() {
    let database = TestDatabase::create("cut_off").await;
    let api = Api::with(&database, |limits| limits.statements_max = 1).await;
    let held = hold(&database.pool).await;
    // One client goes while its order is being written, the others while theirs wait.
    let first = open(api.address, &order_request(ORDER)).await;
    statement_held(&database).await;
    let mut others = Vec::new();
    for _ in 0..4 {
        others.push(open(api.address, &order_request(ORDER)).await);
    }
    api.queued(4).await;
    drop((first, others));
    drop(held);
    eventually("all five are written whole", async || (written(&database).await == (5, 5, 5)).then_some(())).await;

    // The server ends the connection amid a statement: not at all, and the client is told that it does not know.
    let held = hold(&database.pool).await;
    let answer = api.posting(ORDER);
    statement_held(&database).await;
    let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND query LIKE '-- insert_orders%'";
    sqlx::query(terminate).execute(&database.pool).await.expect("the owner may end connections");
    let answer = answer.await.expect("no panic");
    assert_eq!((answer.status, answer.problem().as_str()), (503, "/problems/unavailable"));
    drop(held);
    assert_eq!(written(&database).await, (5, 5, 5));
    assert_eq!(api.post(ORDER).await.status, 201, "and the next one finds a new connection");
    api.stop().await;
}
