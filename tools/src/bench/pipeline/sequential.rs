//! One order after the other over one connection, as the replaced system's seeder posts them: what an order costs while little is going on.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};

use super::Scale;
use crate::bench::api::generator::{Load, Report, post};
use crate::bench::cpu::Processes;
use crate::bench::figure::{Bound, Figure, median};
use crate::bench::ground::{Ground, Scene};
use crate::bench::processor::orders;
use crate::stack::Kind;

/// Orders a second where the cost of one is told.
const RATE: u64 = 200;

/// One client against an api.
struct Client {
    api: SocketAddr,
    posted: u64,
    runs: usize,
}

impl Client {
    async fn post(&mut self, ground: &Ground, scene: &Scene, load: Load) -> Result<Report> {
        let name = format!("{}-load{}", scene.name, self.runs);
        self.runs += 1;
        let (report, _) = post(ground, scene, &name, self.api, load).await?;
        ensure!(report.accepted > 0 && report.refused == 0, "not all orders were accepted: {report:?}");
        self.posted += report.accepted;
        Ok(report)
    }

    /// The median of several rounds, in orders a second.
    async fn rate(&mut self, ground: &Ground, scene: &Scene, scale: Scale) -> Result<f64> {
        let mut rates = Vec::new();
        for _ in 0..scale.rounds {
            rates.push(self.post(ground, scene, Load::closed(1, scale.seconds)).await?.rate());
        }
        Ok(median(&rates))
    }
}

/// The api alone, then with the relay and the processor at work, then alone again, since a database is slower the more is in it.
pub async fn measure(ground: &mut Ground, scale: Scale) -> Result<Vec<Figure>> {
    // The api's events are of this type, and go to the topic `orders`.
    let mut scene = ground.scene("order").await?;
    sqlx::query("SELECT outbox_make_partitions(4)").execute(&scene.pool).await?;
    let api = scene.start(Kind::Api, ground, &[("API_AUTH", "none")])?;
    api.wait_ready().await?;
    let (address, api) = (api.api_address().context("it is an api")?, api.process().pid());
    let mut client = Client { api: address, posted: 0, runs: 0 };

    client.post(ground, &scene, Load::closed(1, scale.warm_up_secs / 4 + 1)).await?;
    let before = client.rate(ground, &scene, scale).await?;
    eprintln!("  api alone: {before:.0} orders/s");

    let relay = scene.start_relay(ground, &[]).await?;
    let processor = scene.start(Kind::Processor, ground, &[])?;
    processor.wait_ready().await?;
    let processor = processor.process().pid();
    client.post(ground, &scene, Load::closed(1, scale.warm_up_secs)).await?;
    orders::all_processed(&scene.pool, client.posted).await?;
    let together = client.rate(ground, &scene, scale).await?;
    eprintln!("  with relay and processor: {together:.0} orders/s");

    let processes = Processes::of(ground, [("api", api), ("relay", relay), ("processor", processor)])?;
    let used = processes.used()?;
    let report = client.post(ground, &scene, Load::open(1, scale.seconds, RATE)).await?;
    let shares = processes.shares(&used, report.accepted)?;
    eprintln!("  at {RATE} orders/s, CPU in us an order: {shares}");
    orders::all_processed(&scene.pool, client.posted).await?;
    scene.stop().await?;
    orders::check(&scene.pool, client.posted).await?;

    let api = scene.start(Kind::Api, ground, &[("API_AUTH", "none")])?;
    api.wait_ready().await?;
    client.api = api.api_address().context("it is an api")?;
    client.post(ground, &scene, Load::closed(1, scale.warm_up_secs / 4 + 1)).await?;
    let after = client.rate(ground, &scene, scale).await?;
    eprintln!("  api alone: {after:.0} orders/s");
    scene.close().await?;
    let alone = f64::midpoint(before, after);
    Ok(vec![
        Figure::new("one order after the other, all services", together, "orders/s", Bound::Shown),
        Figure::new("the same against the api alone", together / alone, "times", Bound::AtLeast(0.75)),
        Figure::new("CPU of everything an order at 200 orders/s", shares.sum() / 1e3, "ms", Bound::AtMost(2.5)),
    ])
}
