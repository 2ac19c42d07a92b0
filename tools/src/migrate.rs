//! `outrider migrate`: brings a database to this build's schema.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;
use shared::config::Env;
use shared::db::{Connector, DatabaseConfig, MIGRATOR, refuse_encoding};
use sqlx::migrate::Migrate;
use sqlx::{Connection, Executor, PgConnection};

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
        println!("{}", serde_json::to_string(&migrated)?);
        return Ok(ExitCode::SUCCESS);
    }
    if migrated.applied.is_empty() {
        println!("nothing to do, the schema is current");
    }
    for Applied { version, description } in &migrated.applied {
        println!("applied {version} {description}");
    }
    for note in &migrated.notes {
        println!("note: {note}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Applies what is missing to a database, and says what that was. Several may do so at the same time.
pub async fn migrate(database: Connector) -> Result<Migrated> {
    database.refuse_poolers().await?;
    let mut connection = database.connect().await.context("cannot connect to the database")?;
    refuse_encoding(&mut connection).await?;
    check_control_function(&mut connection).await?;
    let before = versions(&mut connection).await?;
    MIGRATOR
        .run_direct(None, &mut connection, false)
        .await
        .context("the migration failed; a failed one leaves nothing behind")?;
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

/// Checks that the function can be called by which relays tell the database from a copy of it in another cluster. Some who run Postgres for
/// others take that right away.
async fn check_control_function(connection: &mut PgConnection) -> Result<()> {
    // Relays call it under their role, which has it from everybody's rights or as a member of the login's.
    let (login, may): (String, bool) =
        sqlx::query_as("SELECT current_user::text, has_function_privilege('pg_control_system()', 'EXECUTE')")
            .fetch_one(connection)
            .await?;
    ensure!(
        may,
        "the role {login} may not call pg_control_system(), by which relays tell the database from a copy that was restored elsewhere: have an \
         administrator run `GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC`"
    );
    Ok(())
}

/// Takes the right to create objects in the schema `public` from everybody, which databases of before Postgres 15 have: functions that run
/// with their owner's rights must find nothing there that somebody else has put in their way. Returns what is left to do if that is
/// not ours to change.
async fn keep_strangers_out(connection: &mut PgConnection) -> Result<Option<String>> {
    let may_create = "SELECT has_schema_privilege('public', 'public', 'CREATE')";
    if !sqlx::query_scalar::<_, bool>(may_create).fetch_one(&mut *connection).await? {
        return Ok(None);
    }
    // Whoever does not own the schema gets a warning, and nothing is revoked.
    connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC").await?;
    if !sqlx::query_scalar::<_, bool>(may_create).fetch_one(&mut *connection).await? {
        return Ok(None);
    }
    let owner: String = sqlx::query_scalar("SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'public'")
        .fetch_one(connection)
        .await?;
    Ok(Some(format!(
        "every login may create objects in the schema public, which only its owner can change: have {owner} run \
         `REVOKE CREATE ON SCHEMA public FROM PUBLIC`"
    )))
}

async fn versions(connection: &mut PgConnection) -> Result<Vec<i64>> {
    connection.ensure_migrations_table(&MIGRATOR.table_name).await?;
    let applied = connection.list_applied_migrations(&MIGRATOR.table_name).await?;
    Ok(applied.into_iter().map(|migration| migration.version).collect())
}
