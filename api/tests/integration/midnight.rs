//! Idempotency keys over the days: around midnight, after their retention, and without partitions. Each test moves the day of its own
//! database.

use std::time::Duration;

use api::idempotency::keeper::Keeper;
use api::metrics::Metrics;
use prometheus_client::registry::Registry;
use shared::shutdown::Shutdown;
use shared::testing::{TestDatabase, eventually};
use sqlx::AssertSqlSafe;

use crate::http::{Answer, order_request, send};
use crate::idempotency::{assert_replayed, grouped, keyed};
use crate::service::{Api, ORDER, execute, statement_waits, written};

/// A database whose day is the real one and some more.
async fn movable(test: &str) -> TestDatabase {
    let database = TestDatabase::create(test).await;
    execute(
        &database,
        "CREATE TABLE moved (days integer NOT NULL);
         INSERT INTO moved VALUES (0);
         GRANT SELECT ON moved TO outrider_api;
         CREATE OR REPLACE FUNCTION idempotency_day(at timestamptz) RETURNS date LANGUAGE sql STABLE
         SET search_path = public
         AS $$ SELECT (at AT TIME ZONE 'UTC')::date + (SELECT days FROM moved) $$",
    )
    .await;
    database
}

async fn move_to(database: &TestDatabase, days: i32) {
    sqlx::query("UPDATE moved SET days = $1").bind(days).execute(&database.pool).await.expect("the day moves");
}

async fn post(api: &Api, key: &str) -> Answer {
    send(api.address, keyed(key, ORDER)).await
}

#[tokio::test]
async fn a_key_is_known_on_the_next_day_and_free_on_the_one_after() {
    let database = movable("next_day").await;
    let api = Api::start(&database).await;
    let first = post(&api, "k").await;
    assert_eq!(first.status, 201);
    move_to(&database, 1).await;
    assert_replayed(&first, &post(&api, "k").await);
    let second = post(&api, "only-today").await;
    move_to(&database, 2).await;
    let again = post(&api, "k").await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (201, None), "its 24 hours are over");
    assert_replayed(&second, &post(&api, "only-today").await);
    assert_eq!(written(&database).await, (3, 3, 3));
    api.stop().await;
}

#[tokio::test]
async fn two_servers_that_see_midnight_between_them_make_one_order() {
    // The first server is stopped before its key is in any index, and then when it is and its order is not.
    for table in ["idempotency_keys", "orders"] {
        let database = movable("midnight").await;
        let stop = format!(
            "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF (SELECT days FROM moved) = 0 THEN PERFORM pg_advisory_xact_lock_shared(13); END IF;
                 RETURN NEW;
             END $$;
             CREATE TRIGGER stop BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION stop()"
        );
        sqlx::raw_sql(AssertSqlSafe(stop)).execute(&database.pool).await.expect("a trigger");
        let [before, after] = [Api::start(&database).await, Api::start(&database).await];
        let mut held = database.pool.begin().await.expect("a transaction");
        sqlx::query("SELECT pg_advisory_xact_lock(13)").execute(&mut *held).await.expect("nobody has it");

        let first = tokio::spawn(send(before.address, keyed("k", ORDER)));
        statement_waits(&database, "-- insert_keyed_orders%", 1).await;
        move_to(&database, 1).await;
        let second = tokio::spawn(send(after.address, keyed("k", ORDER)));
        // Either it has made the order, or it waits for the first one to do so.
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
            AND query LIKE '-- insert_keyed_orders%'";
        eventually("the second one is done or waits", async || {
            let count: i64 = sqlx::query_scalar(waiting).fetch_one(&database.pool).await.expect("the activity");
            (second.is_finished() || count == 2).then_some(())
        })
        .await;
        drop(held);
        let (first, second) = (first.await.expect("no panic"), second.await.expect("no panic"));
        assert_eq!(written(&database).await, (1, 1, 1), "{table}");
        if first.header("idempotency-replayed").is_none() {
            assert_replayed(&first, &second);
        } else {
            assert_replayed(&second, &first);
        }
        let kept = "SELECT count(*), count(DISTINCT order_id) FROM idempotency_keys";
        let kept: (i64, i64) = sqlx::query_as(kept).fetch_one(&database.pool).await.expect("the keys");
        assert_eq!(kept, (2, 1), "{table}: a row for each of two days, of the one order");
        before.stop().await;
        after.stop().await;
    }
}

#[tokio::test]
async fn partitions_are_made_ahead_and_dropped_when_their_day_is_over() {
    let database = movable("partitions").await;
    let opened = database.config("outrider_api").connect(&Shutdown::new()).await.expect("the database is there");
    let metrics = Metrics::register(&mut Registry::default());
    let keeper = Keeper::new(opened, Duration::from_hours(24), metrics.clone());
    let days = async || -> Vec<i32> {
        let days = "SELECT day - (now() AT TIME ZONE 'UTC')::date FROM idempotency_partitions ORDER BY 1";
        sqlx::query_scalar(days).fetch_all(&database.pool).await.expect("the partitions")
    };
    assert!(keeper.round().await.expect("a round"));
    assert_eq!(days().await, [0, 1, 2, 3], "today, the next day, and two to spare");
    let api = Api::start(&database).await;
    assert_eq!(post(&api, "k").await.status, 201);
    move_to(&database, 1).await;
    assert!(keeper.round().await.expect("a round"));
    assert_eq!(days().await, [0, 1, 2, 3, 4], "yesterday is needed by those that began then");
    // A transaction that has just written a key: the empty partition cannot be dropped, and its rows can be done away with.
    let mut open = database.pool.begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE ONLY idempotency_keys IN ROW EXCLUSIVE MODE").execute(&mut *open).await.expect("a lock");
    move_to(&database, 2).await;
    assert!(!keeper.round().await.expect("a round"), "a lock was in the way");
    let rows = "SELECT count(*) FROM idempotency_keys WHERE day < idempotency_day(now()) - 1";
    let rows: i64 = sqlx::query_scalar(rows).fetch_one(&database.pool).await.expect("the keys");
    assert_eq!((days().await, rows), (vec![0, 1, 2, 3, 4, 5], 0));
    drop(open);
    eventually("the lock is gone", async || keeper.round().await.expect("a round").then_some(())).await;
    assert_eq!(days().await, [1, 2, 3, 4, 5]);
    assert_eq!((metrics.key_partitions.get(), metrics.key_partitions_dropped.get()), (5, 1));
    api.stop().await;
}

#[tokio::test]
async fn without_a_partition_only_orders_with_keys_are_refused() {
    let database = movable("no_partition").await;
    let api = Api::with(&database, |limits| limits.statements_max = 1).await;
    move_to(&database, 100).await;
    let requests = vec![order_request(ORDER), keyed("k", ORDER), order_request(ORDER)];
    let answers = grouped(&database, &api, requests).await;
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [201, 503, 201]);
    assert_eq!(answers[1].problem(), "/problems/unavailable");
    assert_eq!(written(&database).await, (3, 3, 3));
    api.stop().await;
}
