//! The api's figures, part by part.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::figure::{Bound, Figure, median};
use super::ground::Ground;
use super::{ApiArgs, asked};

mod check;
pub mod generator;
mod http;
mod open_files;
mod overload;
mod pgbench;
mod readers;
mod stage;
mod tracing;

use generator::{Load, Report};
use pgbench::Pgbench;
use stage::Stage;

/// The parts, as `--only` names them.
pub const PARTS: [&str; 7] = ["accepted", "latency", "alone", "batch", "readers", "overload", "tracing"];

/// What `--help` shows.
pub const EXAMPLES: &str = "Examples:
  cargo dev bench api                            some 10 minutes on two cores, and a release build before that
  cargo dev bench api --only accepted,overload
  cargo dev bench api --quick --json";

/// Connections of the load, and clients of `pgbench`.
const CONNECTIONS: usize = 64;

/// Connections that post batches.
const BATCH_CONNECTIONS: usize = 8;

/// Orders of one batch.
const BATCH: usize = 100;

/// What the Go system that this one replaces accepts in a second at as many connections, on this kind of machine.
const REPLACED_RATE: f64 = 1_660.0;

/// How large the parts are.
#[derive(Debug, Clone, Copy)]
struct Scale {
    rounds: usize,
    warm_up_secs: u64,
    seconds: u64,
    readers: usize,
    overload_secs: u64,
    overload_connections: usize,
    /// `API_QUEUE_MAX` of the overload: fewer orders than it has connections.
    queue_max: &'static str,
}

const FULL: Scale = Scale {
    rounds: 5,
    warm_up_secs: 3,
    seconds: 8,
    readers: 10_000,
    overload_secs: 30,
    overload_connections: 1_500,
    queue_max: "500",
};
const QUICK: Scale = Scale {
    rounds: 1,
    warm_up_secs: 1,
    seconds: 1,
    readers: 100,
    overload_secs: 2,
    overload_connections: 512,
    queue_max: "100",
};

/// Measures the parts that were asked for.
pub async fn measure(args: &ApiArgs) -> Result<Vec<Figure>> {
    let scale = if args.how.quick { QUICK } else { FULL };
    // For our own readers, and for the api, which inherits it.
    open_files::raise(scale.readers.max(scale.overload_connections) + 1_000)?;
    let mut ground = Ground::open(args.how.quick, args.how.binaries.clone()).await?;
    let mut figures = Vec::new();
    for part in PARTS.into_iter().filter(|part| asked(&args.only, part)) {
        eprintln!("{part}");
        let found = match part {
            "accepted" => accepted(&mut ground, scale).await,
            "latency" => latency(&mut ground, scale).await,
            "alone" => alone(&mut ground, scale).await,
            "batch" => batch(&mut ground, scale).await,
            "readers" => readers::measure(&mut ground, scale).await,
            "tracing" => tracing::measure(&mut ground, scale).await,
            _ => overload::measure(&mut ground, scale).await,
        };
        figures.extend(found.with_context(|| format!("the part {part} failed"))?);
    }
    Ok(figures)
}

/// Orders a second over 64 connections and by 64 clients of `pgbench`, by turns.
async fn accepted(ground: &mut Ground, scale: Scale) -> Result<Vec<Figure>> {
    let mut rival = Pgbench::open(ground, "accepted-pgbench").await?;
    let mut stage = Stage::open(ground, "accepted", scale, &[]).await?;
    let (mut rates, mut shares) = (Vec::new(), Vec::new());
    for _ in 0..scale.rounds {
        let theirs = rival.run(ground, CONNECTIONS, scale.seconds).await?.rate;
        eprintln!("  {theirs:.0} orders/s by pgbench");
        let ours = all_accepted(&stage.drive(ground, Load::closed(CONNECTIONS, scale.seconds)).await?)?.rate();
        rates.push(ours);
        shares.push(ours / theirs);
    }
    rival.close().await?;
    stage.close_whole().await?;
    let against = median(&rates) / REPLACED_RATE;
    Ok(vec![
        Figure::new("orders/s at 64 connections, against pgbench", median(&shares), "times", Bound::AtLeast(1.5)),
        Figure::new("the same against the replaced system's 1,660/s", against, "times", Bound::AtLeast(12.0)),
    ])
}

/// Latency while the api has to do less than it can.
async fn latency(ground: &mut Ground, scale: Scale) -> Result<Vec<Figure>> {
    let mut stage = Stage::open(ground, "latency", scale, &[]).await?;
    let mut p99s = Vec::new();
    for _ in 0..scale.rounds.min(3) {
        let highest = all_accepted(&stage.drive(ground, Load::closed(CONNECTIONS, scale.seconds)).await?)?.rate();
        let load = Load::open(CONNECTIONS, scale.seconds * 2, whole(highest * 0.7));
        let report = stage.drive(ground, load).await?;
        p99s.push(all_accepted(&report)?.latency.context("something was accepted")?.p99);
    }
    stage.close_whole().await?;
    Ok(vec![Figure::new("p99 at 64 connections at 70 % of the highest rate", median(&p99s), "ms", Bound::AtMost(15.0))])
}

/// One connection and one client of `pgbench`, by turns.
async fn alone(ground: &mut Ground, scale: Scale) -> Result<Vec<Figure>> {
    let mut rival = Pgbench::open(ground, "alone-pgbench").await?;
    let mut stage = Stage::open(ground, "alone", scale, &[]).await?;
    let mut shares = Vec::new();
    for _ in 0..scale.rounds {
        let theirs = rival.run(ground, 1, scale.seconds).await?.p50;
        eprintln!("  p50 {theirs:.2} ms by pgbench");
        let report = stage.drive(ground, Load::closed(1, scale.seconds)).await?;
        shares.push(all_accepted(&report)?.latency.context("something was accepted")?.p50 / theirs);
    }
    rival.close().await?;
    stage.close_whole().await?;
    let share = median(&shares);
    Ok(vec![Figure::new(
        "one connection alone, p50, against pgbench's at 1 client",
        share,
        "times",
        Bound::AtMost(1.5),
    )])
}

/// Orders a second in batches.
async fn batch(ground: &mut Ground, scale: Scale) -> Result<Vec<Figure>> {
    let mut stage = Stage::open(ground, "batch", scale, &[]).await?;
    let load = Load { batch: BATCH, ..Load::closed(BATCH_CONNECTIONS, scale.seconds) };
    let mut rates = Vec::new();
    for _ in 0..scale.rounds {
        rates.push(all_accepted(&stage.drive(ground, load).await?)?.rate());
    }
    stage.close_whole().await?;
    Ok(vec![Figure::new("POST /orders/batch of 100", median(&rates), "orders/s", Bound::AtLeast(40_000.0))])
}

/// A load that the api can bear is no reason to refuse anything.
fn all_accepted(report: &Report) -> Result<&Report> {
    ensure!(report.accepted > 0, "no order was accepted");
    ensure!(report.refused == 0, "{} orders were refused without an overload", report.refused);
    Ok(report)
}

/// Requests a second as a whole number, 1 at least.
fn whole(rate: f64) -> u64 {
    // By way of a duration: it has the checked conversion that numbers lack.
    Duration::try_from_secs_f64(rate).map_or(1, |rate| rate.as_secs().max(1))
}
