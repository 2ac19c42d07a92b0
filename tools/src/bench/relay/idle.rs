//! What a relay costs while there is nothing to publish.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::Scale;
use crate::bench::cpu;
use crate::bench::figure::{Bound, Figure};
use crate::bench::ground::Ground;

/// How long the relay is left alone before it is watched: its polling slows down meanwhile.
const SETTLE_DOWN: Duration = Duration::from_secs(2);

/// CPU of relay and Postgres together while nothing is written. Postgres without a relay is measured first, and taken off.
pub async fn measure(ground: &mut Ground, scale: Scale) -> Result<Vec<Figure>> {
    let mut scene = ground.scene("idle").await?;
    let postgres = ground.postgres()?;
    let watch = Duration::from_secs(scale.seconds / 2);
    let alone = share(watch, || cpu::of_tree(postgres)).await?;
    let relay = scene.start_relay(ground, &[]).await?;
    tokio::time::sleep(SETTLE_DOWN).await;
    let of_relay = share(watch, || cpu::of_tree(relay)).await?;
    let both = share(watch, || Ok(cpu::of_tree(relay)? + cpu::of_tree(postgres)?)).await?;
    scene.close().await?;
    eprintln!("  relay {of_relay:.2} %, Postgres alone {alone:.2} %, both {both:.2} % of a core");
    Ok(vec![Figure::new("idle CPU, relay and Postgres together", both, "% core", Bound::AtMost(2.0))])
}

async fn share(watch: Duration, used: impl Fn() -> Result<Duration>) -> Result<f64> {
    let (before, begun) = (used()?, Instant::now());
    tokio::time::sleep(watch).await;
    Ok((used()?.saturating_sub(before)).as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0)
}
