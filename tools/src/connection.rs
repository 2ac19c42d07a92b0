//! A connection to the database for as long as a command takes.

use anyhow::{Context, Result};
use shared::db::DatabaseConfig;
use sqlx::{Connection, PgConnection};

use crate::signals::StopSignals;

/// Connects.
pub async fn connect(database: &DatabaseConfig) -> Result<PgConnection> {
    database.connector().connect().await.context("cannot connect to the database")
}

/// Connects, does `work` and closes the connection, unless a signal comes first.
pub async fn with_connection<T>(
    database: &DatabaseConfig,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T>,
) -> Result<T> {
    let mut signals = StopSignals::listen()?;
    let whole = async {
        let mut connection = connect(database).await?;
        let done = work(&mut connection).await;
        // What was to be done is done or not by now, however this ends.
        let _ = connection.close().await;
        done
    };
    signals.interrupts(Box::pin(whole)).await
}
