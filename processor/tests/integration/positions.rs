//! The position in Postgres is the truth.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use shared::testing::{eventually, kafka_brokers};

use crate::support::World;

/// Sets what Kafka has of the group, while nobody is in it.
fn commit_to_kafka(world: &World, offset: i64) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka_brokers())
        .set("group.id", &world.group)
        // Or closing it would commit the end of what it had fetched.
        .set("enable.auto.commit", "false")
        .create()
        .expect("a consumer");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&world.topic, 0, Offset::Offset(offset)).expect("an offset");
    consumer.assign(&list).expect("an assignment");
    consumer.commit(&list, CommitMode::Sync).expect("a commit");
}

/// What Kafka has of the group.
fn committed_in_kafka(world: &World) -> Option<i64> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka_brokers())
        .set("group.id", &world.group)
        .create()
        .expect("a consumer");
    let mut list = TopicPartitionList::new();
    list.add_partition(&world.topic, 0);
    let found = consumer.committed_offsets(list, Duration::from_secs(10)).expect("the group's offsets");
    match found.find_partition(&world.topic, 0)?.offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_reset_in_kafka_change_nothing() {
    let world = World::new("offsets_reset", 1).await;
    world.created_orders(20).await;
    let running = world.start(&[]);
    world.eventually_at(0, 20).await;
    running.stop().await;
    assert_eq!(committed_in_kafka(&world), Some(20), "the ordered shutdown tells Kafka");
    // Behind, and ahead of what was applied: 5 more would be skipped if Kafka were believed.
    for offset in [0, 25] {
        commit_to_kafka(&world, offset);
        world.created_orders(5).await;
        let next = world.position(0).await.unwrap() + 5;
        let running = world.start(&[]);
        world.eventually_at(0, next).await;
        running.stop().await;
    }
    world.assert_processed_once(30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_group_starts_where_kafka_says_else_at_the_beginning() {
    let world = World::new("new_group", 1).await;
    let orders = world.orders(10).await;
    world.produce(orders.iter().map(|order| order.created(1)));
    commit_to_kafka(&world, 4);
    assert_eq!(committed_in_kafka(&world), Some(4));
    let running = world.start(&[]);
    world.eventually_at(0, 10).await;
    running.stop().await;
    world.assert_processed_once(6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_the_broker_does_not_have_stops_with_a_clear_message() {
    let world = World::new("out_of_range", 1).await;
    world.created_orders(3).await;
    sqlx::query("INSERT INTO consumer_offsets (group_id, topic, partition, next_offset) VALUES ($1, $2, 0, 1000)")
        .bind(&world.group)
        .bind(&world.topic)
        .execute(&world.database.pool)
        .await
        .unwrap();
    let error = world.start(&[]).ended().await.unwrap_err().to_string();
    assert!(error.contains("Postgres says 1000, the broker has 0 to 3"), "{error}");
    // The command in the message does what it says.
    let command = error.split(": ").last().unwrap().trim_end_matches(';').to_owned();
    sqlx::query(sqlx::AssertSqlSafe(command)).execute(&world.database.pool).await.unwrap();
    let running = world.start(&[]);
    world.eventually_processed(3).await;
    running.stop().await;
    world.assert_processed_once(3).await;
}

/// A zombie: it has read its position, and somebody else moves on before it writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_processor_whose_position_was_moved_applies_nothing_of_its_batch() {
    let world = World::new("fenced", 1).await;
    world.created_orders(5).await;
    let running = world.start(&[]);
    world.eventually_at(0, 5).await;
    // The row is locked, so that the next batch waits in its compare-and-set, and moved on behind the two records of that batch.
    let mut other = world.database.pool.begin().await.unwrap();
    sqlx::query("UPDATE consumer_offsets SET next_offset = 7").execute(&mut *other).await.unwrap();
    let skipped = world.created_orders(2).await;
    eventually("the batch waits for the row", async || {
        (world.count("SELECT count(*) FROM pg_locks WHERE NOT granted").await > 0).then_some(())
    })
    .await;
    other.commit().await.unwrap();
    let later = world.created_orders(3).await;
    world.eventually_at(0, 10).await;
    running.stop().await;
    world.assert_processed_once(8).await;
    let pending: Vec<i64> = sqlx::query_scalar("SELECT id FROM orders WHERE status = 'Pending' ORDER BY id")
        .fetch_all(&world.database.pool)
        .await
        .unwrap();
    assert_eq!(pending, skipped.iter().map(|order| order.id).collect::<Vec<_>>());
    assert_eq!(later.len(), 3);
}
