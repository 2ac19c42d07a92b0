//! `outrider parked list`, and how parked keys are shown.

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use relay::routes::Routes;
use sqlx::PgConnection;
use sqlx::types::chrono::{DateTime, Utc};

use super::store::{self, Found, ParkedKey, Selection};
use crate::console::say;

/// Which keys to show, and how.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only keys whose events go to this topic, by the table of routes and the `RELAY_ROUTES` of this environment
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,

    /// Only keys of this aggregate type
    #[arg(long = "type", value_name = "TYPE")]
    aggregate_type: Option<String>,

    /// Only keys whose reason is like this: % for any characters, _ for one, in any case
    #[arg(long, value_name = "PATTERN")]
    reason_like: Option<String>,

    /// Show at most so many keys
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..))]
    limit: i64,

    /// Print them as a JSON array
    #[arg(long)]
    json: bool,
}

/// Shows what is parked. The exit code is 0, whether something is or not.
pub async fn run(connection: &mut PgConnection, args: &ListArgs, routes: &Routes) -> Result<ExitCode> {
    let routes = routes.with_table(relay::outbox::routes::routes(connection).await?);
    let types = match (&args.aggregate_type, &args.topic) {
        (None, None) => None,
        (aggregate_type, topic) => {
            let mut types = store::parked_types(connection).await?;
            types.retain(|found| aggregate_type.as_ref().is_none_or(|wanted| wanted == found));
            types.retain(|found| topic.is_none() || routes.resolve(found).ok() == *topic);
            Some(types)
        }
    };
    let selection =
        Selection { key: None, aggregate_types: types.as_deref(), reason_like: args.reason_like.as_deref() };
    let mut found = store::parked(connection, &selection, args.limit).await?;
    for key in &mut found.rows {
        key.topic = routes.resolve(&key.aggregate_type).ok();
    }
    if args.json {
        say(serde_json::to_string(&found.rows)?);
    } else if found.keys == 0 {
        say("no key is parked");
    } else {
        print_table(&found);
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints one line a key, and a last one with the totals.
pub fn print_table(found: &Found) {
    let keys: Vec<String> = found.rows.iter().map(|row| printable(&row.key())).collect();
    let width = keys.iter().map(|key| key.chars().count()).max().unwrap_or(0).clamp(3, 60);
    say(format_args!("{:<width$}  {:>7}  {:<11}  {:<20}  REASON", "KEY", "WAITING", "VERSIONS", "SINCE"));
    for (row, key) in found.rows.iter().zip(keys) {
        let versions = format!("{}..{}", row.first_version, row.last_version);
        let since = instant(row.since);
        say(format_args!("{key:<width$}  {:>7}  {versions:<11}  {since:<20}  {}", row.waiting, reason(row)));
    }
    let shown = i64::try_from(found.rows.len()).unwrap_or(i64::MAX);
    if shown < found.keys {
        say(format_args!("{}, the first {shown} shown", found.totals()));
    } else {
        say(found.totals());
    }
}

fn reason(row: &ParkedKey) -> String {
    let mut text = row.reason.as_deref().map_or_else(|| "waits for an elder that was given up".to_owned(), printable);
    if let (Some(at), Some(by)) = (row.retry_requested_at, &row.retry_requested_by) {
        let at = instant(at);
        // Writing to a string does not fail.
        let _ = write!(text, " (retry asked for {at} by {})", printable(by));
    }
    text
}

/// To the second, as in RFC 3339.
fn instant(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `3 keys with 12 events`.
#[must_use]
pub fn counted(keys: i64, events: i64) -> String {
    let plural = |count: i64| if count == 1 { "" } else { "s" };
    format!("{keys} key{} with {events} event{}", plural(keys), plural(events))
}

/// The text without what a terminal could take for a command: keys are whatever their writers made of them.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { char::REPLACEMENT_CHARACTER } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_words_that_fit_them() {
        assert_eq!(counted(1, 1), "1 key with 1 event");
        assert_eq!(counted(2, 12), "2 keys with 12 events");
    }

    #[test]
    fn keys_do_not_reach_the_terminal_as_commands() {
        assert_eq!(printable("order/\u{1b}[2J7\n"), "order/\u{fffd}[2J7\u{fffd}");
    }
}
