//! `outrider status`: how the pipeline is doing, from Postgres, and what Kafka adds of the consumer groups. Each part of it is looked at and described in a module of its own.

pub mod format;
pub mod groups;
mod kafka_groups;
pub mod relay;
pub mod slots;
pub(crate) mod table;
pub mod transactions;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use shared::config::Env;
use shared::db::{DatabaseConfig, check_schema};
use shared::kafka::KafkaConfig;
use sqlx::PgConnection;

use crate::connection;
use crate::signals::StopSignals;

/// How long a server may take to answer.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// How the result is told.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print the result as JSON, one line a look
    #[arg(long)]
    json: bool,
    /// Look again and again, with this many seconds between, until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..))]
    watch: Option<u64>,
}

/// How the pipeline is doing.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The relays, and what they have published and not.
    pub relay: relay::RelayStatus,
    /// The consumer groups.
    pub consumers: groups::Groups,
    /// What stays open.
    pub transactions: transactions::Transactions,
    /// What keeps the server from cleaning up for a reader elsewhere.
    pub slots: Vec<slots::Slot>,
}

/// Looks at the database in the environment, and prints what it finds.
pub async fn run(args: StatusArgs) -> Result<ExitCode> {
    let env = Env::load()?;
    let database = DatabaseConfig::from_env(&env, "outrider status")?;
    // Whoever may only look at Postgres sees what that knows.
    let kafka = env.var("KAFKA_BROKERS").map(|_| KafkaConfig::from_env(&env)).transpose()?;
    StopSignals::listen()?.interrupts(Box::pin(show(&database, kafka.as_ref(), &args))).await?;
    Ok(ExitCode::SUCCESS)
}

async fn show(database: &DatabaseConfig, kafka: Option<&KafkaConfig>, args: &StatusArgs) -> Result<()> {
    let mut connection = connect(database).await?;
    loop {
        let status = look(&mut connection, kafka).await.context("cannot read the status")?;
        let text = if args.json {
            format!("{}\n", serde_json::to_string(&status)?)
        } else if args.watch.is_some() {
            // To the upper left, and away with what was there.
            format!("\x1b[H\x1b[2J{status}")
        } else {
            status.to_string()
        };
        let mut out = std::io::stdout();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            // The reader has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
        match args.watch {
            Some(secs) => tokio::time::sleep(Duration::from_secs(secs)).await,
            None => return Ok(()),
        }
    }
}

/// One connection to a database that has this build's schema.
pub(crate) async fn connect(database: &DatabaseConfig) -> Result<PgConnection> {
    // Many short ranges of indexes, in the order of the index. A planner without fresh statistics, as of a partition that is just being
    // filled, would rather collect all rows of a lane and sort them. What waits for a lock gives up, rather than wait behind a migration.
    let settings = [
        ("jit", "off"),
        ("enable_seqscan", "off"),
        ("enable_bitmapscan", "off"),
        ("enable_sort", "off"),
        ("lock_timeout", "2s"),
        ("statement_timeout", "30s"),
    ];
    let database = database.clone().with_settings(settings);
    let connected = tokio::time::timeout(CONNECT_PATIENCE, connection::connect(&database)).await;
    let mut connection =
        connected.with_context(|| format!("the database has not answered for {} s", CONNECT_PATIENCE.as_secs()))??;
    check_schema(&mut connection).await?;
    Ok(connection)
}

/// Looks once, which takes about a second.
pub async fn look(connection: &mut PgConnection, kafka: Option<&KafkaConfig>) -> Result<Status> {
    let before = groups::before(connection).await?;
    let relay = relay::look(connection).await?;
    let consumers = groups::look(connection, &before, kafka).await?;
    let transactions = transactions::look(connection).await?;
    Ok(Status { relay, consumers, transactions, slots: slots::look(connection).await? })
}
