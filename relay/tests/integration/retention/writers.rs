//! What dropping costs the writers when somebody holds the partition.

use std::time::{Duration, Instant};

use relay::outbox::retention::Outcome;
use sqlx::{Connection, PgConnection};

use super::stage::{INSERT, Stage, attempt, dropper_waits};

/// Inserts one row after the other until told to stop; returns how many, and the longest time that one took.
async fn write_until(url: String, mut stop: tokio::sync::oneshot::Receiver<()>) -> (u32, Duration) {
    let mut connection = PgConnection::connect(&url).await.expect("a connection");
    let (mut count, mut longest) = (0, Duration::ZERO);
    while stop.try_recv().is_err() {
        let start = Instant::now();
        sqlx::query(INSERT).bind(1).execute(&mut connection).await.expect("a row is inserted");
        longest = longest.max(start.elapsed());
        count += 1;
    }
    (count, longest)
}

/// More than a writer may wait, less than a holder would make it wait; the difference is for a busy machine.
const LONGEST_INSERT: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_held_open_is_named_and_not_waited_for() {
    let stage = Stage::new("a_transaction_held_open").await;
    stage.fill(250).await;
    stage.settle().await;
    let mut holder = stage.connection().await;
    let mut held = holder.begin().await.unwrap();
    sqlx::query("SET LOCAL application_name = 'forgotten'").execute(&mut *held).await.unwrap();
    sqlx::query("SELECT FROM outbox LIMIT 1").execute(&mut *held).await.unwrap();
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *held).await.unwrap();

    let (stop, stopped) = tokio::sync::oneshot::channel();
    let writer = tokio::spawn(write_until(stage.database.url.clone(), stopped));
    for _ in 0..5 {
        match stage.try_to_drop().await {
            Some(Outcome::Held(culprit)) => {
                assert_eq!((culprit.pid, culprit.application.as_deref()), (Some(pid), Some("forgotten")));
            }
            outcome => panic!("{outcome:?}"),
        }
    }
    stop.send(()).unwrap();
    let (count, longest) = writer.await.unwrap();
    assert!(count > 0 && longest < LONGEST_INSERT, "{longest:?}");
    held.rollback().await.unwrap();
    assert_eq!(stage.try_to_drop().await, Some(Outcome::Dropped));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_comes_between_holds_writers_up_no_longer_than_the_lock_timeout() {
    let stage = Stage::new("a_transaction_that_comes").await;
    stage.fill(250).await;
    stage.settle().await;
    let (mut one, mut two, mut watcher) =
        (stage.connection().await, stage.connection().await, stage.connection().await);
    let mut earlier = one.begin().await.unwrap();
    sqlx::query("SELECT FROM outbox LIMIT 1").execute(&mut *earlier).await.unwrap();
    let relay = stage.relay.clone();
    let drop = tokio::spawn(async move { attempt(&relay, Duration::ZERO).await });
    dropper_waits(&mut watcher, "PgSleep").await;
    let mut held = two.begin().await.unwrap();
    sqlx::query("SELECT FROM outbox LIMIT 1").execute(&mut *held).await.unwrap();
    earlier.rollback().await.unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let writer = tokio::spawn(write_until(stage.database.url.clone(), stopped));
    assert_eq!(drop.await.unwrap().map(|attempt| attempt.outcome), Some(Outcome::Busy));
    stop.send(()).unwrap();
    let (count, longest) = writer.await.unwrap();
    assert!(count > 0 && longest < LONGEST_INSERT, "{longest:?}");
    assert_eq!(stage.partitions().await.len(), 3);
}
