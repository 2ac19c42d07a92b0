//! An operator has a parked key tried again while its topic takes nothing.

use std::time::Duration;

use anyhow::Result;
use shared::testing::eventually;
use tokio::time::sleep;

use crate::command_line::{operator, well};
use crate::harness::reader::now_us;
use crate::harness::scene::Scene;
use crate::harness::trouble::Trouble;
use crate::harness::writer::{Load, Writer, write_backlog};

/// How late another topic's event may be. The relay needs half a second to call the topic silent, and half a second for a new producer.
const LATE_MAX_MS: i64 = 2_000;

/// A retry waits until nothing else is in flight, so all others wait for it. That must not take as long as a record may wait, five seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_at_a_silent_topic_delays_others_no_longer_than_it_takes_to_find_out() -> Result<()> {
    let trouble = Trouble::FrozenLeader;
    let mut scene = Scene::start("a_retry_at_a_silent_topic", &trouble.broker_options()).await?;
    scene.broker.create_topic("steadys", &[1]).await?;
    scene.broker.create_topic("shakys", trouble.nodes()).await?;
    scene.broker.configure_topic("shakys", &[("max.message.bytes", "1000")]).await?;
    let mut relay = scene.relay("relay", &[]).await?;
    let load = Load { payload_bytes: 2_000, keys: 1, ..Load::new(&["shaky"], 1) };
    let written = write_backlog(&scene.database.pool, load, 3).await?;
    eventually("the key is parked", async || (scene.parked().await.ok()? == 3).then_some(())).await;
    scene.broker.configure_topic("shakys", &[]).await?;
    // A relay that knows the topic as it is now.
    relay.stop().await?;
    let mut relay = scene.relay("relay", &[]).await?;
    let writer = Writer::start(&scene.database.pool, Load::new(&["steady"], 200));
    scene.flows("steadys", 200).await;

    trouble.begin(&mut scene.broker, &scene.supply, "shakys").await?;
    let begun = now_us();
    well(operator("parked retry --key shaky/k0 --yes", &scene.database.url).args(["--why", "the topic takes it now"]))?;
    eventually("the topic is found to be in trouble", async || {
        let waiting: i64 = sqlx::query_scalar("SELECT count(*) FROM relay_waiting WHERE aggregate_type = 'shaky'")
            .fetch_one(&scene.database.pool)
            .await
            .ok()?;
        (waiting == 16).then_some(())
    })
    .await;
    sleep(Duration::from_secs(1)).await;
    let ended = now_us();
    trouble.end(&mut scene.broker, &scene.supply, "shakys").await?;
    scene.complete_within(Duration::from_secs(30), "the topic is well again", &written).await;
    eventually("nothing is parked any more", async || (scene.parked().await.ok()? == 0).then_some(())).await;

    let all = writer.stop().await?;
    scene.complete_within(Duration::from_secs(10), "the writer has ended", &all).await;
    let steady = scene.reader.figures("steadys", begun..ended);
    println!("meanwhile: {steady}");
    assert!(steady.events > 100 && steady.max_ms < LATE_MAX_MS, "the healthy topic: {steady}");
    assert_eq!(scene.reader.out_of_order(), 0, "events out of order");
    relay.stop().await?;
    Ok(())
}
