//! A broker refuses a producer's first request to a partition and takes the second one, which was on its way (KAFKA-15591). librdkafka then
//! reports the records of the first as delivered, and no broker has them.

use std::time::Duration;

use anyhow::Result;
use shared::testing::eventually_within;
use tokio::time::sleep;

use crate::harness::broker::BrokerOptions;
use crate::harness::scene::Scene;
use crate::harness::writer::{Load, Writer, together, write_backlog};

const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
const NOT_LEADER_OR_FOLLOWER: i16 = 6;
const INVALID_RECORD: i16 = 87;

/// Events a second. A partition's first batch must be small, even after an idle relay's longest wait between two reads: librdkafka sends no
/// second one while five records or more are in flight.
const PER_SEC: u64 = 120;

/// How long all events may take to arrive.
const PATIENCE: Duration = Duration::from_secs(20);

async fn scene(test: &str, settings: &[(&'static str, &'static str)]) -> Result<Scene> {
    Scene::start(test, &BrokerOptions { settings: settings.to_vec(), proxied: true, second: false }).await
}

/// Events of keys that no other round has.
fn of_round(round: u32, of_type: &str) -> Load {
    Load { key_prefix: format!("{round}-"), ..Load::new(&[of_type], PER_SEC) }
}

/// The proxy held a first request, and refused it.
async fn refused_some(scene: &Scene, before: u64) -> Result<()> {
    let proxy = scene.broker.proxy()?;
    eventually_within(PATIENCE, "first requests are refused", async || {
        let counts = proxy.counts();
        (counts.second_passed + counts.alone > before).then_some(())
    })
    .await;
    Ok(())
}

/// What was refused came in order in the end.
fn well(scene: &Scene) -> Result<()> {
    println!("{:?}", scene.broker.proxy()?.counts());
    assert_eq!(scene.reader.out_of_order(), 0, "events out of order");
    Ok(())
}

fn refused(scene: &Scene) -> Result<u64> {
    let counts = scene.broker.proxy()?.counts();
    Ok(counts.second_passed + counts.alone)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_request_that_a_new_topic_refuses_is_lost_nowhere() -> Result<()> {
    let scene = scene("a_first_request_that_a_new_topic", &[]).await?;
    scene.broker.proxy()?.refuse_first(&["new"], UNKNOWN_TOPIC_OR_PARTITION);
    let mut relay = scene.relay("relay", &[]).await?;
    let mut written = Vec::new();
    for types in [["new-a", "new-b"], ["new-c", "new-d"]] {
        let before = refused(&scene)?;
        let writer = Writer::start(&scene.database.pool, Load::new(&types, PER_SEC));
        refused_some(&scene, before).await?;
        scene.flows(&format!("{}s", types[1]), 100).await;
        written.push(writer.stop().await?);
    }
    scene.complete_within(PATIENCE, "new topics", &together(written)).await;
    well(&scene)?;
    relay.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_request_that_is_refused_after_a_restart_is_lost_nowhere() -> Result<()> {
    let scene = scene("a_first_request_after_a_restart", &[]).await?;
    scene.broker.create_topic("olds", &[1]).await?;
    for round in 0..4 {
        let mut relay = scene.relay(&format!("relay-{round}"), &[]).await?;
        // One event first, while the relay looks at the topic: what waits for that makes a large batch. It goes to one partition of four.
        let first = Load { key_prefix: format!("first-{round}-"), keys: 1, ..Load::new(&["old"], 0) };
        let first = write_backlog(&scene.database.pool, first, 1).await?;
        scene.complete_within(PATIENCE, "the first event", &first).await;
        let before = refused(&scene)?;
        scene.broker.proxy()?.refuse_first(&["old"], NOT_LEADER_OR_FOLLOWER);
        let writer = Writer::start(&scene.database.pool, of_round(round, "old"));
        refused_some(&scene, before).await?;
        sleep(Duration::from_millis(500)).await;
        let written = writer.stop().await?;
        scene.complete_within(PATIENCE, "a topic that was there before", &written).await;
        assert!(relay.stop().await?.success());
    }
    well(&scene)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_request_to_a_broker_that_forgot_the_idle_producer_is_lost_nowhere() -> Result<()> {
    let forget = [("producer.id.expiration.ms", "1000"), ("producer.id.expiration.check.interval.ms", "300")];
    let scene = scene("a_broker_that_forgot", &forget).await?;
    scene.broker.create_topic("idles", &[1]).await?;
    let mut relay = scene.relay("relay", &[]).await?;
    for round in 0..3 {
        sleep(Duration::from_millis(2_500)).await;
        let before = refused(&scene)?;
        scene.broker.proxy()?.refuse_first(&["idle"], NOT_LEADER_OR_FOLLOWER);
        let writer = Writer::start(&scene.database.pool, of_round(round, "idle"));
        refused_some(&scene, before).await?;
        sleep(Duration::from_millis(500)).await;
        let written = writer.stop().await?;
        scene.complete_within(PATIENCE, "after an idle time", &written).await;
    }
    well(&scene)?;
    relay.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_request_that_is_refused_after_records_went_one_at_a_time_is_lost_nowhere() -> Result<()> {
    let scene = scene("one_at_a_time", &[]).await?;
    scene.broker.create_topic("singles", &[1]).await?;
    let mut relay = scene.relay("relay", &[]).await?;
    let writer = Writer::start(&scene.database.pool, Load::new(&["single"], PER_SEC));
    let mut events = 0;
    for _ in 0..4 {
        scene.flows("singles", events + 150).await;
        let before = refused(&scene)?;
        scene.broker.proxy()?.refuse_first(&["single"], NOT_LEADER_OR_FOLLOWER);
        // One record of this request may be to blame: they are sent again one at a time, none of them is refused, then all others follow.
        scene.broker.proxy()?.answer("singles", INVALID_RECORD, 1);
        refused_some(&scene, before).await?;
        events = scene.reader.figures("singles", 0..i64::MAX).events;
    }
    let written = writer.stop().await?;
    scene.complete_within(PATIENCE, "batches after single records", &written).await;
    well(&scene)?;
    assert_eq!(scene.parked().await?, 0, "parked events");
    relay.stop().await?;
    Ok(())
}

/// The producer is known to the broker, which refuses the second request as well, since it follows none that it has.
#[tokio::test(flavor = "multi_thread")]
async fn first_requests_that_are_refused_again_and_again_reorder_nothing() -> Result<()> {
    let scene = scene("again_and_again", &[]).await?;
    let mut relay = scene.relay("relay", &[]).await?;
    let writer = Writer::start(&scene.database.pool, Load::new(&["often"], PER_SEC));
    scene.flows("oftens", 100).await;
    for _ in 0..20 {
        let before = refused(&scene)?;
        scene.broker.proxy()?.refuse_first(&["often"], NOT_LEADER_OR_FOLLOWER);
        refused_some(&scene, before).await?;
    }
    scene.broker.proxy()?.refuse_no_more();
    let written = writer.stop().await?;
    scene.complete_within(PATIENCE, "a broker that refuses again and again", &written).await;
    well(&scene)?;
    relay.stop().await?;
    Ok(())
}
