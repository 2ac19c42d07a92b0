//! Processors that are killed, and a database that goes away.

use shared::testing::eventually;

use crate::support::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_that_dies_before_its_commit_has_applied_nothing() {
    let world = World::new("before_commit", 1).await;
    world.created_orders(10).await;
    let mut process = world.spawn(&[("PROCESSOR_FAILPOINT", "before-db-commit")]);
    assert!(!process.ended().await);
    assert_eq!((world.processed().await, world.position(0).await), (0, None));
    let running = world.start(&[]);
    world.eventually_processed(10).await;
    running.stop().await;
    world.assert_processed_once(10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_that_dies_between_its_two_commits_applies_nothing_twice() {
    let world = World::new("between_commits", 1).await;
    world.created_orders(10).await;
    let settings = [("PROCESSOR_FAILPOINT", "after-db-commit"), ("PROCESSOR_BATCH_ROWS_MAX", "3")];
    let mut process = world.spawn(&settings);
    assert!(!process.ended().await);
    let applied = world.processed().await;
    assert!((1..=3).contains(&applied), "{applied} of a batch of three");
    assert_eq!(world.position(0).await, Some(applied));
    let running = world.start(&[]);
    world.eventually_processed(10).await;
    running.stop().await;
    world.assert_processed_once(10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processors_share_the_partitions_and_one_that_is_killed_leaves_nothing_undone() {
    let world = World::new("two_processors", 6).await;
    let running = world.start(&[]);
    world.created_orders(300).await;
    let mut process = world.spawn(&[("PROCESSOR_BATCH_ROWS_MAX", "5")]);
    // The newcomer applies something as well: partitions have moved to it.
    eventually("the first processor has given partitions away", async || (running.partitions() < 6).then_some(()))
        .await;
    world.created_orders(2_000).await;
    process.kill();
    world.created_orders(300).await;
    world.eventually_processed(2_600).await;
    running.stop().await;
    world.assert_processed_once(2_600).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_breaks_every_connection_delays_and_repeats_nothing() {
    let world = World::new("broken_connections", 3).await;
    let running = world.start(&[("PROCESSOR_BATCH_ROWS_MAX", "10")]);
    for round in 1..=5 {
        world.created_orders(200).await;
        let before = world.processed().await;
        eventually("it is at work", async || (world.processed().await > before || before == round * 200).then_some(()))
            .await;
        sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = 'outrider-processor'",
        )
        .execute(&world.database.pool)
        .await
        .unwrap();
    }
    world.eventually_processed(1_000).await;
    running.stop().await;
    world.assert_processed_once(1_000).await;
}
