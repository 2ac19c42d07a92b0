//! Many aggregate types that no topic is there for yet, all at once.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use crate::harness::broker::BrokerOptions;
use crate::harness::reader::now_us;
use crate::harness::scene::Scene;
use crate::harness::writer::{Load, Writer, together, write_backlog};

const TYPES: u64 = 300;

/// How long 300 topics may take to be made and filled.
const PATIENCE: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_new_aggregate_types_delay_no_order() -> Result<()> {
    let scene = Scene::start("three_hundred_new_types", &BrokerOptions::default()).await?;
    scene.broker.create_topic("orders", &[1]).await?;
    // One partition each: it is the relay's own work that is looked at here.
    let mut relay = scene.relay("relay", &[("KAFKA_TOPIC_PARTITIONS", "1")]).await?;
    let writer = Writer::start(&scene.database.pool, Load::new(&["order"], 150));
    scene.flows("orders", 200).await;

    let begun = now_us();
    let names: Vec<String> = (0..TYPES).map(|number| format!("new-{number:03}")).collect();
    let types: Vec<&str> = names.iter().map(String::as_str).collect();
    let news = write_backlog(&scene.database.pool, Load { keys: 3, ..Load::new(&types, 0) }, 2 * TYPES).await?;
    sleep(Duration::from_secs(3)).await;
    scene.complete_within(PATIENCE, "300 new topics", &news).await;
    let ended = now_us();
    let written = together([news, writer.stop().await?]);
    scene.complete_within(PATIENCE, "all topics", &written).await;

    let orders = scene.reader.figures("orders", begun..ended);
    println!("300 new types in {} ms: orders {orders}", (ended - begun) / 1_000);
    assert_eq!(scene.reader.out_of_order(), 0, "events out of order");
    assert_eq!(scene.parked().await?, 0, "parked events");
    assert!(orders.p99_ms < 1_000, "orders meanwhile: {orders}");
    assert!(orders.has_few_repeats(), "orders meanwhile: {orders}");
    relay.stop().await?;
    Ok(())
}
