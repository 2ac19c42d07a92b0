//! Small batches of several partitions go together, and part where one of them is in trouble.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use processor::Processor;
use processor::handler::{HandlerError, OneByOne, SingleEventHandler};
use processor::record::Event;
use shared::testing::eventually;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::support::{Produced, Running, World, event};

const PARTITIONS: i32 = 8;

/// How long the partitions that are not in trouble may take.
const SOON: Duration = Duration::from_secs(2);

/// One with a position in every partition.
async fn world(test: &str) -> World {
    let world = World::new(test, PARTITIONS).await;
    world.created_orders(i64::from(PARTITIONS)).await;
    world
}

/// Transactions that have made orders Processed.
async fn transactions(world: &World) -> i64 {
    world.count("SELECT count(DISTINCT xmin::text) FROM order_transitions WHERE version = 2").await
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_with_little_to_do_share_transactions() {
    let world = world("joint").await;
    let running = world.start(&[]);
    world.eventually_processed(PARTITIONS.into()).await;
    let before = transactions(&world).await;
    let rounds = 20;
    for round in 1..=rounds {
        world.created_orders(PARTITIONS.into()).await;
        world.eventually_processed(i64::from(PARTITIONS) * (round + 1)).await;
    }
    let (transactions, orders) = (transactions(&world).await - before, rounds * i64::from(PARTITIONS));
    assert!(transactions * 2 <= orders, "{transactions} transactions for {orders} orders");
    let metrics = running.stop().await;
    // A shared transaction that takes long, as on a busy machine, is rolled back.
    assert_eq!((metrics.tally().applied, metrics.fenced()), (168, 0));
    world.assert_processed_once(168).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_somebody_has_locked_keeps_its_partition_alone() {
    let world = world("joint_locked").await;
    let running = world.start(&[]);
    world.eventually_processed(PARTITIONS.into()).await;
    let mut processed = i64::from(PARTITIONS);
    for _ in 0..5 {
        let orders = world.orders(PARTITIONS.into()).await;
        let mut other = world.database.pool.begin().await.expect("a transaction");
        sqlx::query("SELECT FROM orders WHERE id = $1 FOR UPDATE")
            .bind(orders[0].id)
            .execute(&mut *other)
            .await
            .expect("locked");
        let start = Instant::now();
        world.produce(orders.iter().map(|order| order.created(PARTITIONS)));
        world.eventually_processed(processed + i64::from(PARTITIONS) - 1).await;
        assert!(start.elapsed() < SOON, "the others took {:?}", start.elapsed());
        other.rollback().await.expect("unlocked");
        processed += i64::from(PARTITIONS);
        world.eventually_processed(processed).await;
    }
    running.stop().await;
    world.assert_processed_once(processed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_was_moved_keeps_its_partition_alone() {
    let world = world("joint_moved").await;
    let running = world.start(&[]);
    world.eventually_processed(PARTITIONS.into()).await;
    // As if another processor had applied the next record of the partition, and were at its commit.
    let mut other = world.database.pool.begin().await.expect("a transaction");
    sqlx::query("UPDATE consumer_offsets SET next_offset = next_offset + 1 WHERE partition = 3")
        .execute(&mut *other)
        .await
        .expect("moved");
    let start = Instant::now();
    world.created_orders(PARTITIONS.into()).await;
    world.eventually_processed(i64::from(2 * PARTITIONS - 1)).await;
    assert!(start.elapsed() < SOON, "the others took {:?}", start.elapsed());
    other.commit().await.expect("committed");
    eventually("it is fenced", async || (running.metrics.fenced() == 1).then_some(())).await;
    world.created_orders(PARTITIONS.into()).await;
    world.eventually_processed(i64::from(3 * PARTITIONS - 1)).await;
    running.stop().await;
    world.assert_processed_once(i64::from(3 * PARTITIONS - 1)).await;
}

/// Notes events, all but those of the key `refused`; those of the key `slow` take long.
struct Note;

impl SingleEventHandler for Note {
    async fn handle_one(&self, event: Event<'_>, connection: &mut PgConnection) -> Result<(), HandlerError> {
        match event.aggregate_id() {
            "refused" => return Err(HandlerError::permanent("refused")),
            "slow" => tokio::time::sleep(SOON * 2).await,
            _ => {}
        }
        sqlx::query("INSERT INTO notes (key) VALUES ($1)").bind(event.aggregate_id()).execute(connection).await?;
        Ok(())
    }
}

async fn noted(world: &World) -> i64 {
    world.count("SELECT count(*) FROM notes").await
}

async fn eventually_noted(world: &World, count: i64) {
    eventually(&format!("{count} are noted"), async || (noted(world).await == count).then_some(())).await;
}

/// An event for each partition, that of the first of this key.
fn events(key: &str) -> Vec<Produced> {
    let key_of = |partition| if partition == 0 { key.to_owned() } else { format!("k{partition}") };
    (0..PARTITIONS)
        .map(|partition| Produced { partition, ..event("noted", Uuid::now_v7(), &key_of(partition), "{}") })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_takes_long_keeps_its_partition_alone() {
    let world = World::new("joint_slow", PARTITIONS).await;
    world.table("notes (key text NOT NULL)").await;
    let running = Running::start(Processor::builder(world.config(&[])).handler("noted", OneByOne(Note)));
    world.produce(events("k0"));
    eventually_noted(&world, 8).await;
    let start = Instant::now();
    world.produce(events("slow"));
    eventually_noted(&world, 15).await;
    assert!(start.elapsed() < SOON, "the others took {:?}", start.elapsed());
    eventually_noted(&world, 16).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_aside_is_so_by_its_partition_alone() {
    let world = World::new("joint_refused", PARTITIONS).await;
    world.table("notes (key text NOT NULL)").await;
    let running = Running::start(Processor::builder(world.config(&[])).handler("noted", OneByOne(Note)));
    for round in 1..=5 {
        world.produce(events("refused"));
        let broken = |partition| Produced { headers: Vec::new(), ..events("k0").swap_remove(partition) };
        world.produce([broken(1), broken(2)]);
        eventually_noted(&world, 7 * round).await;
    }
    for partition in 0..PARTITIONS {
        world.eventually_at(partition, world.end(partition)).await;
    }
    let tally = running.stop().await.tally();
    assert_eq!((tally.applied, tally.keys_parked), (35, 1));
    let states: Vec<String> = sqlx::query_scalar("SELECT convert_from(record_key, 'UTF8') FROM blocked_keys")
        .fetch_all(&world.database.pool)
        .await
        .expect("keys");
    assert_eq!(states, ["refused"]);
    let letters: Vec<i32> =
        sqlx::query_scalar("SELECT partition FROM dead_letters WHERE record_key = 'refused'::bytea")
            .fetch_all(&world.database.pool)
            .await
            .expect("letters");
    assert_eq!((letters.len(), HashSet::from_iter(letters)), (5, HashSet::from([0])));
}
