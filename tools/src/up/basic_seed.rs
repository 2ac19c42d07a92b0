//! The basic seed: ten orders, each followed on its way.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;
use tokio::time;

use crate::http::{NewOrder, OrdersApi};
use crate::output::Output;

/// User, product and quantity of each order; the same in every run.
const ORDERS: [(u64, u64, u64); 10] = [
    (1, 101, 2),
    (2, 102, 1),
    (3, 103, 5),
    (1, 104, 3),
    (4, 101, 1),
    (5, 105, 10),
    (2, 106, 4),
    (6, 102, 2),
    (3, 107, 1),
    (7, 108, 6),
];

/// How often an order is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// How long an order may take on a machine that has just started everything.
const PATIENCE: Duration = Duration::from_secs(30);

/// Posts the orders one after the other and tells of each when it is Processed. Returns the number of the first one.
pub async fn send(api: &OrdersApi, output: Output) -> Result<i64> {
    let mut first = None;
    let mut slowest = Duration::ZERO;
    let mut total = Duration::ZERO;
    for (user_id, product_id, quantity) in ORDERS {
        let begun = Instant::now();
        let posted =
            api.post(&NewOrder { user_id, product_id, quantity }).await.context("an order was not accepted")?;
        if !posted.is_pending() {
            bail!("order {} was accepted as {}, not as Pending", posted.id, posted.status);
        }
        first.get_or_insert(posted.id);
        let status = follow(api, posted.id).await?;
        let taken = begun.elapsed();
        let line = format!(
            "order {:<6} user {user_id:<3} product {product_id:<4} quantity {quantity:<3} {} -> {status} {:>8} ms",
            posted.id,
            posted.status,
            taken.as_millis()
        );
        output.tell("order", json!({ "id": posted.id, "status": status, "seconds": taken.as_secs_f64() }), line);
        slowest = slowest.max(taken);
        total += taken;
    }
    let count = u32::try_from(ORDERS.len())?;
    let line = format!(
        "{count} of {count} orders Processed, {} ms on average, {} ms at most",
        (total / count).as_millis(),
        slowest.as_millis()
    );
    output.tell("orders_processed", json!({ "count": count, "slowest_seconds": slowest.as_secs_f64() }), line);
    first.context("there are orders")
}

/// Looks at an order until it is Pending no more.
async fn follow(api: &OrdersApi, id: i64) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let order = api.read(id).await.with_context(|| format!("order {id} can't be read"))?;
        if order.is_processed() {
            return Ok(order.status);
        }
        if !order.is_pending() {
            bail!("order {id} became {}", order.status);
        }
        if Instant::now() >= deadline {
            bail!("order {id} is still Pending after {} s", PATIENCE.as_secs());
        }
        time::sleep(LOOK_INTERVAL).await;
    }
}
