//! A key whose event fails in a way that may pass is tried again, and nothing else waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use processor::Processor;
use processor::handler::{EventHandler, Handled, HandlerError};
use processor::record::Event;
use shared::testing::eventually;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::keeper::{kept, kept_as, start, world};
use crate::support::Running;

/// A key fails for a while; the others of its partition go on, and its later events keep their order behind it.
async fn held_up(test: &str, names: bool) {
    let world = world(test, 1).await;
    world.fate("slow", 2, Some("later")).await;
    let running = start(&world, names, &[]);
    world.produce([kept("slow", 1), kept("a", 1), kept("slow", 2), kept("b", 1), kept("slow", 3), kept("a", 2)]);
    world.eventually_at(0, 6).await;
    world.produce([kept("slow", 4), kept("a", 3)]);
    world.eventually_at(0, 8).await;
    eventually("it is tried again", async || (running.metrics.tally().keys_tried >= 3).then_some(())).await;
    assert_eq!(world.versions("a").await, [1, 2, 3]);
    assert_eq!(world.versions("b").await, [1]);
    assert_eq!(world.versions("slow").await, [1]);
    assert_eq!(world.state("slow").await.as_deref(), Some("retrying"));
    assert_eq!(world.waiting("slow").await, [(2, Some("later".to_owned())), (3, None), (4, None)]);
    assert_eq!(world.count("SELECT count(*) FROM inbox").await, 5, "what waits is not taken in");

    world.fate("slow", 2, None).await;
    world.eventually_kept("slow", 4).await;
    world.eventually_state("slow", None).await;
    world.produce([kept("slow", 5)]);
    world.eventually_kept("slow", 5).await;
    let tally = running.stop().await.tally();
    world.assert_nothing_waits().await;
    assert_eq!((tally.applied, tally.waiting, tally.dead_lettered), (9, 3, 0));
    assert_eq!((tally.keys_retrying, tally.keys_parked, tally.keys_unblocked), (1, 0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_named_as_retryable_is_held_up_alone_and_keeps_its_order() {
    held_up("named", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_found_by_halving_is_held_up_alone_and_keeps_its_order() {
    held_up("halved", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_attempts_are_exhausted_is_parked_once() {
    let world = world("exhausted", 1).await;
    world.fate("bad", 1, Some("later")).await;
    let running = start(&world, true, &[("PROCESSOR_KEY_ATTEMPTS_MAX", "3")]);
    world.produce([kept("bad", 1), kept("bad", 2), kept("good", 1)]);
    world.eventually_state("bad", Some("parked")).await;
    assert_eq!(world.count("SELECT attempts::bigint FROM blocked_keys").await, 3);
    assert_eq!(world.waiting("bad").await, [(1, Some("later".to_owned())), (2, None)]);
    assert_eq!(world.versions("good").await, [1]);
    assert_eq!(
        world.count("SELECT count(*) FROM told WHERE key = 'bad' AND version = 1 AND reason = 'later'").await,
        1
    );
    assert_eq!(world.count("SELECT count(*) FROM told").await, 1);
    let tally = running.stop().await.tally();
    assert_eq!((tally.keys_tried, tally.keys_parked), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_failed_for_too_long_is_parked_whatever_its_attempts() {
    let world = world("aged", 1).await;
    world.fate("bad", 1, Some("later")).await;
    let running = start(&world, true, &[("PROCESSOR_KEY_AGE_MAX_S", "1")]);
    world.produce([kept("bad", 1)]);
    world.eventually_state("bad", Some("parked")).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_progress_attempts_are_counted_from_one() {
    let world = world("progress", 1).await;
    for version in 1..=3 {
        world.fate("slow", version, Some("later")).await;
    }
    let running = start(&world, true, &[]);
    world.produce((1..=3).map(|version| kept("slow", version)));
    for version in 1..=3 {
        let head = (version, Some("later".to_owned()));
        eventually("it has failed", async || (world.waiting("slow").await.first() == Some(&head)).then_some(())).await;
        eventually("it has failed a few times", async || {
            let attempts = world.count("SELECT coalesce(max(attempts), 0)::bigint FROM blocked_keys").await;
            (3..900).contains(&attempts).then_some(())
        })
        .await;
        // The next one has not failed yet, and its attempts begin anew.
        sqlx::query("UPDATE blocked_keys SET attempts = 900").execute(&world.database.pool).await.expect("set");
        world.fate("slow", version, None).await;
    }
    world.eventually_kept("slow", 3).await;
    running.stop().await;
    world.assert_nothing_waits().await;
    assert_eq!(world.count("SELECT count(*) FROM told").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_came_before_its_elder_waits_for_it_and_others_do_not() {
    let world = world("early", 1).await;
    // Woken by its elder, and by nothing else: the schedule alone would take a minute.
    let running =
        start(&world, true, &[("PROCESSOR_RETRY_FIRST_MS", "60000"), ("PROCESSOR_KEY_RETRY_MAX_MS", "60000")]);
    world.produce([kept("row", 1), kept("row", 3), kept("a", 1), kept("row", 4), kept("row2", 2), kept("row2", 1)]);
    world.eventually_at(0, 6).await;
    world.eventually_kept("row2", 2).await;
    assert_eq!(world.state("row").await.as_deref(), Some("waiting"));
    assert_eq!((world.versions("row").await, world.versions("a").await), (vec![1], vec![1]));
    world.produce([kept("row", 2)]);
    world.eventually_kept("row", 4).await;
    running.stop().await;
    world.assert_nothing_waits().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_whose_elder_does_not_come_is_parked_when_it_is_too_old() {
    let world = world("orphan", 1).await;
    let limits = [("PROCESSOR_KEY_ATTEMPTS_MAX", "1"), ("PROCESSOR_KEY_AGE_MAX_S", "1")];
    let running = start(&world, true, &limits);
    world.produce([kept("row", 2), kept("row", 3), kept("a", 1)]);
    world.eventually_state("row", Some("parked")).await;
    assert_eq!(world.versions("a").await, [1]);
    // An elder that comes now goes before them, when an operator says so.
    world.produce([kept("row", 1)]);
    world.eventually_at(0, 4).await;
    assert_eq!(world.versions("row").await, [0_i64; 0]);
    assert_eq!(world.replay("row", 0, false).await, (3, 0, None));
    world.eventually_kept("row", 3).await;
    running.stop().await;
    world.assert_nothing_waits().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_published_again_while_its_key_waits_is_applied_once() {
    let world = world("republished", 1).await;
    world.fate("slow", 2, Some("later")).await;
    let running = start(&world, true, &[]);
    let ids: Vec<Uuid> = (0..3).map(|_| Uuid::now_v7()).collect();
    let all = || (1..=3).zip(&ids).map(|(version, id)| kept_as("slow", version, *id));
    world.produce(all().chain(all()));
    world.eventually_at(0, 6).await;
    world.produce(all());
    world.eventually_at(0, 9).await;
    // And what is read again at the same offsets.
    sqlx::query("UPDATE consumer_offsets SET next_offset = 1").execute(&world.database.pool).await.expect("set back");
    world.produce([kept("a", 1)]);
    world.eventually_at(0, 10).await;
    world.fate("slow", 2, None).await;
    world.eventually_kept("slow", 3).await;
    world.eventually_state("slow", None).await;
    world.produce(all());
    world.eventually_at(0, 13).await;
    running.stop().await;
    assert_eq!(world.versions("slow").await, [1, 2, 3]);
    world.assert_nothing_waits().await;
}

/// Fails as Postgres does when the transaction has lost to another one.
struct Loses(Arc<AtomicBool>);

impl EventHandler for Loses {
    async fn handle(&self, _: &[Event<'_>], connection: &mut PgConnection) -> Result<Handled, HandlerError> {
        if self.0.load(Ordering::Relaxed) {
            sqlx::raw_sql("DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = 'serialization_failure'; END $$")
                .execute(connection)
                .await?;
        }
        Ok(Handled::default())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_lost_to_another_one_is_tried_again_whole() {
    let world = world("lost", 1).await;
    let losing = Arc::new(AtomicBool::new(true));
    let running = Running::start(Processor::builder(world.config(&[])).handler("kept", Loses(Arc::clone(&losing))));
    world.produce([kept("a", 1), kept("b", 1)]);
    eventually("it is tried again", async || (running.metrics.retries() >= 3).then_some(())).await;
    assert_eq!(world.position(0).await, None);
    losing.store(false, Ordering::Relaxed);
    world.eventually_at(0, 2).await;
    running.stop().await;
    world.assert_nothing_waits().await;
}
