//! Traces of a pipeline that is up: what services are told, and where the first order's is.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tokio::time;

use crate::http::OrdersApi;
use crate::jaeger::Query;
use crate::output::Output;
use crate::stack::Jaeger;

/// The standard variable that says where spans go to; given, it takes the place of a Jaeger of our own.
pub const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Variables for the services.
pub type Env = Vec<(String, String)>;

/// Spans of all three services that an order's trace has at least: request, statement, two publications, process and handle.
const SPANS_MIN: usize = 6;

/// How long the spans may take on their way.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often Jaeger is asked for them.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What services are told, so that their spans are soon at `endpoint`.
#[must_use]
pub fn env(endpoint: &str) -> Env {
    let pairs = [(ENDPOINT, endpoint), ("OTEL_BSP_SCHEDULE_DELAY", "300")];
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// Waits for the first order's trace and says where it is.
pub async fn tell_where_first_is(
    api: &OrdersApi,
    order_id: i64,
    jaeger: Option<&Jaeger>,
    output: Output,
) -> Result<()> {
    let Some(trace_id) = api.trace_id(order_id).await? else {
        output.say(format_args!("order {order_id} has no trace: see OTEL_TRACES_SAMPLER"));
        return Ok(());
    };
    let Some(jaeger) = jaeger else {
        let fields = json!({ "order": order_id, "trace_id": trace_id });
        output.tell("trace", fields, format_args!("the trace of order {order_id} is {trace_id}"));
        return Ok(());
    };
    let query = Query::new(&jaeger.url())?;
    let begun = time::Instant::now();
    while query.trace(&trace_id).await?.len() < SPANS_MIN && begun.elapsed() < PATIENCE {
        time::sleep(LOOK_INTERVAL).await;
    }
    // Not a page for the browser: those are no part of Jaeger's Go module.
    let url = format!("{}/api/traces/{trace_id}", jaeger.url());
    let fields = json!({ "order": order_id, "trace_id": trace_id, "url": url });
    output.tell("trace", fields, format_args!("the trace of order {order_id}: {url}"));
    Ok(())
}
