//! `outrider offsets`: where each consumer group stands, and accepting what the brokers have where a position is lost.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use processor::broker::Broker;
use processor::offsets::{self, Lost, Operator, Position};
use serde::Serialize;
use shared::config::Env;
use shared::db::DatabaseConfig;
use shared::kafka::KafkaConfig;
use sqlx::PgConnection;

use crate::connection::with_connection;
use crate::console::{confirmed, say};
use crate::parked;
use crate::parked::list::printable;

/// Our name in the brokers' logs.
const CLIENT_ID: &str = "outrider";

/// What is to be done.
#[derive(Debug, Args)]
pub struct OffsetsArgs {
    #[command(subcommand)]
    command: OffsetsCommand,
}

#[derive(Debug, Subcommand)]
enum OffsetsCommand {
    /// Show where each consumer group goes on, beside what the brokers have
    #[command(after_help = LIST_EXAMPLES)]
    List(ListArgs),

    /// Let a group go on with what the brokers have, where its position is lost
    ///
    /// A processor stops when the broker has no record at its position, or another one before it: the topic was made anew, has lost its
    /// end, or records were deleted before they were applied. Positions that the brokers bear out are left alone; each of the others is
    /// set to the first record that there is. Events that were applied before are known by their ids and are not applied again.
    #[command(after_help = ACCEPT_EXAMPLES)]
    Accept(AcceptArgs),
}

const LIST_EXAMPLES: &str = "Examples:
  outrider offsets list
  outrider offsets list --group outrider-processor --topic orders
  outrider offsets list --json";

const ACCEPT_EXAMPLES: &str = "Examples:
  outrider offsets accept --group outrider-processor --topic orders
  outrider offsets accept --group outrider-processor --topic orders --partition 3 --why 'made anew on purpose' --yes";

/// Which positions to show, and how.
#[derive(Debug, Args)]
struct ListArgs {
    /// Only those of this consumer group
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,

    /// Only those in this topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,

    /// Print them as a JSON array
    #[arg(long)]
    json: bool,
}

/// Which positions to accept.
#[derive(Debug, Args)]
struct AcceptArgs {
    /// The consumer group
    #[arg(long, value_name = "GROUP")]
    group: String,

    /// The topic
    #[arg(long, value_name = "TOPIC")]
    topic: String,

    /// Only this partition
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    partition: Option<i32>,

    /// Why, for the log (`offset_log`)
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,

    /// Do not ask before
    #[arg(long)]
    yes: bool,
}

/// A position, as it is printed.
#[derive(Debug, Serialize)]
struct Row {
    group: String,
    topic: String,
    partition: i32,
    position: i64,
    low: Option<i64>,
    high: Option<i64>,
    lag: Option<i64>,
}

/// Does it, with the database and the brokers of the environment.
pub async fn run(args: OffsetsArgs) -> Result<ExitCode> {
    let env = Env::load()?;
    let database = DatabaseConfig::from_env(&env, "outrider")?;
    let kafka = KafkaConfig::from_env(&env)?;
    with_connection(&database, async |connection| match args.command {
        OffsetsCommand::List(args) => list(connection, &kafka, &args).await,
        OffsetsCommand::Accept(args) => accept(connection, &kafka, &args).await,
    })
    .await
}

async fn list(connection: &mut PgConnection, kafka: &KafkaConfig, args: &ListArgs) -> Result<ExitCode> {
    // Nothing is asked for this group; but a consumer must have one.
    let broker = Broker::new(&kafka.consumer(CLIENT_ID, CLIENT_ID))?;
    let positions = offsets::list(connection, &broker, args.group.as_deref(), args.topic.as_deref()).await?;
    let rows: Vec<Row> = positions.into_iter().map(row).collect();
    if args.json {
        say(serde_json::to_string(&rows)?);
    } else if rows.is_empty() {
        say("no group has a position");
    } else {
        print_table(&rows);
    }
    Ok(ExitCode::SUCCESS)
}

fn row(position: Position) -> Row {
    let Position { group, partition, next_offset, range } = position;
    Row {
        group,
        topic: partition.topic.to_string(),
        partition: partition.number,
        position: next_offset,
        low: range.as_ref().map(|range| range.start),
        high: range.as_ref().map(|range| range.end),
        // Negative: the topic ends before the position, which the processor will not accept by itself.
        lag: range.map(|range| range.end - next_offset),
    }
}

fn print_table(rows: &[Row]) {
    let width = |column: fn(&Row) -> &str, least: usize| {
        rows.iter().map(|row| printable(column(row)).chars().count()).max().unwrap_or(0).max(least)
    };
    let (group, topic) = (width(|row| &row.group, 5), width(|row| &row.topic, 5));
    say(format_args!(
        "{:<group$}  {:<topic$}  {:>9}  {:>12}  {:>12}  {:>12}  {:>10}",
        "GROUP", "TOPIC", "PARTITION", "POSITION", "LOW", "HIGH", "LAG"
    ));
    let number = |number: Option<i64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    for row in rows {
        say(format_args!(
            "{:<group$}  {:<topic$}  {:>9}  {:>12}  {:>12}  {:>12}  {:>10}",
            printable(&row.group),
            printable(&row.topic),
            row.partition,
            row.position,
            number(row.low),
            number(row.high),
            number(row.lag)
        ));
    }
}

async fn accept(connection: &mut PgConnection, kafka: &KafkaConfig, args: &AcceptArgs) -> Result<ExitCode> {
    let broker = Broker::new(&kafka.consumer(CLIENT_ID, &args.group))?;
    let lost = offsets::lost(connection, &broker, &args.group, &args.topic, args.partition).await?;
    if lost.is_empty() {
        say("no position is lost: there is nothing to accept");
        return Ok(ExitCode::SUCCESS);
    }
    for lost in &lost {
        say(format_args!("{lost}; would go on at {}", lost.view.low));
    }
    if !args.yes && !confirmed(&format!("go on there with {} of {}?", counted(&lost), args.topic)).await? {
        bail!("not confirmed; --yes does without");
    }
    let os_user = parked::actor().os_user;
    let operator = Operator { os_user: &os_user, why: args.why.as_deref() };
    let mut code = ExitCode::SUCCESS;
    for lost in &lost {
        if offsets::accept(connection, lost, operator).await? {
            say(format_args!("partition {} goes on at {}", lost.partition, lost.view.low));
        } else {
            say(format_args!("partition {} was moved meanwhile: left alone", lost.partition));
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

fn counted(lost: &[Lost]) -> String {
    match lost.len() {
        1 => "1 partition".to_owned(),
        count => format!("{count} partitions"),
    }
}
