//! How long an order is Pending, through api, relay and processor.

use anyhow::{Context, Result, ensure};

use super::{Scale, orders};
use crate::bench::figure::{Bound, Figure};
use crate::bench::ground::Ground;
use crate::stack::Kind;

/// Orders a second.
const RATE: u64 = 1_000;

/// Seconds that are not counted.
const WARM_UP_SECS: u64 = 5;

/// Posts orders when they are due, whatever the api does. The latency is from commit to commit, by Postgres's own clock: nobody
/// asks for the orders meanwhile, so that the looking costs nothing. The commit that accepts an order is before its 201.
pub async fn measure(ground: &Ground, scale: Scale) -> Result<Vec<Figure>> {
    // The api's events are of this type, and go to the topic `orders`.
    let mut scene = ground.scene("order").await?;
    sqlx::query("SELECT outbox_make_partitions(4)").execute(&scene.pool).await?;
    scene.start_relay(ground, &[]).await?;
    scene.start(Kind::Processor, ground, &[]).context("processor")?.wait_ready().await?;
    let api = scene.start(Kind::Api, ground, &[])?;
    api.wait_ready().await?;
    let url = api.api_url().context("the api has a URL")?;

    let warm_up = RATE * WARM_UP_SECS.min(scale.seconds);
    let count = RATE * scale.seconds + warm_up;
    let args = [
        "seed",
        "--wait",
        "0",
        "--concurrency",
        "64",
        "--url",
        &url,
        "--rate",
        &RATE.to_string(),
        "--count",
        &count.to_string(),
    ]
    .map(str::to_owned);
    let mut seed = scene.launch(ground, "order-seed", "outrider").args(args).spawn(&ground.supply.reaper)?;
    let status = seed.wait().await?;
    ensure!(status.success(), "the orders were not all accepted: {}", seed.log_tail());
    orders::all_processed(&scene.pool, count).await?;
    scene.stop().await?;
    orders::check(&scene.pool, count).await?;

    let (p50, p99, most): (f64, f64, f64) = sqlx::query_as(
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY ms), percentile_cont(0.99) WITHIN GROUP (ORDER BY ms), max(ms)
        FROM (SELECT extract(epoch FROM pg_xact_commit_timestamp(processed.xmin) - pg_xact_commit_timestamp(accepted.xmin))::float8 * 1000
                AS ms
            FROM order_transitions accepted JOIN order_transitions processed USING (order_id)
            WHERE accepted.version = 1 AND processed.version = 2 ORDER BY order_id OFFSET $1) latencies",
    )
    .bind(i64::try_from(warm_up)?)
    .fetch_one(&scene.pool)
    .await?;
    eprintln!("  p50 {p50:.1} ms, p99 {p99:.1} ms, at most {most:.1} ms");
    scene.close().await?;
    Ok(vec![
        Figure::new("accepted -> Processed at 1,000 orders/s, p50", p50, "ms", Bound::AtMost(25.0)),
        Figure::new("accepted -> Processed at 1,000 orders/s, p99", p99, "ms", Bound::AtMost(100.0)),
    ])
}
