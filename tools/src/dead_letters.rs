//! `outrider dead-letters`: what processors could not apply, and having it applied or giving it up.
//!
//! A key waits when one of its events fails; that event and all later ones of the key are in `dead_letters`. `replay` asks the processor
//! that has the key's partition to apply them now, in order, by a row in `dead_letter_requests`; `discard` gives records up.

use std::process::ExitCode;

use anyhow::{Result, bail};
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use shared::config::Env;
use shared::db::DatabaseConfig;
use sqlx::{Connection, PgConnection};

use crate::connection::connect;
use crate::console::{confirmed, say};
use crate::parked;
use crate::replay::parse_since;
use crate::signals::StopSignals;
use key::RecordKey;
use store::Selection;
use store::discard::{Discard, Refusal, What};

pub mod key;
pub mod list;
pub mod replay;
pub mod show;
pub mod store;

/// What is to be done.
#[derive(Debug, Args)]
pub struct DeadLettersArgs {
    #[command(subcommand)]
    command: DeadLettersCommand,
}

#[derive(Debug, Subcommand)]
enum DeadLettersCommand {
    /// Show the keys that wait, those that failed first before the others, or count them by the kind of their failure
    #[command(after_help = list::EXAMPLES)]
    List(list::ListArgs),

    /// Show all of one key or record: headers, payload, why it failed, and what operators did
    #[command(after_help = show::EXAMPLES)]
    Show(show::ShowArgs),

    /// Have keys that wait applied now, each in its order
    ///
    /// Says first how much would move and, unless --yes is given, runs the handlers in transactions that are rolled back and says what
    /// would come of it. The processor that has a key's partition does the work; this command waits for it. Interrupted, it takes back
    /// what has not been done. The exit code is 1 when something still waits, or nobody has done it.
    #[command(after_help = replay::EXAMPLES)]
    Replay(replay::ReplayArgs),

    /// Give records up for good: the first of a key, which is the one that failed, all of a key, or one by its id
    ///
    /// Who did it, when and why stays in `dead_letter_log`.
    #[command(after_help = DISCARD_EXAMPLES)]
    Discard(DiscardArgs),
}

const DISCARD_EXAMPLES: &str = "Examples:
  outrider dead-letters discard --key 17 --why 'a test order'
  outrider dead-letters discard --key 17 --all --why 'the customer is gone'
  outrider dead-letters discard --id 4711 --why 'no event at all'";

/// Which keys, as `list` and `replay` are told.
#[derive(Debug, Args)]
pub struct Which {
    /// Only of this consumer group
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,

    /// Only of this topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,

    /// Only this key of records; \x and hexadecimal digits for one that is no text
    #[arg(long, value_name = "KEY", value_parser = RecordKey::parse)]
    key: Option<RecordKey>,

    /// Only the key whose first record has this id, or the record without a key that has it
    #[arg(long, value_name = "ID")]
    id: Option<i64>,

    /// Only where an event of this type has failed
    #[arg(long = "type", value_name = "TYPE", id = "event_type")]
    event_type: Option<String>,

    /// Only where the reason holds this text, in any case
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// Only failures of this kind, as `list --group-by reason` shows it
    #[arg(long, value_name = "FINGERPRINT")]
    fingerprint: Option<String>,

    /// Only what last failed since then: a time (RFC 3339), or so long ago (30s, 15m, 2h, 7d)
    #[arg(long, value_name = "WHEN", value_parser = parse_since)]
    since: Option<DateTime<Utc>>,
}

impl Which {
    fn selection(&self) -> Selection<'_> {
        Selection {
            group: self.group.as_deref(),
            topic: self.topic.as_deref(),
            key: self.key.as_ref().map(|key| key.0.as_slice()),
            event_type: self.event_type.as_deref(),
            reason: self.reason.as_deref(),
            fingerprint: self.fingerprint.as_deref(),
            since: self.since,
            state: None,
            id: self.id,
        }
    }
}

/// Which records to give up.
#[derive(Debug, Args)]
struct DiscardArgs {
    /// One record, as `show` names it
    #[arg(long, value_name = "ID", required_unless_present = "key", conflicts_with = "key")]
    id: Option<i64>,

    /// The first record of this key
    #[arg(long, value_name = "KEY", value_parser = RecordKey::parse)]
    key: Option<RecordKey>,

    /// All records of the key
    #[arg(long, requires = "key")]
    all: bool,

    /// The consumer group, should the key wait in several
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,

    /// The topic, should the key wait in several
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,

    /// Do not ask before all records of a key are given up
    #[arg(long)]
    yes: bool,

    /// Why, for the record
    #[arg(long, value_name = "TEXT", value_parser = non_blank)]
    why: String,
}

pub(crate) fn non_blank(text: &str) -> Result<String, String> {
    if text.trim().is_empty() { Err("must say something".to_owned()) } else { Ok(text.to_owned()) }
}

/// Does it, in the database of the environment.
pub async fn run(args: DeadLettersArgs) -> Result<ExitCode> {
    let database = DatabaseConfig::from_env(&Env::load()?, "outrider")?;
    let mut signals = StopSignals::listen()?;
    let mut connection = signals.interrupts(Box::pin(connect(&database))).await?;
    let code = match args.command {
        DeadLettersCommand::List(args) => signals.interrupts(Box::pin(list::run(&mut connection, &args))).await,
        DeadLettersCommand::Show(args) => signals.interrupts(Box::pin(show::run(&mut connection, &args))).await,
        // Has something to do when it is interrupted.
        DeadLettersCommand::Replay(args) => replay::run(&mut connection, &args, &mut signals).await,
        DeadLettersCommand::Discard(args) => signals.interrupts(Box::pin(discard(&mut connection, &args))).await,
    };
    // What was to be done is done or not by now, however this ends.
    let _ = connection.close().await;
    code
}

async fn discard(connection: &mut PgConnection, args: &DiscardArgs) -> Result<ExitCode> {
    let what = match (args.id, &args.key) {
        (_, Some(key)) if args.all => What::All(&key.0),
        (_, Some(key)) => What::First(&key.0),
        (Some(id), None) => What::Id(id),
        (None, None) => bail!("--id or --key says what to give up"),
    };
    if args.all && !args.yes {
        let selection = Selection {
            group: args.group.as_deref(),
            topic: args.topic.as_deref(),
            key: args.key.as_ref().map(|key| key.0.as_slice()),
            ..Selection::default()
        };
        let found = store::waiting_keys(connection, &selection, 20).await?;
        list::print_keys(&found);
        if found.events > 1 && !confirmed(&format!("give {} up for good?", found.totals())).await? {
            bail!("not confirmed; --yes does without");
        }
    }
    let os_user = parked::actor().os_user;
    let (group, topic) = (args.group.as_deref(), args.topic.as_deref());
    let wanted = Discard { what, group, topic, why: &args.why, os_user: &os_user };
    let discarded = match store::discard::discard(connection, &wanted).await? {
        Ok(discarded) => discarded,
        Err(refusal @ Refusal::NotThere) => {
            say(refusal);
            return Ok(ExitCode::FAILURE);
        }
        Err(refusal) => return Err(refusal.into()),
    };
    for record in &discarded.records {
        let event = record.event_id.map_or_else(|| "that is no event".to_owned(), |id| format!("with event {id}"));
        let version = record.aggregate_version.map_or_else(String::new, |version| format!(", version {version}"));
        say(format_args!("gave up record {} {event}{version}", record.id));
    }
    let Some(key) = &discarded.record_key else { return Ok(ExitCode::SUCCESS) };
    match (discarded.remaining, discarded.state.as_deref()) {
        (0, _) => say("nothing of the key waits any more: it flows again"),
        (remaining, Some("retrying" | "waiting")) => {
            say(format_args!("{} of the key still wait; a processor tries them by itself", list::events(remaining)));
        }
        (remaining, _) => say(format_args!(
            "{} of the key still wait; to have them applied: outrider dead-letters replay --key '{key}'",
            list::events(remaining)
        )),
    }
    Ok(ExitCode::SUCCESS)
}
