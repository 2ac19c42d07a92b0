//! The alerts in a real Prometheus: what an operator is told when something is wrong, and that it clears.

mod prometheus;
mod provoked;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use shared::testing::eventually;
use tokio::task::JoinHandle;
use tools::http::{NewOrder, OrdersApi};
use tools::stack::Kind;

use super::pipeline::{RELAY_ENV, Stage, orders_of, stop_all};
use prometheus::Prometheus;

/// The alert of lanes that nobody holds.
const NO_RELAY: &str = "OutriderNoRelay";

/// Between an answer and the next order.
const PACE: Duration = Duration::from_millis(5);

/// Orders that come one after the other, whatever becomes of them.
struct Load {
    posted: Arc<AtomicI64>,
    enough: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Load {
    fn start(api: OrdersApi) -> Self {
        let (posted, enough) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicBool::new(false)));
        let task = tokio::spawn({
            let (posted, enough) = (Arc::clone(&posted), Arc::clone(&enough));
            async move {
                while !enough.load(Ordering::Relaxed) {
                    let order = NewOrder { user_id: 1, product_id: 2, quantity: 3 };
                    if api.post(&order).await.is_ok() {
                        posted.fetch_add(1, Ordering::Relaxed);
                    }
                    tokio::time::sleep(PACE).await;
                }
            }
        });
        Self { posted, enough, task }
    }

    /// How many were accepted until now.
    fn posted(&self) -> i64 {
        self.posted.load(Ordering::Relaxed)
    }

    /// How many were accepted in all.
    async fn stop(self) -> Result<i64> {
        self.enough.store(true, Ordering::Relaxed);
        self.task.await?;
        Ok(self.posted.load(Ordering::Relaxed))
    }
}

/// Waits until every order is Processed, at least so many.
async fn all_processed(stage: &Stage, posted: i64) {
    eventually("all orders are Processed", async || {
        let processed = stage.count("SELECT count(*) FROM orders WHERE status = 'Processed'").await;
        (processed >= posted && stage.count("SELECT count(*) FROM orders").await == processed).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_killed_under_load_is_told_and_clears_when_it_is_back() -> Result<()> {
    let stage = Stage::new("a_relay_that_is_killed_under_load_is_told").await?;
    let mut services = stage.start_all().await?;
    let mut prometheus = Prometheus::start(&stage, &services).await?;
    let load = Load::start(orders_of(&services)?);
    eventually("Prometheus knows of the relay", async || prometheus.has("relay_lanes_held==16").await.then_some(()))
        .await;
    prometheus.becomes(NO_RELAY, None).await;

    let relay = services.iter().position(|service| service.kind() == Kind::Relay).context("a relay")?;
    services[relay].process().kill().await?;
    prometheus.becomes(NO_RELAY, Some("pending")).await;
    prometheus.becomes(NO_RELAY, Some("firing")).await;
    let at_firing = load.posted();

    services[relay] = stage.start(Kind::Relay, "relay-again", &RELAY_ENV).await?;
    prometheus.look_at(&services)?;
    prometheus.becomes(NO_RELAY, None).await;
    let posted = load.stop().await?;
    assert!(posted > at_firing && at_firing > 0, "orders were accepted all the while: {at_firing}, {posted}");
    all_processed(&stage, posted).await;
    prometheus.process.stop().await?;
    stop_all(&mut services).await
}
