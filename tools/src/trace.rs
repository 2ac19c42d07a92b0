//! `outrider trace`: the way of one order, span by span, as Jaeger has it.

mod tree;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use shared::config::Env;
use shared::db::DatabaseConfig;
use shared::propagation::TraceContext;
use sqlx::PgConnection;

use crate::connection::connect;
use crate::jaeger::{Query, Span};
use crate::signals::StopSignals;

/// Where a Jaeger answers queries unless something else is said.
const JAEGER_URL: &str = "http://127.0.0.1:16686";

/// What `--help` shows.
pub const EXAMPLES: &str = "Examples:
  outrider trace 17
  outrider trace 17 --jaeger http://jaeger.example:16686
  outrider trace 17 --json | jq '.traces[].spans[] | {service, name, duration_us}'";

/// How long the database may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whose trace to show, and how.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Number of the order
    #[arg(value_name = "ORDER_ID")]
    order_id: i64,

    /// Where Jaeger answers queries; `OUTRIDER_JAEGER_URL`, or port 16686 of this machine, unless given
    #[arg(long, value_name = "URL")]
    jaeger: Option<String>,

    /// Print the spans as JSON
    #[arg(long)]
    json: bool,
}

/// An order's traces: one, unless it was cancelled or deleted by another request.
#[derive(Debug, Serialize)]
struct Traces {
    order_id: i64,
    traces: Vec<Trace>,
}

#[derive(Debug, Serialize)]
struct Trace {
    #[serde(rename = "trace_id")]
    id: String,
    sampled: bool,
    spans: Vec<Span>,
}

/// Finds the order's traces in the database of the environment, and prints their spans. The exit code is 1 when there are none.
pub async fn run(args: TraceArgs) -> Result<ExitCode> {
    let env = Env::load()?;
    let database = DatabaseConfig::from_env(&env, "outrider trace")?;
    let url = args.jaeger.as_deref().or_else(|| env.var("OUTRIDER_JAEGER_URL")).unwrap_or(JAEGER_URL).to_owned();
    let find = Box::pin(find(&database, &url, args.order_id));
    let traces = StopSignals::listen()?.interrupts(find).await?;
    let text = if args.json { format!("{}\n", serde_json::to_string_pretty(&traces)?) } else { shown(&traces, &url) };
    match std::io::stdout().write_all(text.as_bytes()) {
        // The reader has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        written => written?,
    }
    let found = traces.traces.iter().any(|trace| !trace.spans.is_empty());
    Ok(if found { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn find(database: &DatabaseConfig, url: &str, order_id: i64) -> Result<Traces> {
    let connected = tokio::time::timeout(PATIENCE, connect(database)).await;
    let mut connection = connected.context("the database does not answer")??;
    let contexts = contexts(&mut connection, order_id).await?;
    let query = Query::new(url)?;
    let mut traces: Vec<Trace> = Vec::new();
    for context in contexts {
        let trace_id = context.trace_id.to_string();
        if let Some(known) = traces.iter_mut().find(|trace| trace.id == trace_id) {
            known.sampled |= context.sampled;
            continue;
        }
        let spans = query.trace(&trace_id).await?;
        traces.push(Trace { id: trace_id, sampled: context.sampled, spans });
    }
    Ok(Traces { order_id, traces })
}

/// The trace contexts of an order's events that are still in the outbox, by version.
async fn contexts(connection: &mut PgConnection, order_id: i64) -> Result<Vec<TraceContext>> {
    // By primary keys and a short range of the outbox's (txid, id). No lock.
    let found: Vec<(Option<String>,)> = sqlx::query_as(
        "-- trace_contexts
        SELECT traceparent FROM order_timeline($1)",
    )
    .bind(order_id)
    .fetch_all(connection)
    .await
    .context("cannot look the order up")?;
    anyhow::ensure!(!found.is_empty(), "there is no order {order_id}");
    Ok(found.into_iter().filter_map(|(context,)| TraceContext::parse(&context?)).collect())
}

fn shown(traces: &Traces, url: &str) -> String {
    let order_id = traces.order_id;
    if traces.traces.is_empty() {
        return format!(
            "order {order_id}: no trace context is kept with its events; services keep one where OTEL_EXPORTER_OTLP_ENDPOINT is set\n"
        );
    }
    let text = |trace: &Trace| {
        let trace_id = &trace.id;
        if trace.spans.is_empty() {
            let why = if trace.sampled {
                "not yet: spans are sent every few seconds (OTEL_BSP_SCHEDULE_DELAY); or not any more"
            } else {
                "it was not sampled (OTEL_TRACES_SAMPLER), and nothing of it failed or was slow"
            };
            return format!("order {order_id}: trace {trace_id} is not at {url}: {why}\n");
        }
        format!("order {order_id}, trace {trace_id}\n{}", tree::tree(&trace.spans))
    };
    traces.traces.iter().map(text).collect::<Vec<_>>().join("\n")
}
