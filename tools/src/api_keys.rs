//! `outrider api-keys`: who may call the API.
//!
//! A key is shown once, when it is made; the database has a hash of its secret. The API takes a few seconds to hear of a change
//! (`API_KEYS_CACHE_SECS`). Each command is written down in `api_key_log`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use api::auth::key::{ApiKey, KeyId};
use api::auth::scopes::Scope;
use clap::{Args, Subcommand};
use serde::Serialize;
use shared::config::Env;
use shared::db::DatabaseConfig;
use shared::duration;
use sqlx::PgConnection;

use crate::connection::with_connection;
use crate::console::{say, say_or_fail};
use crate::dead_letters::non_blank;
use crate::parked::{actor, list::printable};
use list::{or_never, scopes_and_user};
use store::{KeyRow, NewKey, Refusal};

pub mod list;
pub mod store;

/// What is to be done.
#[derive(Debug, Args)]
pub struct ApiKeysArgs {
    #[command(subcommand)]
    command: ApiKeysCommand,
}

#[derive(Debug, Subcommand)]
enum ApiKeysCommand {
    /// Make a key and show it, this once
    #[command(after_help = CREATE_EXAMPLES)]
    Create(CreateArgs),

    /// Show the keys, the newest first, without their secrets
    #[command(after_help = LIST_EXAMPLES)]
    List(list::ListArgs),

    /// Have a key refused from now on
    ///
    /// The API hears of it within `API_KEYS_CACHE_SECS` (10 seconds unless set). Event streams that are open end within
    /// `API_SSE_CREDENTIALS_SECS`. The exit code is 1 when there is no such key, or it was revoked before.
    #[command(after_help = REVOKE_EXAMPLES)]
    Revoke(RevokeArgs),

    /// Make a key that takes the place of another one, and show it, this once
    ///
    /// It has the name, the scopes and the user of the old one, lives as long from now on, and stands for the same caller: an
    /// Idempotency-Key that was used with one of them is known with the other. The old key is good until the overlap is over.
    #[command(after_help = ROTATE_EXAMPLES)]
    Rotate(RotateArgs),
}

const CREATE_EXAMPLES: &str = "Examples:
  outrider api-keys create --name 'shop front end'
  outrider api-keys create --name reports --scope orders:read --expires 90d
  outrider api-keys create --name 'customer 17' --user 17 --json | jq -r .key";

const LIST_EXAMPLES: &str = "Examples:
  outrider api-keys list
  outrider api-keys list --all --json | jq '.[] | select(.last_used_at == null)'";

const REVOKE_EXAMPLES: &str = "Examples:
  outrider api-keys revoke 5f0c94d3a8e17b26 --why 'was in a log file'";

const ROTATE_EXAMPLES: &str = "Examples:
  outrider api-keys rotate 5f0c94d3a8e17b26
  outrider api-keys rotate 5f0c94d3a8e17b26 --overlap 7d
  outrider api-keys rotate 5f0c94d3a8e17b26 --overlap 0s --why 'may be known to others'";

/// Which key to make.
#[derive(Debug, Args)]
struct CreateArgs {
    /// What people will know it by, up to 100 characters
    #[arg(long, value_name = "NAME", value_parser = key_name)]
    name: String,

    /// What it is good for, orders:read or orders:write; may be given twice. Both, unless given
    #[arg(long = "scope", value_name = "SCOPE", value_parser = Scope::ALL.map(Scope::name))]
    scopes: Vec<String>,

    /// Bind it to this user's orders: it sees and changes no others
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(i64).range(1..))]
    user: Option<i64>,

    /// Have it refused after that long (12h, 90d); never, unless given
    #[arg(long, value_name = "TIME", value_parser = length)]
    expires: Option<Duration>,

    /// Why, for the record
    #[arg(long, value_name = "TEXT", value_parser = non_blank)]
    why: Option<String>,

    /// Print it as a JSON object
    #[arg(long)]
    json: bool,
}

/// Which key to end.
#[derive(Debug, Args)]
struct RevokeArgs {
    /// The key's id, as `list` shows it: the 16 digits between the underscores
    #[arg(value_name = "ID", value_parser = key_id)]
    id: KeyId,

    /// Why, for the record
    #[arg(long, value_name = "TEXT", value_parser = non_blank)]
    why: String,

    /// Print the key as a JSON object
    #[arg(long)]
    json: bool,
}

/// Which key to replace.
#[derive(Debug, Args)]
struct RotateArgs {
    /// The key's id, as `list` shows it: the 16 digits between the underscores
    #[arg(value_name = "ID", value_parser = key_id)]
    id: KeyId,

    /// How long the old key is still good (30m, 7d; 0s for not at all)
    #[arg(long, value_name = "TIME", value_parser = length, default_value = "1h")]
    overlap: Duration,

    /// Why, for the record
    #[arg(long, value_name = "TEXT", value_parser = non_blank)]
    why: Option<String>,

    /// Print the new key as a JSON object
    #[arg(long)]
    json: bool,
}

fn length(text: &str) -> Result<Duration, String> {
    duration::parse(text).ok_or_else(|| "is no length of time such as 30m, 12h or 90d".to_owned())
}

fn key_id(text: &str) -> Result<KeyId, String> {
    // Not repeated, as clap repeats the value: who pastes the whole key here has shown it to the shell's history already.
    KeyId::parse(text).ok_or_else(|| "an id has 16 digits, 0 to 9 and a to f".to_owned())
}

fn key_name(text: &str) -> Result<String, String> {
    if text.chars().count() > 100 {
        return Err("must have 100 characters at most".to_owned());
    }
    non_blank(text)
}

/// Does it, in the database of the environment.
pub async fn run(args: ApiKeysArgs) -> Result<ExitCode> {
    let database = DatabaseConfig::from_env(&Env::load()?, "outrider")?;
    with_connection(&database, async |connection| match args.command {
        ApiKeysCommand::Create(args) => create(connection, &args).await,
        ApiKeysCommand::List(args) => list::run(connection, &args).await,
        ApiKeysCommand::Revoke(args) => revoke(connection, &args).await,
        ApiKeysCommand::Rotate(args) => rotate(connection, &args).await,
    })
    .await
}

async fn create(connection: &mut PgConnection, args: &CreateArgs) -> Result<ExitCode> {
    let key = random_key();
    let all = || Scope::ALL.map(|scope| scope.name().to_owned()).to_vec();
    let scopes = if args.scopes.is_empty() { all() } else { args.scopes.clone() };
    let wanted = NewKey { name: &args.name, scopes: &scopes, user_id: args.user, expires: args.expires };
    let made = store::create(connection, &key, &wanted, (&actor().os_user, args.why.as_deref())).await?;
    show_or_revoke(connection, (&key, &made), args.json).await
}

async fn revoke(connection: &mut PgConnection, args: &RevokeArgs) -> Result<ExitCode> {
    match store::revoke(connection, args.id, (&actor().os_user, &args.why)).await? {
        Ok(key) if args.json => say(serde_json::to_string(&key)?),
        Ok(key) => {
            say(format_args!("revoked {} ({}); the API hears of it within seconds", key.id, printable(&key.name)));
        }
        Err(refusal) => return Ok(refused(refusal)),
    }
    Ok(ExitCode::SUCCESS)
}

async fn rotate(connection: &mut PgConnection, args: &RotateArgs) -> Result<ExitCode> {
    let key = random_key();
    let who = (actor().os_user, args.why.as_deref());
    let (old, new) = match store::rotate(connection, args.id, &key, args.overlap, (&who.0, who.1)).await? {
        Ok(rotated) => rotated,
        Err(refusal) => return Ok(refused(refusal)),
    };
    if !args.json {
        say(format_args!("{} is good until {}; in its place:", old.id, or_never(old.expires_at)));
    }
    show_or_revoke(connection, (&key, &new), args.json).await
}

/// Shows a new key. One that nobody has seen would be good for nobody but a thief, so it is revoked.
async fn show_or_revoke(connection: &mut PgConnection, (key, row): (&ApiKey, &KeyRow), json: bool) -> Result<ExitCode> {
    let Err(error) = show(key, row, json) else { return Ok(ExitCode::SUCCESS) };
    let revoked =
        store::revoke(connection, key.id(), (&actor().os_user, "it could not be shown when it was made")).await;
    match revoked {
        Ok(Ok(_)) => bail!("the new key {} could not be shown, and was revoked; run it again: {error}", row.id),
        _ => bail!("the new key {} could not be shown; revoke it and make another one: {error}", row.id),
    }
}

fn refused(refusal: Refusal) -> ExitCode {
    say(refusal);
    ExitCode::FAILURE
}

/// A new key. The numbers come from the generator of the thread, which the operating system seeds and nobody can predict.
fn random_key() -> ApiKey {
    ApiKey::from_random(rand::random(), rand::random())
}

/// A key that was just made, with itself.
#[derive(Serialize)]
struct Shown<'a> {
    key: String,
    #[serde(flatten)]
    row: &'a KeyRow,
}

fn show(key: &ApiKey, row: &KeyRow, json: bool) -> Result<()> {
    if json {
        return Ok(say_or_fail(serde_json::to_string(&Shown { key: key.expose(), row })?)?);
    }
    say_or_fail(format_args!("id       {}", row.id))?;
    say_or_fail(format_args!("name     {}", printable(&row.name)))?;
    say_or_fail(format_args!("may      {}", scopes_and_user(row)))?;
    say_or_fail(format_args!("expires  {}", or_never(row.expires_at)))?;
    say_or_fail(format_args!("key      {}", key.expose()))?;
    Ok(say_or_fail("keep the key now: it is shown this once, and kept nowhere")?)
}
