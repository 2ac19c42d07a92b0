//! All three services start at once, against a broker that has just begun, while orders come.

use std::time::Duration;

use anyhow::Result;
use shared::testing::{TestDatabase, eventually_within};
use tools::stack::{Kind, Launch, Service};

use super::broker::{Broker, BrokerOptions};
use super::{OUTRIDER, supply, surroundings};

const ORDERS: i64 = 3_000;

/// How long the orders may take once the last one is posted.
const PATIENCE: Duration = Duration::from_secs(40);

/// Starts a broker and the three services, posts orders as soon as any are taken, and waits until all of them are Processed. The topic's
/// partitions are being made when the first events come, which is when a broker refuses a first request and takes the second one.
///
/// # Panics
/// When some are not Processed in time: their events are lost.
pub(crate) async fn orders_of_a_fresh_start() -> Result<()> {
    let supply = supply()?;
    let database = TestDatabase::create("orders_of_a_fresh_start").await;
    let broker = Broker::start(&supply, &BrokerOptions::default()).await?;
    let surroundings = surroundings(&database.url, broker.brokers(), broker.folder())?;
    let mut services = Vec::new();
    for kind in Kind::ALL {
        services.push(Service::start(kind, kind.name(), &surroundings, &[], &supply.reaper)?);
    }
    services[0].wait_ready().await?;
    let url = services[0].api_url().unwrap_or_default();
    Launch::new("seed", OUTRIDER)
        .args(["seed", "--concurrency", "32", "--wait", "0s", "--count"])
        .arg(ORDERS.to_string())
        .args(["--url", &url])
        .log(broker.folder().join("seed.log"))
        .run(&supply.reaper)
        .await?;
    let processed = "SELECT count(*) FROM orders WHERE status = 'Processed'";
    eventually_within(PATIENCE, "all orders are Processed", async || {
        let count: i64 = sqlx::query_scalar(processed).fetch_one(&database.pool).await.ok()?;
        (count == ORDERS).then_some(())
    })
    .await;
    for service in &mut services {
        service.stop().await?;
    }
    Ok(())
}
