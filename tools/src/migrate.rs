//! `outrider migrate`: brings a database to this build's schema.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use shared::config::Env;
use shared::db::{Connector, DatabaseConfig, MIGRATOR, refuse_encoding};
use sqlx::migrate::Migrate;
use sqlx::{Connection, PgConnection};

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

/// Applies what is missing to the database in the environment and says what that was.
pub async fn run(args: MigrateArgs) -> Result<ExitCode> {
    let database = DatabaseConfig::from_env(&Env::load()?, "outrider")?;
    let work = Box::pin(migrate(database.connector()));
    let applied = StopSignals::listen()?.interrupts(work).await?;
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
pub async fn migrate(database: Connector) -> Result<Vec<Applied>> {
    let mut connection = database.connect().await.context("cannot connect to the database")?;
    refuse_encoding(&mut connection).await?;
    let before = versions(&mut connection).await?;
    MIGRATOR
        .run_direct(None, &mut connection, false)
        .await
        .context("the migration failed; a failed one leaves nothing behind")?;
    let after = versions(&mut connection).await?;
    connection.close().await?;
    Ok(MIGRATOR
        .iter()
        .filter(|migration| after.contains(&migration.version) && !before.contains(&migration.version))
        .map(|migration| Applied { version: migration.version, description: migration.description.to_string() })
        .collect())
}

async fn versions(connection: &mut PgConnection) -> Result<Vec<i64>> {
    connection.ensure_migrations_table(&MIGRATOR.table_name).await?;
    let applied = connection.list_applied_migrations(&MIGRATOR.table_name).await?;
    Ok(applied.into_iter().map(|migration| migration.version).collect())
}
