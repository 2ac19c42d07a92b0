//! `outrider bench`: figures of this build on this machine, on a real Postgres and a real Kafka, with the services as processes.
//!
//! A benchmark is no test: it says what it measured and whether that is within its bound, and fails only when something does not
//! work. `tools/src/bench/README.md` keeps the results with their machine and commit.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::console::say;
use crate::signals::StopSignals;

mod api;
mod cpu;
mod figure;
mod ground;
mod load;
mod pipeline;
mod processor;
mod producer_performance;
mod relay;
mod sink;
mod topic;
mod turns;

pub use figure::{Bound, Figure};

/// What to measure.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// How many orders the api accepts, how fast, and what it does when there are too many
    #[command(after_help = api::EXAMPLES)]
    Api(ApiArgs),
    /// How fast and how calmly the relay publishes
    #[command(after_help = relay::EXAMPLES)]
    Relay(RelayArgs),
    /// How fast the processor changes statuses, and what failures and repeats cost it
    #[command(after_help = processor::EXAMPLES)]
    Processor(ProcessorArgs),
    /// What an order costs on its whole way through all services
    #[command(after_help = pipeline::EXAMPLES)]
    Pipeline(PipelineArgs),
    /// The processor whose handler fails, for the benchmark
    #[command(hide = true)]
    FailingProcessor(processor::failing::FailingArgs),
    /// Posts orders, for the benchmark
    #[command(hide = true)]
    PostOrders(api::generator::GeneratorArgs),
}

/// What all benchmarks can be asked for.
#[derive(Debug, Clone, Args)]
struct How {
    /// All of it, but small and with the build at hand: shows that it works, and no figures to speak of
    #[arg(long)]
    quick: bool,

    /// Print the figures as a JSON list
    #[arg(long)]
    json: bool,

    /// Measure the executables in this folder, instead of building this checkout
    #[arg(long, value_name = "FOLDER")]
    binaries: Option<PathBuf>,
}

/// Whether a part is to be measured: all are, unless some are named.
fn asked(only: &[String], part: &str) -> bool {
    only.is_empty() || only.iter().any(|name| name == part)
}

/// How to measure the api.
#[derive(Debug, Args)]
pub struct ApiArgs {
    #[command(flatten)]
    how: How,

    /// Only the parts with these names: accepted, latency, alone, batch, readers, overload, tracing
    #[arg(long, value_name = "PART", value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(api::PARTS))]
    only: Vec<String>,
}

/// How to measure the relay.
#[derive(Debug, Args)]
pub struct RelayArgs {
    #[command(flatten)]
    how: How,

    /// Only the parts with these names: drain, held, backlog, writers, latency, idle, classic, tracing
    #[arg(long, value_name = "PART", value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(relay::PARTS))]
    only: Vec<String>,
}

/// How to measure the processor.
#[derive(Debug, Args)]
pub struct ProcessorArgs {
    #[command(flatten)]
    how: How,

    /// Only the parts with these names: drain, singly, failing, latency, redelivery
    #[arg(long, value_name = "PART", value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(processor::PARTS))]
    only: Vec<String>,
}

/// How to measure the pipeline.
#[derive(Debug, Args)]
pub struct PipelineArgs {
    #[command(flatten)]
    how: How,

    /// Only the parts with these names: sequential
    #[arg(long, value_name = "PART", value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(pipeline::PARTS))]
    only: Vec<String>,
}

/// Measures, and prints the figures.
pub async fn run(args: BenchArgs) -> Result<ExitCode> {
    let mut signals = StopSignals::listen()?;
    let (figures, json) = match args.what {
        What::Api(args) => (signals.interrupts(Box::pin(api::measure(&args))).await?, args.how.json),
        What::Relay(args) => (signals.interrupts(Box::pin(relay::measure(&args))).await?, args.how.json),
        What::Processor(args) => (signals.interrupts(Box::pin(processor::measure(&args))).await?, args.how.json),
        What::Pipeline(args) => (signals.interrupts(Box::pin(pipeline::measure(&args))).await?, args.how.json),
        What::FailingProcessor(args) => {
            signals.interrupts(Box::pin(processor::failing::run(args))).await?;
            return Ok(ExitCode::SUCCESS);
        }
        What::PostOrders(args) => {
            signals.interrupts(api::generator::run(args)).await?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    if json {
        say(serde_json::to_string_pretty(&figures)?);
    } else {
        say(figure::table(&figures).trim_end());
    }
    Ok(ExitCode::SUCCESS)
}
