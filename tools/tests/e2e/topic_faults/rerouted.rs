//! An operator gives a type another topic while the first one takes nothing.

use std::time::Duration;

use anyhow::Result;
use shared::testing::eventually;
use tokio::time::sleep;

use crate::harness::broker::BrokerOptions;
use crate::harness::scene::Scene;
use crate::harness::writer::{Load, Writer};

async fn route(scene: &Scene, topic: &str) -> Result<()> {
    let sql = "INSERT INTO relay_routes VALUES ('shaky', $1)
        ON CONFLICT (aggregate_type) DO UPDATE SET topic = excluded.topic";
    sqlx::query(sql).bind(topic).execute(&scene.database.pool).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_wait_for_one_topic_go_in_order_to_the_one_that_their_type_is_given() -> Result<()> {
    let scene = Scene::start("events_that_wait_for_one_topic", &BrokerOptions::default()).await?;
    for topic in ["steadys", "shakys"] {
        scene.broker.create_topic(topic, &[1]).await?;
    }
    // The reader expects the events of `shaky` on `shakys`.
    route(&scene, "nowhere").await?;
    let mut relay = scene.relay("relay", &[("KAFKA_CREATE_TOPICS", "false")]).await?;
    let writer = Writer::start(&scene.database.pool, Load::new(&["steady", "shaky"], 200));
    scene.flows("steadys", 200).await;
    eventually("the type waits", async || (scene.waiting().await? == 16).then_some(())).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(scene.reader.arrived_since("shakys", 0), 0);

    route(&scene, "shakys").await?;
    let meanwhile = writer.written();
    scene.complete_within(Duration::from_secs(30), "the type has a topic that takes records", &meanwhile).await;
    let written = writer.stop().await?;
    scene.complete_within(Duration::from_secs(10), "the writer has ended", &written).await;
    assert_eq!(scene.reader.out_of_order(), 0, "events out of order");
    assert_eq!(scene.parked().await?, 0, "parked events");
    relay.stop().await?;
    Ok(())
}
