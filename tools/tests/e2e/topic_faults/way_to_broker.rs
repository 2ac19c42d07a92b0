//! The way to the broker breaks, and the broker does not.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use crate::harness::broker::BrokerOptions;
use crate::harness::scene::Scene;
use crate::harness::writer::{Load, Writer};

/// Longer than a record may wait.
const SILENCE: Duration = Duration::from_secs(7);

const CUTS: u32 = 15;

/// How long all events may take once the way is well.
const RECOVERY: Duration = Duration::from_secs(15);

/// First the way is cut again and again; then it is silent for a while, as when a host vanishes.
#[tokio::test(flavor = "multi_thread")]
async fn a_way_to_the_broker_that_is_cut_or_silent_loses_and_reorders_nothing() -> Result<()> {
    let options = BrokerOptions { proxied: true, ..BrokerOptions::default() };
    let scene = Scene::start("a_way_to_the_broker", &options).await?;
    scene.broker.create_topic("things", &[1]).await?;
    let mut relay = scene.relay("relay", &[]).await?;
    let writer = Writer::start(&scene.database.pool, Load::new(&["thing"], 1_000));
    scene.flows("things", 500).await;
    for _ in 0..CUTS {
        scene.broker.proxy()?.cut();
        sleep(Duration::from_millis(200)).await;
    }
    scene.complete_within(RECOVERY, "the way is cut no more", &writer.written()).await;

    scene.broker.proxy()?.silence(true);
    sleep(SILENCE).await;
    let meanwhile = writer.written();
    assert!(scene.reader.missing(&meanwhile) > 1_000, "the way is silent, so events wait");
    scene.broker.proxy()?.silence(false);
    scene.complete_within(RECOVERY, "the way is silent no more", &meanwhile).await;
    let written = writer.stop().await?;
    scene.complete_within(RECOVERY, "the writer has ended", &written).await;
    assert_eq!(scene.reader.out_of_order(), 0, "events out of order");
    assert_eq!(scene.parked().await?, 0, "parked events");
    relay.stop().await?;
    Ok(())
}
