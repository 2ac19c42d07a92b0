//! `outrider parked`: what Kafka has refused, and letting it go on.
//!
//! A key is parked when Kafka refuses one of its events for good; that event and all later ones of the key wait in `relay_parked`.
//! `retry` asks the relays to publish them again, in order; `discard` gives one event up and asks for the rest. Both only write a
//! request: it is the relay that holds the key's lane that publishes.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use relay::routes::{self, Routes};
use rustix::process::getuid;
use shared::config::Env;
use shared::db::DatabaseConfig;
use sqlx::PgConnection;
use sqlx::types::Uuid;

use crate::connection::with_connection;
use crate::console::{confirmed, say};
use store::{Actor, Discard, Refusal, Selection};

pub mod list;
pub mod store;

/// What is to be done.
#[derive(Debug, Args)]
pub struct ParkedArgs {
    #[command(subcommand)]
    command: ParkedCommand,
}

#[derive(Debug, Subcommand)]
enum ParkedCommand {
    /// Show the parked keys, those that wait longest first
    #[command(after_help = LIST_EXAMPLES)]
    List(list::ListArgs),

    /// Ask the relays to publish parked keys again, in order
    ///
    /// Worth it once the reason is gone: a topic that takes larger records, a route for a type that made no legal topic name. Kafka may
    /// refuse again; then the key stays parked, with the new reason.
    #[command(after_help = RETRY_EXAMPLES)]
    Retry(RetryArgs),

    /// Give one event of a parked key up for good, and ask the relays to publish the rest
    ///
    /// Consumers that count versions will miss that of the event. Who did it, when and why stays in `relay_parked_log`.
    #[command(after_help = DISCARD_EXAMPLES)]
    Discard(DiscardArgs),
}

const LIST_EXAMPLES: &str = "Examples:
  outrider parked list
  outrider parked list --topic orders --reason-like '%too large%'
  outrider parked list --type order --limit 1000 --json";

const RETRY_EXAMPLES: &str = "Examples:
  outrider parked retry --key order/17
  outrider parked retry --type order --dry-run
  outrider parked retry --all --yes --why 'max.message.bytes was raised'";

const DISCARD_EXAMPLES: &str = "Examples:
  outrider parked discard --key order/17 --why 'a test order with a picture in it'
  outrider parked discard --key order/17 --event 01890a5d-ac96-774b-bcce-b302099a8057 --why 'sent by hand'";

/// Which keys to publish again.
#[derive(Debug, Args)]
struct RetryArgs {
    /// The key, aggregate type and id
    #[arg(long, value_name = "TYPE/ID", required_unless_present_any = ["aggregate_type", "all"])]
    key: Option<String>,

    /// All keys of an aggregate type
    #[arg(long = "type", value_name = "TYPE", id = "aggregate_type")]
    aggregate_type: Option<String>,

    /// All keys
    #[arg(long, conflicts_with_all = ["key", "aggregate_type"])]
    all: bool,

    /// Only say what would be asked for
    #[arg(long)]
    dry_run: bool,

    /// Do not ask before more than one key is published again
    #[arg(long)]
    yes: bool,

    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
}

/// Which event to give up.
#[derive(Debug, Args)]
struct DiscardArgs {
    /// The key, aggregate type and id
    #[arg(long, value_name = "TYPE/ID")]
    key: String,

    /// The aggregate type, should a '/' in types and ids make the key ambiguous
    #[arg(long = "type", value_name = "TYPE", id = "aggregate_type")]
    aggregate_type: Option<String>,

    /// The event; the first of the key unless given, which is the one that Kafka has refused
    #[arg(long, value_name = "ID")]
    event: Option<Uuid>,

    /// Why, for the record
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    why: String,
}

/// Does it, in the database of the environment.
pub async fn run(args: ParkedArgs) -> Result<ExitCode> {
    let env = Env::load()?;
    let routes = Routes::parse(env.var(routes::VARIABLE))?;
    let database = DatabaseConfig::from_env(&env, "outrider")?;
    with_connection(&database, async |connection| match args.command {
        ParkedCommand::List(args) => list::run(connection, &args, &routes).await,
        ParkedCommand::Retry(args) => retry(connection, &args).await,
        ParkedCommand::Discard(args) => discard(connection, args).await,
    })
    .await
}

async fn retry(connection: &mut PgConnection, args: &RetryArgs) -> Result<ExitCode> {
    let types: Option<Vec<String>> = args.aggregate_type.clone().map(|aggregate_type| vec![aggregate_type]);
    let selection = Selection { key: args.key.as_deref(), aggregate_types: types.as_deref(), reason_like: None };
    let found = store::parked(connection, &selection, 20).await?;
    if found.keys == 0 {
        say("no such key is parked");
        return Ok(if args.all { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if args.dry_run || (found.keys > 1 && !args.yes) {
        list::print_table(&found);
    }
    if args.dry_run {
        say("nothing was asked for: this was a dry run");
        return Ok(ExitCode::SUCCESS);
    }
    if found.keys > 1 && !args.yes && !confirmed(&format!("publish {} again?", found.totals())).await? {
        bail!("not confirmed; --yes does without");
    }
    let requested = store::request_retry(connection, &selection, &actor(), args.why.as_deref()).await?;
    say(format_args!("asked the relays to publish {} again", list::counted(requested.keys, requested.events)));
    if requested.keys < found.keys {
        say("the others were asked for before");
    }
    say_who_answers(connection).await?;
    Ok(ExitCode::SUCCESS)
}

async fn discard(connection: &mut PgConnection, args: DiscardArgs) -> Result<ExitCode> {
    let wanted = Discard {
        key: &args.key,
        aggregate_type: args.aggregate_type.as_deref(),
        event_id: args.event,
        why: &args.why,
    };
    let discarded = match store::discard(connection, &wanted, &actor()).await? {
        Ok(discarded) => discarded,
        Err(refusal @ Refusal::NotParked) => {
            say(refusal);
            return Ok(ExitCode::FAILURE);
        }
        Err(refusal) => return Err(refusal.into()),
    };
    say(format_args!(
        "gave up event {} of {}, version {}",
        discarded.event_id,
        list::printable(&args.key),
        discarded.aggregate_version
    ));
    match discarded.remaining {
        0 => say("nothing else of the key waits; it flows again once its relay has heard of it"),
        remaining => say(format_args!("asked the relays to publish the {remaining} events that wait behind it")),
    }
    say_who_answers(connection).await?;
    Ok(ExitCode::SUCCESS)
}

async fn say_who_answers(connection: &mut PgConnection) -> Result<()> {
    if !store::is_a_relay_running(connection).await? {
        say("no relay is running: the request waits for one");
    }
    Ok(())
}

/// Who runs this command, as far as the operating system tells.
pub(crate) fn actor() -> Actor {
    let uid = getuid().as_raw();
    let name = ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok().filter(|name| !name.is_empty()));
    Actor { os_user: name.map_or_else(|| format!("uid {uid}"), |name| format!("{name} (uid {uid})")) }
}
