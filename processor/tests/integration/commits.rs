//! A processor that dies or is cut off at a commit.

use shared::testing::eventually;

use crate::proxy::{Mode, Proxy};
use crate::support::World;

/// A processor aborts at `failpoint`; another one goes on.
async fn killed_at(failpoint: &str, committed: bool) {
    let world = World::new("killed", 1).await;
    world.created_orders(50).await;
    let mut process = world.spawn(&[("PROCESSOR_FAILPOINT", failpoint)]);
    assert!(!process.ended().await, "it aborts");
    let before = world.processed().await;
    assert_eq!(before > 0, committed);

    let running = world.start(&[]);
    world.eventually_processed(50).await;
    // Whatever comes twice has come before this one.
    world.created_orders(1).await;
    world.eventually_processed(51).await;
    let tally = running.stop().await.tally();
    world.assert_processed_once(51).await;
    // Not thanks to the order's own guard: what was committed was not even given to the handler again.
    assert_eq!((i64::try_from(tally.applied), tally.superseded), (Ok(51 - before), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_killed_between_the_database_commit_and_the_kafka_commit_applies_nothing_twice() {
    killed_at("after-db-commit", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_killed_before_the_database_commit_has_changed_nothing_and_loses_nothing() {
    killed_at("before-db-commit", false).await;
}

/// The connection is lost at a commit. Returns how many batches were tried again.
async fn cut_at(mode: Mode) -> u64 {
    let world = World::new("cut", 1).await;
    let proxy = Proxy::to(&world.database.url).await;
    let url = proxy.url(&world.database.url);
    world.created_orders(5).await;
    let running = world.start(&[("DATABASE_URL", &url)]);
    world.eventually_processed(5).await;

    proxy.set(mode);
    world.created_orders(5).await;
    eventually("the connection is cut", async || proxy.has_cut().then_some(())).await;
    world.created_orders(1).await;
    world.eventually_processed(11).await;
    world.assert_processed_once(11).await;
    let metrics = running.stop().await;
    assert_eq!((metrics.tally().applied, metrics.tally().repeated, metrics.fenced()), (11, 0, 0));
    metrics.retries()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_found_done() {
    assert_eq!(cut_at(Mode::LoseAnswer).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_never_arrived_is_found_not_done_and_done_again() {
    assert_eq!(cut_at(Mode::LoseCommit).await, 1);
}
