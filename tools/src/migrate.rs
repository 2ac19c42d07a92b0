//! `outrider migrate`: brings a database to this build's schema.

use std::process::ExitCode;

use anyhow::{Context, Error, Result, anyhow, ensure};
use clap::Args;
use serde::Serialize;
use shared::config::Env;
use shared::db::{Connector, DatabaseConfig, MIGRATOR, how_to_know_cluster, refuse_encoding, sql_state, strangers};
use sqlx::migrate::{Migrate, MigrateError};
use sqlx::{Connection, Executor, PgConnection};

use crate::console::say;
use crate::signals::StopSignals;

/// How the result is told.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// A migration that was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// Its number, the time stamp in the name of its file.
    pub version: i64,
    /// What it does, in a few words.
    pub description: String,
}

/// What `outrider migrate` has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Migrated {
    /// The migrations that were missing.
    pub applied: Vec<Applied>,
    /// What somebody with more rights should do.
    pub notes: Vec<String>,
}

/// Applies what is missing to the database in the environment and says what that was.
pub async fn run(args: MigrateArgs) -> Result<ExitCode> {
    let database = DatabaseConfig::from_env(&Env::load()?, "outrider")?;
    let work = Box::pin(migrate(database.connector()));
    let migrated = StopSignals::listen()?.interrupts(work).await?;
    if args.json {
        say(serde_json::to_string(&migrated)?);
        return Ok(ExitCode::SUCCESS);
    }
    if migrated.applied.is_empty() {
        say("nothing to do, the schema is current");
    }
    for Applied { version, description } in &migrated.applied {
        say(format_args!("applied {version} {description}"));
    }
    for note in &migrated.notes {
        say(format_args!("note: {note}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Applies what is missing to a database, and says what that was. Several may do so at the same time, and any of them may be killed: each
/// migration is one transaction with its row in `_sqlx_migrations`.
pub async fn migrate(database: Connector) -> Result<Migrated> {
    database.refuse_poolers().await?;
    let mut connection = database.connect().await.context("cannot connect to the database")?;
    lift_limits(&mut connection).await?;
    refuse_encoding(&mut connection).await?;
    check_control_function(&mut connection).await?;
    take_turn(&mut connection).await?;
    let before = versions(&mut connection).await?;
    MIGRATOR.run_direct(None, &mut connection, false).await.map_err(explain)?;
    let after = versions(&mut connection).await?;
    let notes = keep_strangers_out(&mut connection).await?.into_iter().collect();
    connection.close().await?;
    let applied = MIGRATOR
        .iter()
        .filter(|migration| after.contains(&migration.version) && !before.contains(&migration.version))
        .map(|migration| Applied { version: migration.version, description: migration.description.to_string() })
        .collect();
    Ok(Migrated { applied, notes })
}

/// Limits that an administrator has set are for statements of services: the same long migration would run into them each time.
async fn lift_limits(connection: &mut PgConnection) -> Result<()> {
    // The first alone, and quick: it holds for itself, too.
    connection.execute("SET statement_timeout TO 0").await?;
    connection
        .execute(
            "SELECT set_config(name, '0', false) FROM pg_settings
            WHERE name IN ('lock_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')",
        )
        .await?;
    Ok(())
}

/// Waits until no other `outrider migrate` is at work on the database. The connection has the turn until it ends.
///
/// The library that applies migrations has such a lock too, but two that come to an empty database make its table before they have it.
async fn take_turn(connection: &mut PgConnection) -> Result<()> {
    let turn = "SELECT pg_try_advisory_lock(hashtext('outrider_migrate'))";
    if sqlx::query_scalar(turn).fetch_one(&mut *connection).await? {
        return Ok(());
    }
    let other: Option<i32> = sqlx::query_scalar(
        "SELECT l.pid FROM pg_locks l JOIN pg_database d ON d.oid = l.database
        WHERE d.datname = current_database() AND l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
            AND (l.classid::bigint << 32 | l.objid::bigint) = hashtext('outrider_migrate') LIMIT 1",
    )
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(pid) = other {
        eprintln!(
            "another `outrider migrate` is at work on this database, waiting for it: pg_stat_activity shows it with pid {pid}"
        );
    }
    connection.execute("SELECT pg_advisory_lock(hashtext('outrider_migrate'))").await?;
    Ok(())
}

/// What to do about a migration that could not be applied.
fn explain(error: MigrateError) -> Error {
    match error {
        MigrateError::Dirty(version) => anyhow!(
            "the row of migration {version} in _sqlx_migrations has success = false, which `outrider migrate` never leaves behind: where none of \
             its objects exist, run `DELETE FROM _sqlx_migrations WHERE version = {version}`, where all do, \
             `UPDATE _sqlx_migrations SET success = true WHERE version = {version}`, and then `outrider migrate` again"
        ),
        MigrateError::VersionMissing(version) => anyhow!(
            "the database has migration {version}, which this build does not know: it was brought to a newer release's schema, so use the \
             `outrider` of that release"
        ),
        MigrateError::VersionMismatch(version) => anyhow!(
            "migration {version} of the database differs from this build's: it was applied by a build that was no release, so go on with that \
             one, or restore a backup from before"
        ),
        MigrateError::ExecuteMigration(error, version) if sql_state(&error).as_deref() == Some("55P03") => anyhow!(
            "migration {version} was given up, and nothing of it is left: another session held a lock for longer than migrations let writers \
             wait for them; run `outrider migrate` again when its transaction has ended (pg_stat_activity, the oldest xact_start first)"
        ),
        other => Error::new(other)
            .context("the migration failed; a failed one leaves nothing behind, so run it again when this is mended"),
    }
}

/// Checks that the function can be called by which relays tell the database from a copy of it in another cluster. Some who run Postgres for
/// others take that right away.
async fn check_control_function(connection: &mut PgConnection) -> Result<()> {
    // Services and operators call it by a function of ours, which has the rights of the role that migrates.
    let (role, may): (String, bool) =
        sqlx::query_as("SELECT quote_ident(current_user), has_function_privilege('pg_control_system()', 'EXECUTE')")
            .fetch_one(connection)
            .await?;
    ensure!(may, how_to_know_cluster(&role));
    Ok(())
}

/// Takes the right to create objects in the schema `public` from everybody, which databases of before Postgres 15 have: functions that run
/// with their owner's rights must find nothing there that somebody else has put in their way. Returns what is left to do if that is
/// not ours to change.
async fn keep_strangers_out(connection: &mut PgConnection) -> Result<Option<String>> {
    if strangers(connection).await?.is_none() {
        return Ok(None);
    }
    // A role that does not own the schema gets a warning, and nothing is revoked.
    connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC").await?;
    Ok(strangers(connection).await?.map(|left| left.to_string()))
}

async fn versions(connection: &mut PgConnection) -> Result<Vec<i64>> {
    connection.ensure_migrations_table(&MIGRATOR.table_name).await?;
    let applied = connection.list_applied_migrations(&MIGRATOR.table_name).await?;
    Ok(applied.into_iter().map(|migration| migration.version).collect())
}
