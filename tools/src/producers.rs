//! `outrider producers`: which roles may append events of which aggregate types by `outbox_append` and `outbox_debezium`.
//!
//! A change counts from the next call on. Each command is written down in `outbox_producer_log`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use shared::config::Env;
use shared::db::DatabaseConfig;
use sqlx::PgConnection;

use crate::connection::with_connection;
use crate::console::say;
use crate::dead_letters::non_blank;
use crate::parked::{actor, list::printable};
use store::{Change, Refusal};

pub mod list;
pub mod store;

/// What is to be done.
#[derive(Debug, Args)]
pub struct ProducersArgs {
    #[command(subcommand)]
    command: ProducersCommand,
}

#[derive(Debug, Subcommand)]
enum ProducersCommand {
    /// Let a role append events of aggregate types
    ///
    /// The role is a login, or a group whose members then may; all roles with a type share its aggregates. It also needs the role
    /// `outrider_writer`, which an administrator grants. The type `order` is reserved for the api and the processor. A type that the role
    /// has already stays as it is. The exit code is 1 when there is no such role.
    #[command(after_help = GRANT_EXAMPLES)]
    Grant(ChangeArgs),

    /// Refuse a role's events of aggregate types from now on
    ///
    /// Other roles that it is a member of may still give it the type. The exit code is 1, and nothing is revoked, when the role was not
    /// granted one of the types.
    #[command(after_help = REVOKE_EXAMPLES)]
    Revoke(ChangeArgs),

    /// Show who may append events of which type
    #[command(after_help = LIST_EXAMPLES)]
    List(list::ListArgs),
}

const GRANT_EXAMPLES: &str = "Examples:
  outrider producers grant billing invoice payment
  outrider producers grant warehouse shipment --why 'the new service, see ticket 31'";

const REVOKE_EXAMPLES: &str = "Examples:
  outrider producers revoke outrider_writer invoice --why 'billing has a grant of its own now'";

const LIST_EXAMPLES: &str = "Examples:
  outrider producers list
  outrider producers list --json | jq '.[] | select(.aggregate_type == \"invoice\")'";

/// Whom to grant or revoke what.
#[derive(Debug, Args)]
struct ChangeArgs {
    /// The Postgres role, a login or a group, as `pg_roles` has it
    #[arg(value_name = "ROLE")]
    role: String,

    /// The aggregate types, of 1 to 200 bytes each
    #[arg(value_name = "TYPE", required = true, value_parser = aggregate_type)]
    types: Vec<String>,

    /// Why, for the record
    #[arg(long, value_name = "TEXT", value_parser = non_blank)]
    why: Option<String>,
}

/// Does what was asked for.
pub async fn run(args: ProducersArgs) -> Result<ExitCode> {
    let database = DatabaseConfig::from_env(&Env::load()?, "outrider")?;
    with_connection(&database, async |connection| match args.command {
        ProducersCommand::Grant(args) => grant(connection, &args).await,
        ProducersCommand::Revoke(args) => revoke(connection, &args).await,
        ProducersCommand::List(args) => list::run(connection, &args).await,
    })
    .await
}

async fn grant(connection: &mut PgConnection, args: &ChangeArgs) -> Result<ExitCode> {
    let os_user = actor().os_user;
    let granted = match store::grant(connection, &change(args, &os_user)).await? {
        Ok(granted) => granted,
        Err(refusal) => return Ok(refused(&refusal)),
    };
    let role = printable(&args.role);
    for aggregate_type in &args.types {
        let had_it = if granted.new_types.contains(aggregate_type) { "may" } else { "could before, and may" };
        say(format_args!("{role} {had_it} append events of type {}", printable(aggregate_type)));
    }
    if !granted.calls_append {
        say(format_args!(
            "it cannot call outbox_append yet: let an administrator run: GRANT outrider_writer TO {}",
            granted.quoted_role
        ));
    }
    Ok(ExitCode::SUCCESS)
}

async fn revoke(connection: &mut PgConnection, args: &ChangeArgs) -> Result<ExitCode> {
    let os_user = actor().os_user;
    if let Err(refusal) = store::revoke(connection, &change(args, &os_user)).await? {
        return Ok(refused(&refusal));
    }
    for aggregate_type in &args.types {
        say(format_args!("revoked type {} from {}", printable(aggregate_type), printable(&args.role)));
    }
    Ok(ExitCode::SUCCESS)
}

fn change<'a>(args: &'a ChangeArgs, os_user: &'a str) -> Change<'a> {
    Change { role: &args.role, types: &args.types, os_user, why: args.why.as_deref() }
}

fn refused(refusal: &Refusal) -> ExitCode {
    say(refusal);
    ExitCode::FAILURE
}

fn aggregate_type(text: &str) -> Result<String, String> {
    if (1..=200).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err(format!("an aggregate type has 1 to 200 bytes, and not {}", text.len()))
    }
}
