//! `outrider dead-letters replay`: asks the processors to apply what waits, and says what came of it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;
use sqlx::PgConnection;

use super::Which;
use super::list::{self, events};
use super::store::requests::{Asker, take_back};
use super::store::{self, Found};
use crate::console::{confirmed, say};
use crate::parked;
use crate::parked::list::{counted, printable};
use crate::signals::{Interrupted, StopSignals};
use rounds::{Outcome, Round};

mod rounds;

/// What `--help` shows.
pub const EXAMPLES: &str = "Examples:
  outrider dead-letters replay --key 17
  outrider dead-letters replay --fingerprint 51d1a3f08c2ab9e0 --dry-run
  outrider dead-letters replay --type order.created --since 2h --rate 100 --yes";

/// Keys in one run. More are left to the next one: they are held in memory.
const KEYS_MAX: i64 = 100_000;

/// Keys that are shown.
const SHOWN_MAX: usize = 20;

/// Which keys, and how.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    #[command(flatten)]
    which: Which,

    /// Only find out what would come of it: the handlers run, and all of it is rolled back
    #[arg(long)]
    dry_run: bool,

    /// Keys a second at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,

    /// Neither rehearse nor ask before keys are applied
    #[arg(long)]
    yes: bool,

    /// Give up when no processor has done anything for so many seconds
    #[arg(long, value_name = "SECS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    wait: u64,

    /// Print the result as JSON; with --yes or --dry-run
    #[arg(long)]
    json: bool,
}

/// Has keys applied, or finds out what would come of it.
pub async fn run(connection: &mut PgConnection, args: &ReplayArgs, signals: &mut StopSignals) -> Result<ExitCode> {
    if args.json && !args.yes && !args.dry_run {
        bail!("--json asks nobody: it takes --yes or --dry-run");
    }
    let selection = args.which.selection();
    let mut found =
        signals.interrupts(async { Ok(store::waiting_keys(connection, &selection, KEYS_MAX).await?) }).await?;
    if found.keys == 0 && !args.json {
        say("nothing that fits waits");
        return Ok(if args.which.key.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    if !args.json {
        show(&mut found);
    }
    if !args.dry_run && !args.yes {
        let rehearsed = round(connection, signals, &found, args, true).await?;
        print(&found, &rehearsed, true);
        let question = format!("apply {}?", found.totals());
        if !signals.interrupts(confirmed(&question)).await? {
            bail!("not confirmed; --yes does without");
        }
    }
    let outcome = round(connection, signals, &found, args, args.dry_run).await?;
    if args.json {
        say(as_json(&found, &outcome, args.dry_run));
    } else {
        print(&found, &outcome, args.dry_run);
    }
    let all_done = outcome.untaken == 0 && (args.dry_run || outcome.still_waiting.is_empty());
    Ok(if all_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Shows how much would move.
fn show(found: &mut Found) {
    let mut rest = found.rows.split_off(found.rows.len().min(SHOWN_MAX));
    list::print_keys(found);
    found.rows.append(&mut rest);
    let shown = i64::try_from(found.rows.len()).unwrap_or(i64::MAX);
    if shown < found.keys {
        say(format_args!("the first {shown} keys are taken; run it again for the others"));
    }
}

/// Asks for all keys and waits for what comes of them. Whatever ends it, no request of it is left open.
async fn round(
    connection: &mut PgConnection,
    signals: &mut StopSignals,
    found: &Found,
    args: &ReplayArgs,
    is_dry_run: bool,
) -> Result<Outcome> {
    let os_user = parked::actor().os_user;
    let run = format!("run {}-{:08x}", std::process::id(), rand::random::<u32>());
    let asker = Asker { run: &run, os_user: &os_user };
    let round =
        Round { keys: &found.rows, is_dry_run, rate: args.rate, patience: Duration::from_secs(args.wait), asker };
    let outcome = signals.interrupts(Box::pin(round.carry_out(connection))).await;
    // On the connection that asked: a statement that was interrupted is over before this one begins. It may have to wait for a processor
    // that is at one of them, which a second signal cuts short.
    let taken_back = signals.interrupts(async { Ok(take_back(connection, asker).await?) }).await;
    match outcome {
        Ok(outcome) => {
            taken_back.context("cannot take back what was not done")?;
            Ok(outcome)
        }
        Err(error) => {
            match taken_back {
                Ok(requests) if error.is::<Interrupted>() => {
                    eprintln!("outrider: took back {requests} requests that nobody had carried out");
                }
                Ok(_) => {}
                Err(error) => eprintln!("outrider: requests may be left in dead_letter_requests: {error:#}"),
            }
            Err(error)
        }
    }
}

fn print(found: &Found, outcome: &Outcome, is_dry_run: bool) {
    let (applied, wait) = if is_dry_run { ("would be applied", "would still wait") } else { ("applied", "still wait") };
    say(format_args!(
        "{}{} of {} {applied}",
        if is_dry_run { "dry run: " } else { "" },
        events(outcome.applied),
        keys(outcome.answered)
    ));
    for (place, answer) in outcome.still_waiting.iter().take(SHOWN_MAX) {
        let reason = answer.reason.as_deref().map_or_else(|| more(is_dry_run).to_owned(), printable);
        say(format_args!("  {}: {} {wait}: {reason}", list::name(&found.rows[*place]), events(answer.waiting)));
    }
    if !outcome.still_waiting.is_empty() {
        let waiting: i64 = outcome.still_waiting.iter().map(|(_, answer)| answer.waiting).sum();
        let count = i64::try_from(outcome.still_waiting.len()).unwrap_or(i64::MAX);
        say(format_args!("{} {wait}", counted(count, waiting)));
    }
    if outcome.untaken > 0 {
        say(format_args!(
            "no processor took {} in time; the requests are taken back: start one of the group, then run this again",
            keys(outcome.untaken)
        ));
    }
}

/// Why a key waits of which nothing has failed.
const fn more(is_dry_run: bool) -> &'static str {
    if is_dry_run {
        "it is longer than one transaction, and this rest was not tried"
    } else {
        "it is longer than one transaction, and goes on by itself"
    }
}

fn keys(count: usize) -> String {
    format!("{count} key{}", if count == 1 { "" } else { "s" })
}

fn as_json(found: &Found, outcome: &Outcome, is_dry_run: bool) -> serde_json::Value {
    let still_waiting = outcome.still_waiting.iter().map(|(place, answer)| {
        let key = &found.rows[*place];
        json!({
            "group_id": key.group_id,
            "topic": key.topic,
            "record_key": key.record_key,
            "dead_letter_id": key.dead_letter_id,
            "waiting": answer.waiting,
            "reason": answer.reason,
        })
    });
    json!({
        "dry_run": is_dry_run,
        "keys": found.keys,
        "events": found.events,
        "answered": outcome.answered,
        "applied": outcome.applied,
        "untaken": outcome.untaken,
        "still_waiting": still_waiting.collect::<Vec<_>>(),
    })
}
