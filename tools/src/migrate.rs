//! `outrider migrate`: brings a database to this build's schema.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use sqlx::migrate::{Migrate, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};

use crate::signals::StopSignals;
use crate::test::given;
use crate::workspace::Workspace;

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

/// Applies what is missing to the database in the environment and says what that was.
pub async fn run(args: MigrateArgs) -> Result<ExitCode> {
    let options = database_from_env()?;
    let applied = StopSignals::listen()?.interrupts(migrate(&options)).await?;
    if args.json {
        println!("{}", serde_json::json!({ "applied": applied }));
    } else if applied.is_empty() {
        println!("nothing to do, the schema is current");
    } else {
        for Applied { version, description } in &applied {
            println!("applied {version} {description}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Applies what is missing to a database, and says what that was. Several may do so at the same time.
pub async fn migrate(database: &PgConnectOptions) -> Result<Vec<Applied>> {
    let migrator = migrator().await?;
    let mut connection = PgConnection::connect_with(database).await.context("cannot connect to the database")?;
    let before = versions(&migrator, &mut connection).await?;
    migrator
        .run_direct(None, &mut connection, false)
        .await
        .context("the migration failed; a failed one leaves nothing behind")?;
    let after = versions(&migrator, &mut connection).await?;
    connection.close().await?;
    Ok(migrator
        .iter()
        .filter(|migration| after.contains(&migration.version) && !before.contains(&migration.version))
        .map(|migration| Applied { version: migration.version, description: migration.description.to_string() })
        .collect())
}

async fn versions(migrator: &Migrator, connection: &mut PgConnection) -> Result<Vec<i64>> {
    connection.ensure_migrations_table(&migrator.table_name).await?;
    let applied = connection.list_applied_migrations(&migrator.table_name).await?;
    Ok(applied.into_iter().map(|migration| migration.version).collect())
}

async fn migrator() -> Result<Migrator> {
    let folder = Workspace::required()?.root().join("migrations");
    Migrator::new(folder).await.context("cannot read the migrations")
}

/// The database in `DATABASE_URL`, or in `DB_HOST`, `DB_USER`, `DB_PASSWORD`, `DB_NAME` and `DB_PORT`.
pub fn database_from_env() -> Result<PgConnectOptions> {
    let options = match given("DATABASE_URL") {
        Some(url) => url.parse().context("DATABASE_URL is no Postgres URL")?,
        None => database_from_parts()?,
    };
    Ok(options.application_name("outrider").disable_statement_logging())
}

fn database_from_parts() -> Result<PgConnectOptions> {
    let needed = |name: &str| given(name).with_context(|| format!("neither DATABASE_URL nor {name} is set"));
    let mut options =
        PgConnectOptions::new().host(&needed("DB_HOST")?).username(&needed("DB_USER")?).database(&needed("DB_NAME")?);
    if let Some(password) = given("DB_PASSWORD") {
        options = options.password(&password);
    }
    if let Some(port) = given("DB_PORT") {
        options = options.port(port.parse().context("DB_PORT is no port")?);
    }
    Ok(options)
}
