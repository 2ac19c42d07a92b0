//! Somebody else has moved a partition's position.

use rustix::process::{Pid, Signal, kill_process};
use shared::testing::eventually;

use crate::support::{Running, World};

/// A batch is on its way when its partition's position is set to `position` by somebody else.
async fn moved_under_a_batch(world: &World, position: i64, batch: i64) -> Running {
    let running = world.start(&[]);
    world.eventually_processed(5).await;
    let mut other = world.database.pool.begin().await.expect("a transaction");
    sqlx::query("UPDATE consumer_offsets SET next_offset = $1")
        .bind(position)
        .execute(&mut *other)
        .await
        .expect("moved");
    world.created_orders(batch).await;
    // Its compare-and-set waits for the other's lock: the batch is decided on, and not begun.
    eventually("the processor waits", async || (waiting(world).await == 1).then_some(())).await;
    other.commit().await.expect("committed");
    eventually("it is fenced", async || (running.metrics.fenced() == 1).then_some(())).await;
    running
}

async fn waiting(world: &World) -> i64 {
    world
        .count("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_whose_position_has_moved_on_changes_nothing() {
    let world = World::new("zombie", 1).await;
    world.created_orders(5).await;
    let running = moved_under_a_batch(&world, 8, 3).await;
    // The others' orders stay as they are; it goes on behind them.
    world.created_orders(1).await;
    world.eventually_at(0, 9).await;
    running.stop().await;
    world.assert_processed_once(6).await;
    assert_eq!(world.count("SELECT count(*) FROM inbox").await, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_batch_whose_position_somebody_else_has_made_changes_nothing() {
    let world = World::new("first", 1).await;
    let mut other = world.database.pool.begin().await.expect("a transaction");
    sqlx::query("INSERT INTO consumer_offsets (group_id, topic, partition, next_offset) VALUES ($1, $2, 0, 3)")
        .bind(&world.group)
        .bind(&world.topic)
        .execute(&mut *other)
        .await
        .expect("made");
    world.created_orders(3).await;
    let running = world.start(&[]);
    eventually("the processor waits", async || (waiting(&world).await == 1).then_some(())).await;
    other.commit().await.expect("committed");
    world.created_orders(1).await;
    world.eventually_at(0, 4).await;
    running.stop().await;
    world.assert_processed_once(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_set_back_is_read_again_without_a_second_effect() {
    let world = World::new("back", 1).await;
    world.created_orders(5).await;
    let running = moved_under_a_batch(&world, 0, 3).await;
    world.eventually_at(0, 8).await;
    let tally = running.stop().await.tally();
    assert_eq!((tally.applied, tally.repeated), (8, 5));
    world.assert_processed_once(8).await;
}

/// A stress of the way back after a fence, with queues that are full and paused.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_set_back_again_and_again_lose_nothing() {
    let world = World::new("shaken", 2).await;
    world.created_orders(600).await;
    let running = world.start(&[("PROCESSOR_QUEUE_ROWS_MAX", "20"), ("PROCESSOR_BATCH_ROWS_MAX", "10")]);
    for round in 1..=6 {
        // In the middle of batches, with queues that are full and paused.
        eventually("it goes on", async || (world.processed().await >= round * 50).then_some(())).await;
        sqlx::query("UPDATE consumer_offsets SET next_offset = greatest(next_offset - 50, 0)")
            .execute(&world.database.pool)
            .await
            .expect("set back");
    }
    world.eventually_processed(600).await;
    let metrics = running.stop().await;
    let (tally, fenced) = (metrics.tally(), metrics.fenced());
    assert!(fenced >= 6, "fenced {fenced} times");
    assert!(tally.repeated > 0);
    assert_eq!((tally.applied, tally.superseded), (600, 0));
    world.assert_processed_once(600).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_that_wakes_after_its_partitions_have_moved_changes_nothing() {
    wakes_after_its_partitions_have_moved("frozen", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_member_that_wakes_after_its_partitions_have_moved_changes_nothing() {
    wakes_after_its_partitions_have_moved("frozen_static", &[("PROCESSOR_INSTANCE_ID", "one")]).await;
}

async fn wakes_after_its_partitions_have_moved(test: &str, membership: &[(&str, &str)]) {
    let world = World::new(test, 2).await;
    world.created_orders(20).await;
    let frozen = world.spawn(membership);
    world.eventually_processed(20).await;
    signal(Signal::STOP, frozen.id());
    // Fetched or not, these are its own until its session is over.
    world.created_orders(20).await;
    let running = world.start(&[]);
    world.eventually_processed(40).await;
    signal(Signal::CONT, frozen.id());
    // It is thrown out and joins anew; then each has a partition.
    world.created_orders(200).await;
    world.eventually_processed(240).await;
    world.eventually_settled(2).await;
    world.created_orders(200).await;
    world.eventually_processed(440).await;
    running.stop().await;
    world.assert_processed_once(440).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_that_wakes_after_another_has_taken_its_name_ends_and_changes_nothing() {
    let world = World::new("frozen_name", 2).await;
    world.created_orders(20).await;
    let name = [("PROCESSOR_INSTANCE_ID", "one")];
    let mut frozen = world.spawn(&name);
    world.eventually_processed(20).await;
    signal(Signal::STOP, frozen.id());
    world.created_orders(20).await;
    let running = world.start(&name);
    world.eventually_processed(40).await;
    signal(Signal::CONT, frozen.id());
    world.created_orders(200).await;
    assert!(!frozen.ended().await, "Kafka tells it that it is fenced, for good");
    world.eventually_processed(240).await;
    running.stop().await;
    world.assert_processed_once(240).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_frozen_in_a_transaction_does_not_hold_its_partition() {
    let world = World::new("holding", 1).await;
    world.created_orders(5).await;
    // Its transaction waits for an order, with the position locked.
    let mut other = world.database.pool.begin().await.expect("a transaction");
    sqlx::query("SELECT 1 FROM orders FOR UPDATE").execute(&mut *other).await.expect("locked");
    let frozen = world.spawn(&[("PROCESSOR_TRANSACTION_IDLE_MS", "500")]);
    eventually("the processor waits", async || (waiting(&world).await == 1).then_some(())).await;
    signal(Signal::STOP, frozen.id());
    other.commit().await.expect("committed");
    let running = world.start(&[]);
    world.eventually_processed(5).await;
    signal(Signal::CONT, frozen.id());
    world.created_orders(5).await;
    world.eventually_processed(10).await;
    running.stop().await;
    world.assert_processed_once(10).await;
}

fn signal(signal: Signal, process: u32) {
    let process = Pid::from_raw(process.try_into().expect("a process id")).expect("a process");
    kill_process(process, signal).expect("it can be signalled");
}
