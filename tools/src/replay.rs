//! `outrider replay`: publishes events again, from the partitions of the outbox that are still there.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use relay::RelayConfig;
use relay::config::duration;
use relay::replay::{Replay, Selection, Summary, Target};
use serde::Serialize;
use shared::config::Env;

use crate::console::say;
use crate::signals::StopSignals;

/// What `--help` shows.
pub const EXAMPLES: &str = "Examples:
  outrider replay --key order/17 --dry-run
  outrider replay --since 2h --topic orders-again
  outrider replay --from-id 1000000 --to-id 2000000 --rate 5000
  outrider replay --since 2026-11-24T10:00:00Z --type order --json";

/// Which events, and where to.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// Those of one aggregate, by its type and id
    #[arg(long, value_name = "TYPE/ID", value_parser = parse_key, required_unless_present_any = ["since", "from_id", "to_id"])]
    key: Option<(String, String)>,

    /// Those of one aggregate type
    #[arg(long = "type", value_name = "TYPE")]
    aggregate_type: Option<String>,

    /// Those that occurred since then: a time (RFC 3339), or so long ago (30s, 15m, 2h, 7d)
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    since: Option<DateTime<Utc>>,

    /// Those from this outbox id on
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(i64).range(1..))]
    from_id: Option<i64>,

    /// Those up to this outbox id
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(i64).range(1..))]
    to_id: Option<i64>,

    /// Send all of them to this topic, instead of where the relay sends each
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,

    /// Only say what would be published
    #[arg(long)]
    dry_run: bool,

    /// Events a second at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What was, or would be, published.
#[derive(Debug, Serialize)]
struct Report {
    events: u64,
    keys: u64,
    first_id: Option<i64>,
    last_id: Option<i64>,
    first_at: Option<DateTime<Utc>>,
    last_at: Option<DateTime<Utc>>,
    by_type: std::collections::BTreeMap<String, u64>,
    left_out: u64,
    published: u64,
}

/// Shows what the selection comes to, and publishes it unless that was all that was asked for. The database, the brokers and the routes
/// are those of the relay's environment.
pub async fn run(args: ReplayArgs) -> Result<ExitCode> {
    let config = RelayConfig::from_env(&Env::load()?)?;
    StopSignals::listen()?.interrupts(Box::pin(replay(&config, args))).await
}

async fn replay(config: &RelayConfig, args: ReplayArgs) -> Result<ExitCode> {
    if args.from_id.zip(args.to_id).is_some_and(|(from, to)| from > to) {
        bail!("--from-id is higher than --to-id: there is nothing between them");
    }
    let selection = Selection {
        key: args.key,
        aggregate_type: args.aggregate_type,
        since: args.since,
        from_id: args.from_id.unwrap_or(1),
        to_id: args.to_id.unwrap_or(i64::MAX),
    };
    let database = config.database.open().await?;
    let mut replay = Replay::open(&database, selection).await?;
    let summary = replay.summarize().await.context("cannot look through the outbox")?;
    if !args.json {
        say(describe(&summary, args.topic.as_deref(), args.dry_run));
    }
    let mut published = 0;
    if !args.dry_run && summary.events > 0 {
        let bar = ProgressBar::new(summary.events).with_style(style());
        let target = Target { topic: args.topic, rate: args.rate };
        published = replay.publish(config, &target, |acknowledged| bar.set_position(acknowledged)).await?;
        bar.finish_and_clear();
    }
    if args.json {
        say(serde_json::to_string(&report(summary, published))?);
    } else if !args.dry_run {
        say(format_args!("{published} events published again"));
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(summary: &Summary, topic: Option<&str>, dry_run: bool) -> String {
    let mut lines = Vec::new();
    let verb = if dry_run { "would be" } else { "will be" };
    if let (Some((first_id, last_id)), Some((first, last))) = (summary.ids, summary.times) {
        let to = topic.map_or_else(String::new, |topic| format!(" to {topic}"));
        lines.push(format!(
            "{} events of {} keys {verb} published again{to}: ids {first_id} to {last_id}, from {} to {}",
            summary.events,
            summary.keys,
            first.to_rfc3339_opts(SecondsFormat::Secs, true),
            last.to_rfc3339_opts(SecondsFormat::Secs, true)
        ));
        lines.extend(summary.by_type.iter().map(|(aggregate_type, events)| format!("  {events:>12} {aggregate_type}")));
    } else {
        lines.push("no event of the outbox is selected; older ones may have been dropped (RELAY_RETENTION)".to_owned());
    }
    if summary.left_out > 0 {
        lines.push(format!("  {:>12} are still to be published, or parked: left to the relay", summary.left_out));
    }
    lines.join("\n")
}

fn report(summary: Summary, published: u64) -> Report {
    Report {
        events: summary.events,
        keys: summary.keys,
        first_id: summary.ids.map(|ids| ids.0),
        last_id: summary.ids.map(|ids| ids.1),
        first_at: summary.times.map(|times| times.0),
        last_at: summary.times.map(|times| times.1),
        by_type: summary.by_type,
        left_out: summary.left_out,
        published,
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{bar:30} {pos}/{len} events, {per_sec}, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// `TYPE/ID`; a type with a '/' in it can be told with `--type`.
fn parse_key(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((aggregate_type, id)) if !aggregate_type.is_empty() => Ok((aggregate_type.to_owned(), id.to_owned())),
        _ => Err("is not of the form TYPE/ID, as in order/17".to_owned()),
    }
}

/// A time, or so long ago.
pub(crate) fn parse_since(text: &str) -> Result<DateTime<Utc>, String> {
    if let Some(ago) = duration::parse(text) {
        return Ok(Utc::now() - ago);
    }
    DateTime::parse_from_rfc3339(text)
        .map(Into::into)
        .map_err(|_| "is neither a time such as 2026-11-24T10:00:00Z nor a length such as 15m or 2h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_times_are_read() {
        assert_eq!(parse_key("order/17/a"), Ok(("order".to_owned(), "17/a".to_owned())));
        assert!(parse_key("order").is_err() && parse_key("/17").is_err());
        assert!(parse_since("2026-11-24T10:00:00Z").is_ok() && parse_since("yesterday").is_err());
        let ago = Utc::now() - parse_since("15m").expect("a length");
        assert!((899..=901).contains(&ago.num_seconds()), "{ago}");
    }

    #[test]
    fn an_empty_selection_says_so() {
        let text = describe(&Summary { left_out: 3, ..Summary::default() }, None, false);
        assert!(text.contains("no event") && text.contains("3 are still to be published"), "{text}");
    }
}
