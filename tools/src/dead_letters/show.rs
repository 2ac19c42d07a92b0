//! `outrider dead-letters show`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use sqlx::PgConnection;

use super::key::RecordKey;
use super::list::{self, instant, or_dash};
use super::store::records::{LogEntry, WaitingRecord, Wanted, history, waiting_records};
use super::store::{self, Selection, WaitingKey};
use crate::console::say;
use crate::parked::list::printable;

/// What `--help` shows.
pub const EXAMPLES: &str = "Examples:
  outrider dead-letters show 17
  outrider dead-letters show --id 4711
  outrider dead-letters show 17 --topic orders --json | jq '.records[0].payload'";

/// What was done before is shown as far as this.
const HISTORY_MAX: i64 = 50;

/// Which key or record.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The key of records; if nothing of it waits and it is a number, the record of this id
    #[arg(value_name = "KEY|ID", value_parser = RecordKey::parse, required_unless_present = "id")]
    key: Option<RecordKey>,

    /// One record by its id
    #[arg(long, value_name = "ID", conflicts_with = "key")]
    id: Option<i64>,

    /// Only of this consumer group
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,

    /// Only of this topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,

    /// Show at most so many records
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..))]
    limit: i64,

    /// Print all of it as JSON
    #[arg(long)]
    json: bool,
}

/// Shows it. The exit code is 1 if nothing is known of it.
pub async fn run(connection: &mut PgConnection, args: &ShowArgs) -> Result<ExitCode> {
    let key = args.key.as_ref().map(|key| key.0.as_slice());
    let mut wanted = Wanted { key, id: args.id, group: args.group.as_deref(), topic: args.topic.as_deref() };
    let mut records = waiting_records(connection, &wanted, args.limit).await?;
    let as_id = key.and_then(|key| str::from_utf8(key).ok()?.parse().ok());
    if records.is_empty() && as_id.is_some() {
        wanted = Wanted { key: None, id: as_id, ..wanted };
        records = waiting_records(connection, &wanted, args.limit).await?;
    }
    let key = records.first().and_then(|record| record.record_key.as_ref()).or(args.key.as_ref());
    let mut keys = Vec::new();
    if let Some(key) = key {
        let selection =
            Selection { group: wanted.group, topic: wanted.topic, key: Some(&key.0), ..Selection::default() };
        keys = store::waiting_keys(connection, &selection, 100).await?.rows;
    }
    let event_id = records.first().and_then(|record| record.event_id);
    let log = history(connection, key.map(|key| key.0.as_slice()), event_id, HISTORY_MAX).await?;
    if args.json {
        let records: Vec<Value> = records.iter().map(record_json).collect();
        say(json!({ "keys": keys, "records": records, "history": log }));
    } else {
        print(&keys, &records, &log);
    }
    Ok(if records.is_empty() && log.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(keys: &[WaitingKey], records: &[WaitingRecord], log: &[LogEntry]) {
    for key in keys {
        let next = key.next_attempt_at.map_or_else(String::new, |at| format!(", next at {}", instant(at)));
        say(format_args!(
            "key {} of {} in {}: {}, {} in all, {} attempts{next}, failing since {}",
            list::name(key),
            printable(&key.topic),
            printable(&key.group_id),
            key.state,
            list::events(key.waiting),
            key.attempts,
            instant(key.first_failed_at)
        ));
        say(format_args!("  {} ({})", printable(&key.reason), key.fingerprint));
    }
    if records.is_empty() {
        say("nothing of it waits");
    }
    for record in records {
        print_record(record);
    }
    if !log.is_empty() {
        say("\nwhat operators did, the latest first");
    }
    for entry in log {
        let version = entry.aggregate_version.map_or_else(String::new, |version| format!(" version {version}"));
        let why = entry.why.as_deref().map_or_else(String::new, |why| format!(": {}", printable(why)));
        say(format_args!(
            "  {} {}{version} by {} ({}), {} waited{why}",
            instant(entry.logged_at),
            entry.action,
            printable(&entry.os_user),
            printable(&entry.db_user),
            list::events(entry.waiting)
        ));
    }
}

fn print_record(record: &WaitingRecord) {
    say(format_args!(
        "\nrecord {}: {}/{}@{} of {}, put aside {}",
        record.id,
        printable(&record.topic),
        record.partition,
        record.record_offset,
        printable(&record.group_id),
        instant(record.created_at)
    ));
    let version = record.aggregate_version.map_or_else(|| "-".to_owned(), |version| version.to_string());
    let event_id = record.event_id.map_or_else(|| "-".to_owned(), |id| id.to_string());
    say(format_args!("  event    {event_id}, {}, version {version}", or_dash(record.event_type.as_deref())));
    say(format_args!("  reason   {}", record.reason.as_deref().map_or("waits behind an elder".to_owned(), printable)));
    if let Some(key) = &record.unordered_key {
        say(format_args!("  key      {key}, in whose order it is not: it has no version"));
    }
    for header in record.headers.as_array().into_iter().flatten() {
        let name = header.get(0).and_then(Value::as_str).unwrap_or_default();
        let value = match header.get(1) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        };
        say(format_args!("  header   {}: {}", printable(name), printable(&value)));
    }
    match payload_json(record.payload.as_deref()) {
        // JSON escapes what a terminal could take for a command, as far as it is ASCII.
        Value::String(text) => say(format_args!("  payload  {}", printable(&text))),
        Value::Null => say("  payload  none: a tombstone"),
        json => {
            let pretty = serde_json::to_string_pretty(&json).unwrap_or_else(|_| json.to_string());
            say(format_args!("  payload  {}", pretty.lines().map(printable).collect::<Vec<_>>().join("\n           ")));
        }
    }
}

fn record_json(record: &WaitingRecord) -> Value {
    json!({
        "id": record.id,
        "group_id": record.group_id,
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.record_offset,
        "record_key": record.record_key,
        "unordered_key": record.unordered_key,
        "event_id": record.event_id,
        "event_type": record.event_type,
        "aggregate_version": record.aggregate_version,
        "headers": record.headers,
        "payload": payload_json(record.payload.as_deref()),
        "reason": record.reason,
        "fingerprint": record.fingerprint,
        "created_at": record.created_at,
    })
}

/// As JSON if it is, else as text, else in hexadecimal digits after `\x`.
fn payload_json(payload: Option<&[u8]>) -> Value {
    let Some(bytes) = payload else { return Value::Null };
    serde_json::from_slice(bytes).unwrap_or_else(|_| match str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => format!("\\x{}", hex::encode(bytes)).into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_shown_as_what_they_are() {
        assert_eq!(payload_json(Some(br#"{"id": 7}"#)), json!({"id": 7}));
        assert_eq!(payload_json(Some(b"not json")), json!("not json"));
        assert_eq!(payload_json(Some(b"\xff\x01")), json!("\\xff01"));
        assert_eq!(payload_json(None), Value::Null);
    }
}
