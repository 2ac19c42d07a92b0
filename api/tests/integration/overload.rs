//! More orders than can be written, or none at all: who must wait too long is sent away soon, and who is accepted is written.

use std::time::{Duration, Instant};

use shared::testing::{TestDatabase, eventually};
use tokio::task::JoinSet;

use crate::http::{Answer, order_request, send};
use crate::service::{Api, ORDER, execute, hold, statement_held, written};

#[tokio::test]
async fn an_order_that_has_waited_too_long_is_refused_and_so_is_who_comes_after_it() {
    let database = TestDatabase::create("too_old").await;
    let api = Api::with(&database, |limits| {
        limits.statements_max = 1;
        limits.queue_age_max_ms = 200;
    })
    .await;
    let held = hold(&database.pool).await;
    let first = api.posting(ORDER);
    statement_held(&database).await;
    for answer in [api.posting(ORDER), api.posting(ORDER)] {
        let answer = answer.await.expect("no panic");
        assert_eq!((answer.status, answer.problem().as_str()), (503, "/problems/overloaded"));
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    // Nothing is written meanwhile: nobody need wait to learn that.
    let before = api.metric("api_orders_refused_total{reason=\"queue_old\"}").await;
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!(api.post(ORDER).await.status, 503);
    }
    assert!(start.elapsed() < Duration::from_secs(4), "they did not wait for the greatest age");
    assert_eq!(api.metric("api_orders_refused_total{reason=\"queue_old\"}").await, before + 20);
    drop(held);
    assert_eq!(first.await.expect("no panic").status, 201, "its statement was under way");
    eventually("orders are accepted again", async || (api.post(ORDER).await.status == 201).then_some(())).await;
    assert_eq!(written(&database).await, (2, 2, 2), "what was refused is not written afterwards");
    api.stop().await;
}

/// Sends orders for `duration`, one every `interval` whatever becomes of them.
async fn offer(api: &Api, interval: Duration, duration: Duration) -> Vec<(Answer, Duration)> {
    let mut tasks = JoinSet::new();
    let mut ticks = tokio::time::interval(interval);
    let start = Instant::now();
    while start.elapsed() < duration {
        ticks.tick().await;
        let address = api.address;
        tasks.spawn(async move {
            let start = Instant::now();
            (send(address, order_request(ORDER)).await, start.elapsed())
        });
    }
    tasks.join_all().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_three_times_what_can_be_written_as_much_is_accepted_and_the_rest_refused_at_once() {
    let database = TestDatabase::create("three_times").await;
    // Ten rows take 50 ms whatever the machine does otherwise: at most 200 orders a second.
    execute(
        &database,
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.005); RETURN NEW; END $$;
         CREATE TRIGGER slow BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    .await;
    let api = Api::with(&database, |limits| {
        limits.statements_max = 1;
        limits.batch_rows_max = 10;
        limits.queue_age_max_ms = 800;
    })
    .await;
    let duration = Duration::from_secs(4);
    let answers = offer(&api, Duration::from_micros(1_666), duration).await;
    let (accepted, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(answer, _)| answer.status == 201);
    assert!(refused.iter().all(|(answer, _)| answer.status == 503 && answer.problem() == "/problems/overloaded"));
    let count = i64::try_from(accepted.len()).expect("few");
    assert_eq!(written(&database).await, (count, count, count), "what is accepted is written, and nothing else");

    // The machine may be slower than the trigger, so it is the trigger and the API together that set what can be written: what the
    // statements took.
    let rows = api.metric("api_statement_rows_sum").await;
    let spent = api
        .metric_seconds("db_client_operation_duration_seconds_sum{db_operation_name=\"insert_orders\",outcome=\"ok\"}")
        .await;
    assert_eq!(rows, count);
    assert!(spent > 0.9 * duration.as_secs_f64(), "the writer was never out of work: {spent} s of {duration:?}");
    let mut waited: Vec<Duration> = refused.iter().map(|(_, waited)| *waited).collect();
    waited.sort_unstable();
    assert!(waited.len() > accepted.len(), "two thirds are too many");
    assert!(waited[waited.len() / 2] < Duration::from_millis(50), "{:?}", waited[waited.len() / 2]);
    // A quarter of the greatest age, and what it takes to learn the pace, is the longest wait.
    let mut waited: Vec<Duration> = accepted.iter().map(|(_, waited)| *waited).collect();
    waited.sort_unstable();
    assert!(waited[waited.len() / 2] < Duration::from_millis(600), "{:?}", waited[waited.len() / 2]);
    api.stop().await;
}
