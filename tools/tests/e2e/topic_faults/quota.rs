//! A broker that takes a megabyte a second, against a backlog that needs much more.

use std::time::Duration;

use anyhow::Result;

use crate::harness::broker::BrokerOptions;
use crate::harness::scene::Scene;
use crate::harness::trouble::PARTITIONS;
use crate::harness::writer::{Load, write_backlog};

const BYTES_PER_SEC: u64 = 1_048_576;
const PAYLOAD_BYTES: usize = 3_200;

/// 19 MB: by far more than the broker takes in a record's time limit.
const EVENTS: u64 = 6_000;

/// Three times as long as the broker needs.
const PATIENCE: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_that_a_quota_slows_down_is_sent_once() -> Result<()> {
    let scene = Scene::start("a_backlog_that_a_quota", &BrokerOptions::default()).await?;
    scene.broker.create_topic("larges", PARTITIONS, 1).await?;
    scene.broker.set_quota(&scene.supply, "outrider-relay", Some(BYTES_PER_SEC)).await?;
    let load = Load { payload_bytes: PAYLOAD_BYTES, ..Load::new(&["large"], 0) };
    let written = write_backlog(&scene.database.pool, load, EVENTS).await?;
    let mut relay = scene.relay("relay", &[]).await?;
    scene.complete_within(PATIENCE, "a broker that throttles", &written).await;
    let figures = scene.reader.figures("larges", 0..i64::MAX);
    println!("quota: {figures}");
    let secs = EVENTS * PAYLOAD_BYTES as u64 / BYTES_PER_SEC;
    assert!(figures.max_ms > i64::try_from(secs * 1_000 / 2)?, "the quota has slowed nothing down: {figures}");
    assert!(figures.repeats_percent() < 1.0, "{figures}");
    assert_eq!(scene.reader.out_of_order(), 0, "events out of order");
    assert_eq!(scene.parked().await?, 0, "parked events");
    relay.stop().await?;
    Ok(())
}
