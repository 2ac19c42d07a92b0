//! Several processors share a topic.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use processor::Processor;
use processor::handler::{HandlerError, OneByOne, SingleEventHandler};
use processor::record::Event;
use shared::testing::eventually;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::proxy::{Mode, Proxy};
use crate::support::{Running, World, event};

/// `PROCESSOR_SESSION_TIMEOUT_MS` of the processors here.
const SESSION: Duration = Duration::from_secs(6);

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

/// Up to three processors, of which one comes or goes in each round, while orders are written without a pause. If they are to be
/// `killed`, one more comes in every third round and is killed amid its work.
async fn come_and_go_under_load(test: &str, membership: &[(&str, &str)], killed: bool) {
    let world = World::new(test, 6).await;
    let mut settings = vec![("PROCESSOR_BATCH_ROWS_MAX", "10"), ("PROCESSOR_QUEUE_ROWS_MAX", "40")];
    settings.extend(membership);
    let (mut running, mut tallied) = (vec![world.start(&settings)], Vec::new());
    let (mut written, mut joined) = (0, 1);
    for round in 0..9 {
        world.created_orders(300).await;
        written += 300;
        if round % 3 == 2 {
            // The eldest goes with transactions under way.
            running.remove(0).stop().await;
        } else {
            let newcomer = world.start(&settings);
            eventually("the newcomer has its partitions", async || (newcomer.metrics.rebalances() >= 1).then_some(()))
                .await;
            running.push(newcomer);
            joined += 1;
        }
        world.created_orders(300).await;
        written += 300;
        tallied.extend(running.last().map(|last| last.metrics.clone()));
        let enough = written - 200;
        eventually("most are Processed", async || (world.processed().await >= enough).then_some(())).await;
        if running.len() > 2 {
            running.remove(0).stop().await;
        }
        if killed && round % 3 == 1 {
            let mut victim = world.spawn(&settings);
            world.eventually_settled(running.len() + 1).await;
            world.created_orders(300).await;
            written += 300;
            eventually("work goes on", async || (world.processed().await >= written - 200).then_some(())).await;
            victim.kill();
        }
    }
    world.eventually_processed(written).await;
    for one in running {
        one.stop().await;
    }
    world.assert_processed_once(written).await;
    assert!(joined > 5 && tallied.iter().any(|metrics| metrics.rebalances() >= 2), "they were rebalanced");
}

#[tokio::test(flavor = "multi_thread")]
async fn cooperative_rebalances_under_load_lose_and_repeat_nothing() {
    come_and_go_under_load("cooperative", &[("PROCESSOR_ASSIGNMENT", "cooperative-sticky")], true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eager_rebalances_under_load_lose_and_repeat_nothing() {
    come_and_go_under_load("eager_range", &[("PROCESSOR_ASSIGNMENT", "range")], true).await;
    come_and_go_under_load("eager_roundrobin", &[("PROCESSOR_ASSIGNMENT", "roundrobin")], false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rebalances_of_the_new_protocol_under_load_lose_and_repeat_nothing() {
    // The brokers' own session time-out decides when a killed one is missed: 45 s, too long for a test.
    come_and_go_under_load("new_protocol", &[("PROCESSOR_GROUP_PROTOCOL", "consumer")], false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_that_comes_back_under_its_name_moves_no_partition_of_the_others() {
    let world = World::new("by_name", 4).await;
    let first = world.start(&[("PROCESSOR_INSTANCE_ID", "first")]);
    world.eventually_settled(1).await;
    let second = world.start(&[("PROCESSOR_INSTANCE_ID", "second")]);
    // The group is stable in between: in a first round the other one gives partitions up, in a second one they are assigned.
    let mut written = 0;
    eventually("the second one works", async || {
        world.created_orders(4).await;
        written += 4;
        (second.metrics.tally().applied > 0).then_some(())
    })
    .await;
    world.eventually_processed(written).await;
    world.eventually_settled(2).await;
    let before = second.metrics.rebalances();

    first.stop().await;
    assert_eq!(world.members(), 2, "it is expected back");
    world.created_orders(40).await;
    written += 40;
    let first = world.start(&[("PROCESSOR_INSTANCE_ID", "first")]);
    world.eventually_processed(written).await;
    assert_eq!(second.metrics.rebalances(), before, "the other one has not noticed");
    let applied = first.stop().await.tally().applied;
    assert!(applied > 0, "it has its partitions again");
    second.stop().await;
    world.assert_processed_once(written).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_for_longer_than_a_session_costs_no_partition_and_no_memory() {
    let world = World::new("long_away", 2).await;
    let proxy = Proxy::to(&world.database.url).await;
    let url = proxy.url(&world.database.url);
    world.created_orders(10).await;
    let settings =
        [("DATABASE_URL", url.as_str()), ("PROCESSOR_BATCH_ROWS_MAX", "10"), ("PROCESSOR_QUEUE_ROWS_MAX", "20")];
    let running = world.start(&settings);
    world.eventually_processed(10).await;
    let before = running.metrics.rebalances();
    let begun = Instant::now();
    proxy.set(Mode::Away);
    world.created_orders(500).await;
    eventually("both partitions are paused", async || (running.metrics.pauses() >= 2).then_some(())).await;
    eventually("a session would be over", async || (begun.elapsed() > SESSION + SESSION / 2).then_some(())).await;
    assert_eq!((world.members(), running.metrics.rebalances()), (1, before));
    // A queue fills, its worker takes one batch and cannot commit it, and the queue fills once more.
    assert!(running.metrics.pauses() <= 4, "nothing more was taken");
    proxy.set(Mode::Pass);
    world.eventually_processed(510).await;
    assert_eq!(running.metrics.rebalances(), before);
    running.stop().await;
    world.assert_processed_once(510).await;
}

/// Takes longer over its first event than a consumer may be silent.
struct Slow(AtomicBool);

impl SingleEventHandler for Slow {
    async fn handle_one(&self, event: Event<'_>, connection: &mut PgConnection) -> Result<(), HandlerError> {
        sqlx::query("INSERT INTO notes (key) VALUES ($1)").bind(event.aggregate_id()).execute(&mut *connection).await?;
        if !self.0.swap(true, Ordering::Relaxed) {
            sqlx::query("SELECT pg_sleep($1)").bind((SESSION + SESSION / 2).as_secs_f64()).execute(connection).await?;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_slower_than_the_poll_interval_keeps_its_partition() {
    let world = World::new("slow", 1).await;
    world.table("notes (key text NOT NULL)").await;
    let config = world.config(&[("PROCESSOR_POLL_INTERVAL_MS", "6000")]);
    let running = Running::start(Processor::builder(config).handler("noted", OneByOne(Slow(AtomicBool::new(false)))));
    let note = |key: &str| event("noted", Uuid::now_v7(), key, "{}");
    world.produce([note("first"), note("second")]);
    world.eventually_at(0, 2).await;
    assert_eq!((world.members(), running.metrics.rebalances(), running.metrics.fenced()), (1, 1, 0));
    running.stop().await;
    assert_eq!(world.count("SELECT count(*) FROM notes").await, 2);
}
