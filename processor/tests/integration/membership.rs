//! Several processors share a topic.

use shared::testing::eventually;

use crate::support::World;

#[tokio::test(flavor = "multi_thread")]
async fn two_processors_share_partitions_and_when_one_is_killed_nothing_is_lost_or_done_twice() {
    let world = World::new("shared", 4).await;
    world.created_orders(100).await;
    let first = world.spawn(&[]);
    let mut second = world.spawn(&[]);
    world.eventually_settled(2).await;
    // Amid a backlog, in small batches so that it lasts.
    world.created_orders(3_000).await;
    eventually("some are Processed", async || (world.processed().await > 500).then_some(())).await;
    second.kill();
    world.created_orders(100).await;
    world.eventually_processed(3_200).await;
    drop(first);
    world.assert_processed_once(3_200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processors_that_come_and_go_lose_and_repeat_nothing() {
    let world = World::new("coming", 4).await;
    let small = [("PROCESSOR_BATCH_ROWS_MAX", "5"), ("PROCESSOR_QUEUE_ROWS_MAX", "20")];
    world.created_orders(500).await;
    let mut running = world.start(&small);
    let mut all = vec![running.metrics.clone()];
    for round in 1..=4 {
        world.eventually_settled(1).await;
        let next = world.start(&small);
        world.created_orders(500).await;
        eventually("half are Processed", async || (world.processed().await > round * 500 - 250).then_some(())).await;
        running.stop().await;
        running = next;
        all.push(running.metrics.clone());
    }
    world.eventually_processed(2_500).await;
    running.stop().await;
    world.assert_processed_once(2_500).await;
    assert_eq!(world.members(), 0, "all have left the group");
    let tallies: Vec<_> = all.iter().map(processor::metrics::Metrics::tally).collect();
    assert_eq!(tallies.iter().map(|tally| tally.applied).sum::<usize>(), 2_500);
    assert_eq!(tallies.iter().map(|tally| tally.superseded + tally.repeated).sum::<usize>(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_without_a_partition_leaves_the_group_when_it_is_shut_down() {
    let world = World::new("spare", 1).await;
    let first = world.start(&[]);
    world.eventually_settled(1).await;
    let spare = world.start(&[]);
    world.eventually_settled(2).await;
    eventually("it knows that it has nothing", async || (spare.metrics.rebalances() >= 1).then_some(())).await;
    // Sticky: the one that came first keeps the partition.
    spare.stop().await;
    assert_eq!(world.members(), 1);
    first.stop().await;
    assert_eq!(world.members(), 0);
}
