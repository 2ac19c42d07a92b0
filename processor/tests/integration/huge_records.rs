//! Records that are longer than a client of Kafka takes unless it is told to: whatever a topic allows must be read, or its partition would
//! stand still.

use std::time::Duration;

use processor::handlers::orders::ORDER_CREATED;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use uuid::Uuid;

use crate::support::World;

const PATIENCE: Duration = Duration::from_mins(1);

/// More than the 100,000,000 that librdkafka takes by default.
const LENGTH: usize = 120_000_000;

/// Has the topic take records of up to 200 MB.
async fn allow(world: &World) {
    let admin: AdminClient<DefaultClientContext> = world.consumer_config().create().expect("an admin client");
    let config = AlterConfig::new(ResourceSpecifier::Topic(&world.topic)).set("max.message.bytes", "200000000");
    admin.alter_configs([&config], &AdminOptions::new()).await.expect("an answer").remove(0).expect("altered");
}

/// Produces one of [`LENGTH`] bytes into partition 0, compressed like this.
fn produce(world: &World, event_type: &str, compression: &str) {
    let mut client = world.consumer_config();
    client.remove("group.id");
    client.set("message.max.bytes", "200000000").set("compression.type", compression);
    let producer: BaseProducer = client.create().expect("a producer");
    let id = Uuid::now_v7().to_string();
    let header = |key, value| Header { key, value: Some(value) };
    let headers = OwnedHeaders::new()
        .insert(header("id", id.as_str()))
        .insert(header("ce_type", event_type))
        .insert(header("aggregate_version", "1"));
    let payload = vec![b' '; LENGTH];
    let record: BaseRecord<'_, [u8], [u8]> =
        BaseRecord::to(&world.topic).partition(0).key(id.as_bytes()).payload(&payload[..]).headers(headers);
    producer.send(record).map_err(|(error, _)| error).expect("room");
    producer.flush(PATIENCE).expect("the broker takes it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_120_mb_costs_only_itself_however_it_is_compressed() {
    let world = World::new("huge", 2).await;
    allow(&world).await;
    let running = world.start(&[]);
    let mut orders = 0;
    for (event_type, compression) in
        [("of no type", "none"), (ORDER_CREATED, "none"), ("of no type", "lz4"), (ORDER_CREATED, "zstd")]
    {
        produce(&world, event_type, compression);
        world.created_orders(4).await;
        orders += 4;
        world.eventually_processed(orders).await;
        world.eventually_at(0, world.end(0)).await;
    }
    running.stop().await;
    let letters = "SELECT count(*) FROM dead_letters WHERE octet_length(payload) = 120000000 AND reason IS NOT NULL";
    assert_eq!(world.count(letters).await, 2);
}
