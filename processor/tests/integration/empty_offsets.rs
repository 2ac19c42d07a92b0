//! Offsets at the end of a partition that hold no record: what transactions abort, and the markers that end transactions.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use shared::testing::{eventually, unique};

use crate::support::World;

const PATIENCE: Duration = Duration::from_secs(30);

/// Produces `count` records in one transaction, and aborts or commits that.
fn transaction(world: &World, count: usize, is_committed: bool) {
    let mut client = world.consumer_config();
    client.remove("group.id");
    let producer: BaseProducer =
        client.set("transactional.id", unique("transaction")).create().expect("a transactional producer");
    producer.init_transactions(PATIENCE).expect("known to the broker");
    producer.begin_transaction().expect("begun");
    for _ in 0..count {
        let record: BaseRecord<'_, str, str> = BaseRecord::to(&world.topic).partition(0).payload("of no type");
        producer.send(record).map_err(|(error, _)| error).expect("room");
    }
    producer.flush(PATIENCE).expect("the broker takes all");
    if is_committed {
        producer.commit_transaction(PATIENCE).expect("committed");
    } else {
        producer.abort_transaction(PATIENCE).expect("aborted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_without_records_are_passed_and_missed_by_nobody_when_they_are_deleted() {
    let world = World::new("aborted", 1).await;
    world.created_orders(3).await;
    let running = world.start(&[]);
    world.eventually_at(0, 3).await;
    transaction(&world, 500, false);
    eventually("500 aborted records and a marker", async || (world.end(0) == 504).then_some(())).await;
    world.eventually_at(0, 504).await;
    eventually("nothing is behind", async || (running.metrics.lag_of(&world.topic, 0) == Some(0)).then_some(())).await;
    let anchor = world.count("SELECT anchor_offset FROM consumer_offsets").await;
    assert_eq!(anchor, 2, "the last record that was applied is still known");

    // What comes next moves the position as ever; a marker behind it is passed as well.
    world.created_orders(2).await;
    world.eventually_at(0, 506).await;
    transaction(&world, 1, true);
    world.eventually_at(0, 508).await;
    running.stop().await;

    // Retention takes all of it, while the processor is away.
    let admin: AdminClient<DefaultClientContext> = world.consumer_config().create().expect("an admin client");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&world.topic, 0, Offset::Offset(508)).expect("an offset");
    admin.delete_records(&list, &AdminOptions::new()).await.expect("deleted");
    let running = world.start(&[]);
    world.created_orders(1).await;
    world.eventually_at(0, 509).await;
    running.stop().await;
    world.assert_processed_once(6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_is_open_holds_the_position_and_nothing_is_passed_before_it_ends() {
    let world = World::new("open_transaction", 1).await;
    let running = world.start(&[]);
    world.created_orders(1).await;
    world.eventually_at(0, 1).await;
    let mut client = world.consumer_config();
    client.remove("group.id");
    let producer: BaseProducer =
        client.set("transactional.id", unique("transaction")).create().expect("a transactional producer");
    producer.init_transactions(PATIENCE).expect("known to the broker");
    producer.begin_transaction().expect("begun");
    let orders = world.orders(1).await;
    let created = orders[0].created(1);
    let mut headers = rdkafka::message::OwnedHeaders::new();
    for (key, value) in &created.headers {
        headers = headers.insert(rdkafka::message::Header { key, value: Some(value) });
    }
    let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&world.topic).partition(0).headers(headers);
    record.key = created.key.as_deref();
    record.payload = created.payload.as_deref();
    producer.send(record).map_err(|(error, _)| error).expect("room");
    producer.flush(PATIENCE).expect("the broker takes it");
    // Behind it, of another producer: hidden by it for readers of what is committed.
    world.created_orders(1).await;
    eventually("it is known", async || (running.metrics.lag_of(&world.topic, 0) == Some(2)).then_some(())).await;
    assert_eq!(world.position(0).await, Some(1));
    producer.commit_transaction(PATIENCE).expect("committed");
    world.eventually_at(0, 4).await;
    running.stop().await;
    world.assert_processed_once(3).await;
}
