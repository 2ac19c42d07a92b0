//! A relay that ends, in good order or by SIGKILL, while one topic is broken.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use crate::harness::reader::now_us;
use crate::harness::scene::Scene;
use crate::harness::trouble::Trouble;
use crate::harness::writer::{Load, Writer};
use crate::pipeline::RELAY_ENV;

/// Events a second, both topics together.
const PER_SEC: u64 = 300;

/// How long a topic is broken before the relay ends, and after.
const BROKEN: Duration = Duration::from_secs(4);

/// How long the broken topic's events may take once it is well.
const RECOVERY: Duration = Duration::from_secs(15);

/// The healthy events that may be repeated: those of a second. More than that is settled by the time the relay dies.
const IN_FLIGHT_MAX: u64 = PER_SEC / 2;

async fn the_relay_ends(test: &str, killed: bool) -> Result<()> {
    let trouble = Trouble::TooFewReplicas;
    let mut scene = Scene::start(test, &trouble.broker_options()).await?;
    scene.broker.create_topic("steadys", &[1]).await?;
    scene.broker.create_topic("shakys", trouble.nodes()).await?;
    let mut relay = scene.relay("relay-1", &RELAY_ENV).await?;
    let writer = Writer::start(&scene.database.pool, Load::new(&["steady", "shaky"], PER_SEC));
    scene.flows("steadys", 200).await;
    scene.flows("shakys", 200).await;
    trouble.begin(&mut scene.broker, &scene.supply, "shakys").await?;
    sleep(BROKEN).await;
    // The trouble itself may have repeated some that were written before.
    let ending = now_us() - 1_000_000;
    if killed {
        relay.process().kill().await?;
    } else {
        assert!(relay.stop().await?.success());
    }
    let mut relay = scene.relay("relay-2", &RELAY_ENV).await?;
    let arrived = scene.reader.figures("steadys", 0..i64::MAX).events;
    // A killed relay's leases end first; then what was written meanwhile goes out, and all else at once.
    scene.flows("steadys", arrived + PER_SEC).await;
    let begun = now_us();
    sleep(BROKEN).await;
    let meanwhile = writer.written();
    let mended = now_us();
    trouble.end(&mut scene.broker, &scene.supply, "shakys").await?;
    scene.complete_within(RECOVERY, "the topic is well again", &meanwhile).await;
    let written = writer.stop().await?;
    scene.complete_within(RECOVERY, "the writer has ended", &written).await;

    let steady = scene.reader.figures("steadys", begun..mended);
    let since = scene.reader.figures("steadys", ending..i64::MAX);
    println!("killed {killed}: after it, steady {steady}; from a second before, {since}");
    assert_eq!(scene.reader.out_of_order(), 0, "events out of order");
    assert_eq!(scene.parked().await?, 0, "parked events");
    assert!(steady.events > 300 && steady.p99_ms < 1_000, "the healthy topic under the second relay: {steady}");
    let repeats_max = if killed { IN_FLIGHT_MAX } else { 0 };
    assert!(since.repeats <= repeats_max, "the healthy topic: {since}");
    relay.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_killed_while_a_topic_is_broken_repeats_only_what_was_in_flight() -> Result<()> {
    the_relay_ends("a_relay_killed", true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_stopped_while_a_topic_is_broken_repeats_nothing_of_the_others() -> Result<()> {
    the_relay_ends("a_relay_stopped", false).await
}
