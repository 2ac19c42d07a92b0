//! The relay's figures, part by part.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::cpu::Processes;
use super::figure::{Bound, Figure, median};
use super::ground::{Ground, Scene};
use super::topic::Topic;
use super::{RelayArgs, asked, cpu, load, producer_performance};

mod classic;
mod held;
mod idle;
mod latency;
mod tracing;
mod writers;

/// The parts, as `--only` names them.
pub const PARTS: [&str; 8] = ["drain", "held", "backlog", "writers", "latency", "idle", "classic", "tracing"];

/// What `--help` shows.
pub const EXAMPLES: &str = "Examples:
  cargo dev bench relay                          some 15 minutes on two cores, and a release build before that
  cargo dev bench relay --only drain,latency
  cargo dev bench relay --quick --json";

/// How large the parts are.
#[derive(Debug, Clone, Copy)]
struct Scale {
    drain_rows: u64,
    held_rows: u64,
    deep_rows: u64,
    shallow_rows: u64,
    warm_ups: usize,
    rounds: usize,
    settles: u32,
    seconds: u64,
}

const FULL: Scale = Scale {
    drain_rows: 1_000_000,
    held_rows: 500_000,
    deep_rows: 10_000_000,
    shallow_rows: 100_000,
    warm_ups: 3,
    rounds: 5,
    settles: 7_200,
    seconds: 20,
};
const QUICK: Scale = Scale {
    drain_rows: 20_000,
    held_rows: 5_000,
    deep_rows: 20_000,
    shallow_rows: 2_000,
    warm_ups: 0,
    rounds: 1,
    settles: 50,
    seconds: 2,
};

/// Measures the parts that were asked for.
pub async fn measure(args: &RelayArgs) -> Result<Vec<Figure>> {
    let scale = if args.how.quick { QUICK } else { FULL };
    let mut ground = Ground::open(args.how.quick, args.how.binaries.clone()).await?;
    let mut figures = Vec::new();
    for part in PARTS.into_iter().filter(|part| asked(&args.only, part)) {
        eprintln!("{part}");
        let found = match part {
            "drain" => drain(&mut ground, scale).await,
            "held" => held::measure(&mut ground, scale).await,
            "backlog" => depth(&mut ground, scale).await,
            "writers" => writers::measure(&ground, scale).await,
            "latency" => latency::measure(&ground, scale).await,
            "idle" => idle::measure(&mut ground, scale).await,
            "tracing" => tracing::measure(&mut ground, scale).await,
            _ => classic::measure(&ground, scale).await,
        };
        figures.extend(found.with_context(|| format!("the part {part} failed"))?);
    }
    Ok(figures)
}

/// What a relay is told, and what it drains.
#[derive(Debug, Clone, Copy)]
struct Load<'a> {
    env: &'a [(&'a str, &'a str)],
    /// The traces of every so many keys are recorded.
    sampled_every: i64,
}

impl Default for Load<'_> {
    fn default() -> Self {
        Self { env: &[], sampled_every: 1 }
    }
}

/// How fast a backlog goes out, against what the broker takes at most in the same run.
async fn drain(ground: &mut Ground, scale: Scale) -> Result<Vec<Figure>> {
    let (mut rates, mut most) = (Vec::new(), Vec::new());
    // Kafka compiles itself while it works: the first million records cost it three times as much as the third.
    for round in 0..scale.warm_ups {
        drain_round(ground, &format!("warmup{round}"), scale, Load::default()).await?;
    }
    for round in 0..scale.rounds.min(3) {
        let rate = drain_round(ground, &format!("drain{round}"), scale, Load::default()).await?;
        let name = format!("load{round}s");
        Topic::create(&ground.brokers, &name).await?;
        let performance = producer_performance::run(ground, &name, scale.drain_rows * 2).await?;
        eprintln!("  {performance:.0} records/s by ProducerPerformance");
        rates.push(rate);
        most.push(performance);
    }
    let (rate, most) = (median(&rates), median(&most));
    Ok(vec![
        Figure::new("drain of a backlog of 1 M", rate, "events/s", Bound::AtLeast(250_000.0)),
        Figure::new("ProducerPerformance in the same run", most, "records/s", Bound::Shown),
        Figure::new("drain as a share of ProducerPerformance", rate / most * 100.0, "%", Bound::AtLeast(50.0)),
    ])
}

/// One drain, with a fresh relay and database; tells where the CPU time went, and looks for what is lost, repeated or in the wrong
/// place.
async fn drain_round(ground: &mut Ground, name: &str, scale: Scale, load: Load<'_>) -> Result<f64> {
    let mut scene = ground.scene(name).await?;
    let relay = scene.start_relay(ground, load.env).await?;
    let processes = Processes::of(ground, [("relay", relay)])?;
    load::sampled_backlog(&scene.pool, &scene.name, scale.drain_rows, load.sampled_every).await?;
    let (before, begun) = (processes.used()?, Instant::now());
    scene.topic.reaches(scale.drain_rows).await?;
    let rate = per_second(scale.drain_rows, begun.elapsed());
    let shares = processes.shares(&before, scale.drain_rows)?;
    let order = scene.topic.check(scale.drain_rows)?;
    eprintln!("  {rate:.0} events/s; CPU in us an event: {shares}; {order}");
    ensure!(order.is_perfect(), "the events did not arrive as they should have");
    scene.close().await?;
    Ok(rate)
}

/// Whether a deep backlog goes out as fast as a shallow one.
async fn depth(ground: &mut Ground, scale: Scale) -> Result<Vec<Figure>> {
    let mut scene = ground.scene("depth").await?;
    let mut shallow = Vec::new();
    for _ in 0..scale.rounds {
        shallow.push(drain_settled(ground, &mut scene, scale.shallow_rows).await?.0);
    }
    let (deep, peak) = drain_settled(ground, &mut scene, scale.deep_rows).await?;
    let shallow = median(&shallow);
    scene.close().await?;
    Ok(vec![
        Figure::new("drain of a backlog of 100 k", shallow, "events/s", Bound::Shown),
        Figure::new("drain of a backlog of 10 M", deep, "events/s", Bound::Shown),
        Figure::new("rate an event of 10 M against 100 k", deep / shallow * 100.0, "%", Bound::AtLeast(90.0)),
        Figure::new("most memory of the relay meanwhile", peak, "MB", Bound::Shown),
    ])
}

/// Commits a backlog, has Postgres write it to disk as it would have done by the time a backlog of days is met, and only then starts
/// a relay: else the writing of gigabytes is measured with the drain. Returns events a second from the first one on, and the relay's
/// peak of memory in MB.
async fn drain_settled(ground: &mut Ground, scene: &mut Scene, count: u64) -> Result<(f64, f64)> {
    let there = scene.topic.len()?;
    load::backlog(&scene.pool, &scene.name, count).await?;
    sqlx::query("CHECKPOINT").execute(&scene.pool).await?;
    let topic = Topic::create(&ground.brokers, &format!("{}s", scene.name)).await?;
    let begun = tokio::spawn(async move {
        topic.reaches(there + 1).await?;
        anyhow::Ok((topic.len()?, Instant::now()))
    });
    let relay = scene.start_relay(ground, &[]).await?;
    let processes = Processes::of(ground, [("relay", relay)])?;
    let before = processes.used()?;
    scene.topic.reaches(there + count).await?;
    let (first, begun) = begun.await??;
    let left = (there + count - first).max(1);
    let rate = per_second(left, begun.elapsed());
    eprintln!("  {rate:.0} events/s from {count}; CPU in us an event: {}", processes.shares(&before, left)?);
    let peak = per_second(cpu::peak_memory_bytes(relay)?, Duration::from_secs(1)) / 1e6;
    scene.stop().await?;
    Ok((rate, peak))
}

/// Commits a backlog and waits until all of it is in the topic. Returns events a second.
async fn drain_once(scene: &Scene, count: u64) -> Result<f64> {
    let there = scene.topic.len()?;
    load::backlog(&scene.pool, &scene.name, count).await?;
    let begun = Instant::now();
    scene.topic.reaches(there + count).await?;
    Ok(per_second(count, begun.elapsed()))
}

fn per_second(count: u64, time: Duration) -> f64 {
    crate::report::per_second(count, time)
}
