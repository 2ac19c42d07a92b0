//! A gentle load, so that there is something to see.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::http::OrdersApi;
use crate::output::Output;
use crate::workload::{Ranges, Workload};

/// Between two orders.
const PACE: Duration = Duration::from_millis(200);

/// Between two lines on how it goes.
const REPORT_INTERVAL: Duration = Duration::from_secs(30);

/// Posts orders until it is dropped. An order that is not accepted is counted, and no reason to stop.
pub async fn run(api: &OrdersApi, output: Output) -> Result<()> {
    let ranges = Ranges { users: 1..=1_000, products: 1..=100, quantities: 1..=10 };
    let mut workload = Workload::new(ranges, u64::from(rand::random::<u32>()));
    let mut due = interval(PACE);
    due.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (mut accepted, mut refused) = (0_u64, 0_u64);
    let mut told = Instant::now();
    loop {
        due.tick().await;
        let Some(order) = workload.next() else { return Ok(()) };
        match api.post(&order).await {
            Ok(_) => accepted += 1,
            Err(_) => refused += 1,
        }
        if told.elapsed() >= REPORT_INTERVAL {
            told = Instant::now();
            let line = format!("demo           {accepted} orders accepted, {refused} not");
            output.tell("demo", json!({ "accepted": accepted, "refused": refused }), line);
        }
    }
}
