//! All of the API's SQL, and what its failures mean.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::db::{
    ConnectError, Connector, Database, DatabaseConfig, PooledConnection, READ_ONLY, TAKES_WRITES, is_retryable,
    sql_state, words,
};
use sqlx::PgConnection;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::config::Limits;
use crate::domain::OrderId;
use crate::metrics::Metrics;

pub mod api_keys;
pub mod changes;
pub mod cursor_keys;
pub mod feed;
mod insert;
pub mod keys;
pub mod list;
pub mod timeline;
mod writer;

use changes::Versioned;
pub use insert::{NewOrders, Written};
pub use writer::{KeyConflict, Writer};

/// Why a statement was not carried out. Whether it may be tried again, and how, is decided here.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no connection to be had; nothing was written, and whoever asks next will fare no better.
    #[error("Postgres is out of reach: {}", words(.0))]
    Unreachable(#[source] sqlx::Error),
    /// Postgres refuses for now; nothing was written.
    #[error("Postgres refuses for now: {}", words(.0))]
    Unavailable(#[source] sqlx::Error),
    /// The connection was lost while the statement ran: it is not known whether it was carried out.
    #[error("the connection to Postgres was lost amid a statement: {}", words(.0))]
    InDoubt(#[source] sqlx::Error),
    /// Postgres refuses the values; nothing was written. Without the one that is refused, the others would be taken.
    #[error("Postgres refuses the rows: {}", words(.0))]
    Refused(#[source] sqlx::Error),
    /// An idempotency key is in the way: another transaction took it meanwhile, or its day has no partition. Nothing was written. The
    /// next try sees what that transaction did; orders without keys would be taken.
    #[error("an idempotency key is in the way: {}", words(.0))]
    Key(#[source] sqlx::Error),
    /// Anything else: a fault of ours. Nothing was written.
    #[error("{}", words(.0))]
    Broken(#[source] sqlx::Error),
}

impl StoreError {
    /// What Postgres says, or the client.
    #[must_use]
    pub const fn postgres(&self) -> &sqlx::Error {
        match self {
            Self::Unreachable(error)
            | Self::Unavailable(error)
            | Self::InDoubt(error)
            | Self::Refused(error)
            | Self::Key(error)
            | Self::Broken(error) => error,
        }
    }

    /// Whether its connection is of no use any more, though it is open: it leads to a server that takes no writes.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        sql_state(self.postgres()).is_some_and(|state| state == READ_ONLY)
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let Some(state) = sql_state(&error) else {
            return if is_retryable(&error) { Self::InDoubt(error) } else { Self::Broken(error) };
        };
        // The server ended the connection, possibly between the commit and its answer.
        if state.starts_with("57P") || state.starts_with("08") {
            return Self::InDoubt(error);
        }
        // The table is a partition if the key was taken, and the partitioned one if it has none.
        let table = error.as_database_error().and_then(|error| error.table());
        if state.starts_with("23") && table.is_some_and(|table| table.starts_with("idempotency_keys")) {
            return Self::Key(error);
        }
        // A check violation that names no constraint is an id for which the outbox has no
        // partition yet: no row is to blame, and it passes as soon as the relay has made the next one.
        let no_partition =
            state == "23514" && error.as_database_error().is_some_and(|error| error.constraint().is_none());
        if no_partition || is_retryable(&error) {
            return Self::Unavailable(error);
        }
        // 22 data exception, 23 integrity, 44 view's check option, P0 raised by a trigger.
        if ["22", "23", "44", "P0"].iter().any(|class| state.starts_with(class)) {
            return Self::Refused(error);
        }
        Self::Broken(error)
    }
}

/// The database with what the API wants of each of its connections.
#[must_use]
pub fn configure(database: DatabaseConfig, limits: &Limits) -> DatabaseConfig {
    database.with_settings([
        // Postgres gives up before we do, so that the outcome is known and the connection stays usable.
        ("statement_timeout", &limits.statement_timeout_ms.to_string()),
        // The statements are few and their plans do not depend on the values: plan each once a connection.
        ("plan_cache_mode", "force_generic_plan"),
        ("jit", "off"),
        // A plan that is kept must not scan a table whole because that one was small when the plan was made.
        ("enable_seqscan", "off"),
    ])
}

/// Reads orders, and changes single ones.
#[derive(Debug, Clone)]
pub struct Orders {
    database: Database,
    connect_timeout: Duration,
    statement_patience: Duration,
    /// How many lists are read at a time.
    listing: Arc<Semaphore>,
    metrics: Metrics,
}

impl Orders {
    /// Shares `database`'s pool.
    #[must_use]
    pub fn new(database: Database, limits: &Limits, metrics: Metrics) -> Self {
        let (connect_timeout, statement_patience) = (limits.connect_timeout(), limits.statement_patience());
        let turns = usize::try_from(database.connections_max() / 2).unwrap_or(1);
        let listing = Arc::new(Semaphore::new(turns.max(1)));
        Self { database, connect_timeout, statement_patience, listing, metrics }
    }

    /// An order, if there is one that is this user's, or anybody's.
    ///
    /// # Errors
    /// When Postgres does not say.
    pub async fn order(&self, id: OrderId, user_id: Option<i64>) -> Result<Option<Versioned>, StoreError> {
        self.on_connection(async |connection| read_order(connection, id, user_id).await).await
    }

    /// Does some work on a connection of the pool, within its time.
    async fn on_connection<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let start = Instant::now();
        let connection = self.connection().await;
        self.metrics.waited_for_connection(start);
        let mut connection = connection?;
        let Ok(done) = timeout(self.statement_patience, work(&mut connection)).await else {
            connection.close_on_drop();
            return Err(StoreError::InDoubt(timed_out("no answer to a statement")));
        };
        done.map_err(|error| {
            self.database.watch().heard(&error);
            error.into()
        })
    }

    /// Whether Postgres would take a write.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn check(&self) -> Result<bool, StoreError> {
        self.on_connection(async |connection| sqlx::query_scalar(TAKES_WRITES).fetch_one(connection).await).await
    }

    /// One of the pool's connections.
    async fn connection(&self) -> Result<PooledConnection, StoreError> {
        // Boxed: 14 KB, most of it for opening a connection, would be part of every request's future and moved with it.
        let connection = timeout(self.connect_timeout, Box::pin(self.database.acquire())).await;
        connection.unwrap_or_else(|_| Err(timed_out("no connection"))).map_err(StoreError::Unreachable)
    }
}

/// Opens a connection within its time.
async fn open(connector: &Connector, connect_timeout: Duration) -> Result<PgConnection, StoreError> {
    let opened = timeout(connect_timeout, connector.connect()).await;
    let opened =
        opened.map_or_else(|_| Err(timed_out("no connection")), |opened| opened.map_err(ConnectError::into_sqlx));
    opened.map_err(StoreError::Unreachable)
}

fn timed_out(what: &str) -> sqlx::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} within its time")).into()
}

async fn read_order(
    connection: &mut PgConnection,
    id: OrderId,
    user_id: Option<i64>,
) -> Result<Option<Versioned>, sqlx::Error> {
    // By the primary key. No lock: a reader never waits for a writer.
    let row = sqlx::query!(
        r#"-- read_order
        SELECT version, row_to_json(ROW(id, user_id, product_id, quantity, status, version, created_at, updated_at,
            failure_reason)::order_document)::text AS "document!"
        FROM orders WHERE id = $1 AND deleted_at IS NULL AND ($2::bigint IS NULL OR user_id = $2)"#,
        id.get(),
        user_id,
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| Versioned { version: row.version, document: row.document.into() }))
}
