//! `outrider api-keys list`, and how keys are shown.

use std::process::ExitCode;

use anyhow::Result;
use chrono::{DateTime, Utc};
use clap::Args;
use sqlx::PgConnection;

use super::store::{self, KeyRow};
use crate::console::say;
use crate::dead_letters::list::instant;
use crate::parked::list::printable;

/// Which keys to show, and how.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Also those that are revoked or have expired
    #[arg(long)]
    all: bool,

    /// Show at most so many keys
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..))]
    limit: i64,

    /// Print them as a JSON array
    #[arg(long)]
    json: bool,
}

/// Shows the keys. The exit code is 0, whether there are any or not.
pub async fn run(connection: &mut PgConnection, args: &ListArgs) -> Result<ExitCode> {
    let keys = store::list(connection, args.all, args.limit).await?;
    if args.json {
        say(serde_json::to_string(&keys)?);
    } else if keys.is_empty() {
        say(if args.all { "there are no keys" } else { "there are no keys that are good" });
    } else {
        print_table(&keys);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_table(keys: &[KeyRow]) {
    let names: Vec<String> = keys.iter().map(|key| printable(&key.name)).collect();
    let rights: Vec<String> = keys.iter().map(scopes_and_user).collect();
    let width =
        |texts: &[String], least| texts.iter().map(|text| text.chars().count()).max().unwrap_or(0).clamp(least, 60);
    let (names_width, rights_width) = (width(&names, 4), width(&rights, 3));
    say(format_args!(
        "{:<16}  {:<names_width$}  {:<rights_width$}  {:<8}  {:<20}  {:<20}  {:<20}",
        "ID", "NAME", "MAY", "STATE", "CREATED", "LAST USED", "EXPIRES"
    ));
    for (key, (name, rights)) in keys.iter().zip(names.iter().zip(rights)) {
        say(format_args!(
            "{:<16}  {name:<names_width$}  {rights:<rights_width$}  {:<8}  {:<20}  {:<20}  {:<20}",
            key.id,
            key.state,
            instant(key.created_at),
            or_never(key.last_used_at),
            or_never(key.expires_at)
        ));
    }
}

/// `orders:read orders:write, user 17`.
#[must_use]
pub fn scopes_and_user(key: &KeyRow) -> String {
    let user = key.user_id.map_or_else(String::new, |id| format!(", user {id}"));
    format!("{}{user}", key.scopes.join(" "))
}

/// To the second, as in RFC 3339.
#[must_use]
pub fn or_never(time: Option<DateTime<Utc>>) -> String {
    time.map_or_else(|| "never".to_owned(), instant)
}
