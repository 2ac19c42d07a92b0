//! The processor's figures, part by part.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sqlx::PgPool;

use super::cpu::Processes;
use super::figure::{Bound, Figure, median};
use super::ground::{Ground, Scene};
use super::{ProcessorArgs, asked};
use crate::report::per_second;
use crate::stack::Kind;

pub mod failing;
mod latency;
pub mod orders;
mod redelivery;

/// The parts, as `--only` names them.
pub const PARTS: [&str; 5] = ["drain", "singly", "failing", "latency", "redelivery"];

/// What `--help` shows.
pub const EXAMPLES: &str = "Examples:
  cargo dev bench processor                      some 10 minutes on two cores, and a release build before that
  cargo dev bench processor --only drain,latency
  cargo dev bench processor --quick --json";

/// Between two looks at the positions.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How long nothing may move before the run is given up.
const STANDSTILL: Duration = Duration::from_mins(1);

/// How large the parts are.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    orders: u64,
    single_orders: u64,
    warm_ups: usize,
    rounds: usize,
    seconds: u64,
}

const FULL: Scale = Scale { orders: 500_000, single_orders: 20_000, warm_ups: 1, rounds: 3, seconds: 30 };
const QUICK: Scale = Scale { orders: 3_000, single_orders: 500, warm_ups: 0, rounds: 1, seconds: 2 };

/// Measures the parts that were asked for.
pub async fn measure(args: &ProcessorArgs) -> Result<Vec<Figure>> {
    let scale = if args.how.quick { QUICK } else { FULL };
    let mut ground = Ground::open(args.how.quick, args.how.binaries.clone()).await?;
    let mut figures = Vec::new();
    let mut rate = None;
    if asked(&args.only, "drain") || asked(&args.only, "singly") {
        eprintln!("drain");
        let drained = drain(&mut ground, scale).await.context("the part drain failed")?;
        figures.push(Figure::new(NAME, drained, "orders/s", Bound::AtLeast(20_000.0)));
        rate = Some(drained);
    }
    for part in PARTS.into_iter().skip(1).filter(|part| asked(&args.only, part)) {
        eprintln!("{part}");
        let found = match part {
            "singly" => singly(&mut ground, scale, rate.context("the drain comes first")?).await,
            "failing" => failing::measure(&mut ground, scale).await,
            "latency" => latency::measure(&ground, scale).await,
            _ => redelivery::measure(&mut ground, scale).await,
        };
        figures.extend(found.with_context(|| format!("the part {part} failed"))?);
    }
    Ok(figures)
}

const NAME: &str = "status updates, draining 500 k order events";

/// How fast a topic that is full already is worked off.
async fn drain(ground: &mut Ground, scale: Scale) -> Result<f64> {
    // Kafka compiles itself while it works.
    for round in 0..scale.warm_ups {
        drain_round(ground, &format!("warmup{round}"), scale.orders / 5, &[]).await?;
    }
    let mut rates = Vec::new();
    for round in 0..scale.rounds {
        rates.push(drain_round(ground, &format!("drain{round}"), scale.orders, &[]).await?);
    }
    Ok(median(&rates))
}

/// The same with a transaction an event: what batches are for.
async fn singly(ground: &mut Ground, scale: Scale, rate: f64) -> Result<Vec<Figure>> {
    let mut singly = Vec::new();
    for round in 0..scale.rounds {
        let settings = [("PROCESSOR_BATCH_ROWS_MAX", "1")];
        singly.push(drain_round(ground, &format!("singly{round}"), scale.single_orders, &settings).await?);
    }
    let singly = median(&singly);
    Ok(vec![
        Figure::new("status updates with one transaction an event", singly, "orders/s", Bound::Shown),
        Figure::new("batches against one transaction an event", rate / singly, "times", Bound::AtLeast(10.0)),
    ])
}

/// One drain, with a fresh database, topic and processor. Returns status updates a second.
async fn drain_round(ground: &mut Ground, name: &str, count: u64, settings: &[(&str, &str)]) -> Result<f64> {
    let mut scene = ground.scene(name).await?;
    orders::write(&scene.pool, count).await?;
    orders::produce(ground, &scene, None).await?;
    let rate = drained(ground, &mut scene, count, settings).await?;
    orders::check(&scene.pool, count).await?;
    scene.close().await?;
    Ok(rate)
}

/// Starts a processor and waits until it has passed `count` records. Returns those a second, from its first transaction on.
async fn drained(ground: &mut Ground, scene: &mut Scene, count: u64, settings: &[(&str, &str)]) -> Result<f64> {
    let topic = format!("{}s", scene.name);
    let group = scene.name.clone();
    let mut env = vec![("PROCESSOR_TOPICS", topic.as_str()), ("PROCESSOR_GROUP", group.as_str())];
    env.extend(settings);
    let processor = scene.start(Kind::Processor, ground, &env)?.process().pid();
    let processes = Processes::of(ground, [("processor", processor)])?;
    let before = processes.used()?;
    let took = passes(&scene.pool, &group, count).await?;
    let rate = per_second(count, took);
    eprintln!("  {rate:.0} events/s; CPU in us an event: {}", processes.shares(&before, count)?);
    Ok(rate)
}

/// Waits until a group's positions are at `count` records together. Returns the time since the last look at which they were at none.
async fn passes(pool: &PgPool, group: &str, count: u64) -> Result<Duration> {
    let (mut begun, mut moved, mut best) = (Instant::now(), Instant::now(), 0);
    loop {
        let passed = orders::passed(pool, group).await?;
        if passed == 0 {
            begun = Instant::now();
        }
        if passed >= count {
            return Ok(begun.elapsed());
        }
        if passed > best {
            (best, moved) = (passed, Instant::now());
        }
        if moved.elapsed() > STANDSTILL {
            bail!("{best} of {count} records were passed, then none for {STANDSTILL:?}");
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
