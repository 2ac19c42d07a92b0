//! A broker that takes a megabyte a second, or a way to it that does, against a backlog that needs much more.

use std::time::Duration;

use anyhow::Result;

use super::broker::BrokerOptions;
use super::scene::Scene;
use super::writer::{Load, write_backlog};

const BYTES_PER_SEC: u64 = 1_048_576;
const PAYLOAD_BYTES: usize = 3_200;

/// What lets no more than that pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// The broker, which says so to its clients.
    Quota,
    /// The way to the broker: nothing tells the client.
    Way,
}

/// Publishes so many events of 3.2 kB under a limit.
///
/// # Panics
/// When more than one in a hundred is repeated, one is parked or out of order, or they take longer than `patience`.
pub(crate) async fn a_backlog_under(limit: Limit, events: u64, patience: Duration) -> Result<()> {
    let options = BrokerOptions { proxied: limit == Limit::Way, ..BrokerOptions::default() };
    let scene = Scene::start("a_backlog_that_is_slowed_down", &options).await?;
    scene.broker.create_topic("larges", &[1]).await?;
    match limit {
        Limit::Quota => scene.broker.set_quota(&scene.supply, "outrider-relay", Some(BYTES_PER_SEC)).await?,
        Limit::Way => scene.broker.proxy()?.throttle(Some(BYTES_PER_SEC)),
    }
    let load = Load { payload_bytes: PAYLOAD_BYTES, ..Load::new(&["large"], 0) };
    let written = write_backlog(&scene.database.pool, load, events).await?;
    let mut relay = scene.relay("relay", &[]).await?;
    scene.complete_within(patience, "a backlog that is slowed down", &written).await;
    let figures = scene.reader.figures("larges", 0..i64::MAX);
    println!("{limit:?}: {figures}");
    let secs = events * PAYLOAD_BYTES as u64 / BYTES_PER_SEC;
    assert!(figures.max_ms > i64::try_from(secs * 1_000 / 2)?, "nothing was slowed down: {figures}");
    assert!(figures.has_few_repeats(), "{figures}");
    assert_eq!(scene.reader.out_of_order(), 0, "events out of order");
    assert_eq!(scene.parked().await?, 0, "parked events");
    relay.stop().await?;
    Ok(())
}
