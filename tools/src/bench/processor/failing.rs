//! What failures cost those that do not fail: one key of which every event fails for good, and one order in a hundred that fails once.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use processor::Processor;
use processor::config::ProcessorConfig;
use processor::handler::{EventHandler, Failure, FailureKind, Handled, HandlerError};
use processor::handlers::orders::{ORDER_CREATED, OrderCreated};
use processor::record::Event;
use shared::config::Env;
use shared::shutdown::Shutdown;
use sqlx::{PgConnection, PgPool};

use super::orders::{self, Poison};
use super::{LOOK_INTERVAL, STANDSTILL, Scale, passes};
use crate::bench::figure::{Bound, Figure, median};
use crate::bench::ground::Ground;
use crate::report::per_second;

/// One in so many orders fails once.
const FLAKY_EVERY: i64 = 100;

/// One in so many events is of the key that fails for good.
const POISON_EVERY: u64 = 500;

/// What fails in the processor of the benchmark.
#[derive(Debug, Args)]
pub struct FailingArgs {
    /// The order whose events are refused for good
    #[arg(long)]
    poison: Option<i64>,

    /// One in so many orders fails the first time that it is tried
    #[arg(long)]
    flaky_every: Option<i64>,
}

/// The processor of the benchmark: the settings are those of the service, only the handler fails at times. A process of its own, so
/// that it is of the same build as the rest of what is measured.
pub async fn run(args: FailingArgs) -> Result<()> {
    let config = ProcessorConfig::from_env(&Env::load()?)?;
    let handler = Failing { args, failed: Mutex::default() };
    Processor::builder(config).handler(ORDER_CREATED, handler).run(&Shutdown::new()).await?;
    Ok(())
}

struct Failing {
    args: FailingArgs,
    /// Orders that have failed once.
    failed: Mutex<HashSet<i64>>,
}

impl Failing {
    fn failure(&self, event: &Event<'_>) -> Option<Failure> {
        let order = event.aggregate_id().parse().ok()?;
        if Some(order) == self.args.poison {
            return Some(Failure::new(FailureKind::Permanent, "this order fails for good"));
        }
        let fails = order % self.args.flaky_every? == 0;
        let first = fails && self.failed.lock().unwrap_or_else(PoisonError::into_inner).insert(order);
        first.then(|| Failure::new(FailureKind::Retryable, "this order fails once"))
    }
}

impl EventHandler for Failing {
    async fn handle(&self, events: &[Event<'_>], connection: &mut PgConnection) -> Result<Handled, HandlerError> {
        let failures: Vec<(usize, Failure)> =
            events.iter().enumerate().filter_map(|(index, event)| Some((index, self.failure(event)?))).collect();
        if !failures.is_empty() {
            return Err(HandlerError::Events(failures));
        }
        OrderCreated.handle(events, connection).await
    }

    async fn on_parked(
        &self,
        event: &Event<'_>,
        reason: &str,
        connection: &mut PgConnection,
    ) -> Result<(), HandlerError> {
        OrderCreated.on_parked(event, reason, connection).await
    }
}

/// The rate with failures as a share of that without, by the same processor.
pub async fn measure(ground: &mut Ground, scale: Scale) -> Result<Vec<Figure>> {
    let (mut shares, mut rates) = (Vec::new(), Vec::new());
    for round in 0..scale.rounds {
        let sound = one(ground, &format!("sound{round}"), scale.orders, false).await?;
        let failing = one(ground, &format!("failing{round}"), scale.orders, true).await?;
        eprintln!("  {sound:.0} orders/s, with failures {failing:.0}");
        shares.push(failing / sound * 100.0);
        rates.push(failing);
    }
    Ok(vec![
        Figure::new(
            "status updates with one key failing and 1 % failing once",
            median(&rates),
            "orders/s",
            Bound::Shown,
        ),
        Figure::new("the same as a share of the rate without", median(&shares), "%", Bound::AtLeast(90.0)),
    ])
}

/// How many keys of a group are not parked, and so will be tried again.
async fn to_be_tried(pool: &PgPool, group: &str) -> Result<i64> {
    let count = "SELECT count(*) FROM blocked_keys WHERE group_id = $1 AND state <> 'parked'";
    Ok(sqlx::query_scalar(count).bind(group).fetch_one(pool).await?)
}

/// A drain until every order that can be is Processed, so those that failed once too. Returns orders a second.
async fn one(ground: &mut Ground, name: &str, count: u64, fails: bool) -> Result<f64> {
    let scene = ground.scene(name).await?;
    orders::write(&scene.pool, count).await?;
    // Not one of those that fail once.
    let poison = fails.then_some(Poison { order: FLAKY_EVERY / 2 + 1, more: count / POISON_EVERY });
    orders::produce(ground, &scene, poison).await?;
    let mut launch = scene
        .launch(ground, &format!("{name}-processor"), "outrider")
        .args(["bench", "failing-processor"])
        .env("DB_ROLE", "outrider_processor")
        .env("ADMIN_BIND", "127.0.0.1:0")
        .env("PROCESSOR_TOPICS", format!("{name}s"))
        .env("PROCESSOR_GROUP", name);
    if let Some(poison) = poison {
        launch = launch.args(["--poison", &poison.order.to_string(), "--flaky-every", &FLAKY_EVERY.to_string()]);
    }
    let mut processor = launch.spawn(&ground.supply.reaper)?;
    let records = count + poison.map_or(0, |poison| poison.more);
    let passed = passes(&scene.pool, name, records).await?;
    let (begun, wanted) = (Instant::now(), count - u64::from(fails));
    // Cheap to ask: to count the orders again and again would take a tenth of a second of a core each time.
    while to_be_tried(&scene.pool, name).await? > 0 {
        ensure!(begun.elapsed() < STANDSTILL, "orders that failed once were not tried again within {STANDSTILL:?}");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    let took = passed + begun.elapsed();
    eprintln!(
        "  all records taken after {:.1} s, all orders Processed after {:.1} s",
        passed.as_secs_f64(),
        took.as_secs_f64()
    );
    processor.kill().await?;
    orders::check(&scene.pool, wanted).await?;
    scene.close().await?;
    Ok(per_second(wanted, took))
}
