//! Lanes change hands while a type waits for its topic.

use std::time::Duration;

use anyhow::Result;
use shared::testing::eventually;

use crate::harness::broker::BrokerOptions;
use crate::harness::scene::Scene;
use crate::harness::writer::{Load, Writer};

/// How long all events may take once the topic is there.
const RECOVERY: Duration = Duration::from_secs(20);

/// How many lanes each relay holds.
async fn shares(scene: &Scene) -> Result<Vec<i64>> {
    let sql = "SELECT count(*) FROM relay_lanes WHERE owner IS NOT NULL GROUP BY owner";
    Ok(sqlx::query_scalar(sql).fetch_all(&scene.database.pool).await?)
}

/// Two relays hold the lanes, a type waits in all of them, one relay ends in this way, and the topic is made.
async fn a_relay_ends_while_a_type_waits(test: &str, killed: bool) -> Result<()> {
    let scene = Scene::start(test, &BrokerOptions::default()).await?;
    scene.broker.create_topic("steadys", &[1]).await?;
    let settings = [("KAFKA_CREATE_TOPICS", "false"), ("RELAY_LEASE_MS", "10000")];
    let mut first = scene.relay("first", &settings).await?;
    let mut second = scene.relay("second", &settings).await?;
    let writer = Writer::start(&scene.database.pool, Load::new(&["steady", "shaky"], 200));
    eventually("each relay has its lanes, and the type waits in all of them", async || {
        (scene.waiting().await? == 16 && shares(&scene).await.ok()? == [8, 8]).then_some(())
    })
    .await;
    if killed {
        first.process().kill().await?;
    } else {
        first.stop().await?;
    }
    eventually("the second relay has all lanes", async || (shares(&scene).await.ok()? == [16]).then_some(())).await;
    scene.broker.create_topic("shakys", &[1]).await?;
    let meanwhile = writer.written();
    scene.complete_within(RECOVERY, "the topic is there", &meanwhile).await;
    let written = writer.stop().await?;
    scene.complete_within(RECOVERY, "the writer has ended", &written).await;
    let of = |topic: &str| scene.reader.figures(topic, 0..i64::MAX);
    println!("steady {}; shaky {}", of("steadys"), of("shakys"));
    assert_eq!(scene.reader.out_of_order(), 0, "events out of order");
    assert_eq!(scene.parked().await?, 0, "parked events");
    assert!(killed || of("steadys").has_few_repeats(), "the healthy topic: {}", of("steadys"));
    second.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_of_a_relay_that_stops_go_on_to_wait_and_then_flow() -> Result<()> {
    a_relay_ends_while_a_type_waits("lanes_of_a_relay_that_stops", false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_of_a_relay_that_is_killed_go_on_to_wait_and_then_flow() -> Result<()> {
    a_relay_ends_while_a_type_waits("lanes_of_a_relay_that_is_killed", true).await
}
