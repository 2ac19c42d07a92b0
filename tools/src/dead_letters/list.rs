//! `outrider dead-letters list`, and how keys that wait are shown.

use std::process::ExitCode;

use anyhow::Result;
use chrono::{DateTime, Utc};
use clap::{Args, ValueEnum};
use sqlx::PgConnection;

use super::Which;
use super::store::{self, FailureGroup, Found, Selection, WaitingKey};
use crate::console::say;
use crate::parked::list::{counted, printable};

/// What `--help` shows.
pub const EXAMPLES: &str = "Examples:
  outrider dead-letters list --group-by reason
  outrider dead-letters list --state parked --type order.created --since 2h
  outrider dead-letters list --reason 'no such product' --limit 1000 --json";

/// Which keys to show, and how.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    which: Which,

    /// Only keys in this state
    #[arg(long, value_name = "STATE", value_enum)]
    state: Option<State>,

    /// Count them by the kind of their failure
    #[arg(long, value_name = "WHAT", value_enum)]
    group_by: Option<GroupBy>,

    /// Show at most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..))]
    limit: i64,

    /// Print them as a JSON array
    #[arg(long)]
    json: bool,
}

/// Why a key waits.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum State {
    /// It failed in a way that may pass, and is tried again
    Retrying,
    /// An elder version has not come yet
    Waiting,
    /// It was given up until somebody replays or discards
    Parked,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Retrying => "retrying",
            Self::Waiting => "waiting",
            Self::Parked => "parked",
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum GroupBy {
    /// The reason without its numbers and ids, and the type of the event
    Reason,
}

/// Shows what waits. The exit code is 0, whether something does or not.
pub async fn run(connection: &mut PgConnection, args: &ListArgs) -> Result<ExitCode> {
    let selection = Selection { state: args.state.map(State::name), ..args.which.selection() };
    if let Some(GroupBy::Reason) = args.group_by {
        let groups = store::failure_groups(connection, &selection, args.limit).await?;
        if args.json {
            say(serde_json::to_string(&groups)?);
        } else if groups.is_empty() {
            say("nothing waits");
        } else {
            print_groups(&groups);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let found = store::waiting_keys(connection, &selection, args.limit).await?;
    if args.json {
        say(serde_json::to_string(&found.rows)?);
    } else if found.keys == 0 {
        say("nothing waits");
    } else {
        print_keys(&found);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_groups(groups: &[FailureGroup]) {
    let types: Vec<String> = groups.iter().map(|group| or_dash(group.event_type.as_deref())).collect();
    let width = width(&types, 4);
    say(format_args!(
        "{:<16}  {:<width$}  {:>7}  {:>8}  {:<20}  {:<20}  REASON (THE LATEST)",
        "FINGERPRINT", "TYPE", "KEYS", "EVENTS", "FIRST", "LAST"
    ));
    for (group, event_type) in groups.iter().zip(types) {
        say(format_args!(
            "{:<16}  {event_type:<width$}  {:>7}  {:>8}  {:<20}  {:<20}  {}",
            group.fingerprint,
            group.keys,
            group.events,
            instant(group.first_failed_at),
            instant(group.last_failed_at),
            printable(&group.reason)
        ));
    }
}

/// Prints one line a key, and a last one with the totals.
pub fn print_keys(found: &Found) {
    let keys: Vec<String> = found.rows.iter().map(name).collect();
    let types: Vec<String> = found.rows.iter().map(|row| or_dash(row.event_type.as_deref())).collect();
    let topics: Vec<String> = found.rows.iter().map(|row| printable(&row.topic)).collect();
    let (key_width, type_width, topic_width) = (width(&keys, 3), width(&types, 4), width(&topics, 5));
    say(format_args!(
        "{:<key_width$}  {:<topic_width$}  {:<type_width$}  {:<8}  {:>8}  {:<20}  {:>7}  REASON",
        "KEY", "TOPIC", "TYPE", "STATE", "ATTEMPTS", "NEXT", "WAITING"
    ));
    for (index, row) in found.rows.iter().enumerate() {
        let next = row.next_attempt_at.map_or_else(|| "-".to_owned(), instant);
        say(format_args!(
            "{:<key_width$}  {:<topic_width$}  {:<type_width$}  {:<8}  {:>8}  {next:<20}  {:>7}  {}",
            keys[index],
            topics[index],
            types[index],
            row.state,
            row.attempts,
            row.waiting,
            printable(&row.reason)
        ));
    }
    let shown = i64::try_from(found.rows.len()).unwrap_or(i64::MAX);
    if shown < found.keys {
        say(format_args!("{}, the first {shown} shown", found.totals()));
    } else {
        say(found.totals());
    }
}

impl Found {
    /// `3 keys with 12 events`.
    #[must_use]
    pub fn totals(&self) -> String {
        counted(self.keys, self.events)
    }
}

/// What is shown of a key in a line.
const KEY_CHARS_MAX: usize = 60;

/// What to call a key, or a record without one. A long key is cut, and found by its id.
#[must_use]
pub fn name(key: &WaitingKey) -> String {
    match (&key.record_key, key.dead_letter_id) {
        (Some(record_key), id) => {
            let whole = record_key.to_string();
            match (whole.char_indices().nth(KEY_CHARS_MAX), id) {
                (Some(_), Some(id)) => {
                    let start: String = whole.chars().take(KEY_CHARS_MAX / 2).collect();
                    format!("{start}... ({} bytes, id {id})", record_key.0.len())
                }
                _ => whole,
            }
        }
        (None, Some(id)) => format!("(none, id {id})"),
        (None, None) => "(none)".to_owned(),
    }
}

/// `1 event`, `2 events`.
#[must_use]
pub fn events(count: i64) -> String {
    format!("{count} event{}", if count == 1 { "" } else { "s" })
}

/// To the second, as in RFC 3339.
#[must_use]
pub fn instant(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The text, or a dash for none.
#[must_use]
pub fn or_dash(text: Option<&str>) -> String {
    text.map_or_else(|| "-".to_owned(), printable)
}

fn width(texts: &[String], least: usize) -> usize {
    texts.iter().map(|text| text.chars().count()).max().unwrap_or(0).clamp(least, 60)
}
