//! All of the API's SQL, and what its failures mean.

use std::io;
use std::time::{Duration, Instant};

use actix_web::web::Bytes;
use shared::db::{DatabaseConfig, is_retryable, sql_state};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, PgPool};
use tokio::time::timeout;
use uuid::Uuid;

use crate::config::Limits;
use crate::domain::{NewOrder, OrderId};

pub mod changes;
pub mod feed;
pub mod list;
pub mod timeline;

use changes::Versioned;

/// A connection that rested this long is tried before it is trusted with orders: the server may have gone meanwhile, and an order
/// that is lost for that reason is lost for nothing.
const RESTED: Duration = Duration::from_secs(1);

/// Why a statement was not carried out. Whether it may be tried again, and how, is decided here.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no connection to be had; nothing was written, and whoever asks next will fare no better.
    #[error("Postgres is out of reach: {0}")]
    Unreachable(#[source] sqlx::Error),
    /// Postgres refuses for now; nothing was written.
    #[error("Postgres refuses for now: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// The connection was lost while the statement ran: it is not known whether it was carried out.
    #[error("the connection to Postgres was lost amid a statement: {0}")]
    InDoubt(#[source] sqlx::Error),
    /// Postgres refuses the values; nothing was written. Without the one that is refused, the others would be taken.
    #[error("Postgres refuses the rows: {0}")]
    Refused(#[source] sqlx::Error),
    /// Anything else: a fault of ours. Nothing was written.
    #[error("{0}")]
    Broken(#[source] sqlx::Error),
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

/// An order's JSON, and which order it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The order.
    pub id: i64,
    /// Its JSON, byte for byte what its event carries.
    pub document: Bytes,
}

/// Orders to write, as columns: one array a column is one statement, however many orders.
#[derive(Debug, Default)]
pub struct NewOrders {
    user_ids: Vec<i64>,
    product_ids: Vec<i64>,
    quantities: Vec<i32>,
    event_ids: Vec<Uuid>,
    headers: Vec<Option<String>>,
}

impl NewOrders {
    /// Adds one, whose event will be `event_id` with `headers`, a JSON object, if there are any.
    pub fn push(&mut self, order: NewOrder, event_id: Uuid, headers: Option<String>) {
        self.user_ids.push(order.user_id());
        self.product_ids.push(order.product_id());
        self.quantities.push(order.quantity());
        self.event_ids.push(event_id);
        self.headers.push(headers);
    }

    /// Forgets all of them and keeps the room.
    pub fn clear(&mut self) {
        self.user_ids.clear();
        self.product_ids.clear();
        self.quantities.clear();
        self.event_ids.clear();
        self.headers.clear();
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.user_ids.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.user_ids.is_empty()
    }

    /// The one at `place`, alone.
    #[must_use]
    pub fn one(&self, place: usize) -> Self {
        Self {
            user_ids: vec![self.user_ids[place]],
            product_ids: vec![self.product_ids[place]],
            quantities: vec![self.quantities[place]],
            event_ids: vec![self.event_ids[place]],
            headers: vec![self.headers[place].clone()],
        }
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

/// One connection that writes orders. It opens and reopens itself, so that the way to Postgres has one owner and no pool's
/// round trip before each statement.
#[derive(Debug)]
pub struct Writer {
    options: PgConnectOptions,
    connect_timeout: Duration,
    statement_patience: Duration,
    connection: Option<PgConnection>,
    last_used: Instant,
}

impl Writer {
    /// A writer that is not connected yet.
    #[must_use]
    pub fn new(database: &DatabaseConfig, limits: &Limits) -> Self {
        Self {
            options: database.connect_options().clone(),
            connect_timeout: limits.connect_timeout(),
            statement_patience: limits.statement_patience(),
            connection: None,
            last_used: Instant::now(),
        }
    }

    /// Writes all of `orders`, each with its first transition and its event, or none. The answers come in the order of `orders`.
    ///
    /// # Errors
    /// When they were not written, or that is not known.
    pub async fn insert(&mut self, orders: &NewOrders) -> Result<Vec<Written>, StoreError> {
        // Taken out meanwhile: a connection that is dropped amid a statement must not be used again.
        let mut connection = self.connect().await?;
        let written = timeout(self.statement_patience, insert_orders(&mut connection, orders)).await;
        let written = written.unwrap_or_else(|_| Err(timed_out("no answer to a statement"))).map_err(StoreError::from);
        if !matches!(written, Err(StoreError::InDoubt(_))) {
            self.connection = Some(connection);
            self.last_used = Instant::now();
        }
        written
    }

    async fn connect(&mut self) -> Result<PgConnection, StoreError> {
        if let Some(mut connection) = self.connection.take() {
            let trusted = self.last_used.elapsed() < RESTED
                || matches!(timeout(self.connect_timeout, connection.ping()).await, Ok(Ok(())));
            if trusted {
                return Ok(connection);
            }
        }
        let opened = timeout(self.connect_timeout, self.options.connect()).await;
        opened.unwrap_or_else(|_| Err(timed_out("no connection"))).map_err(StoreError::Unreachable)
    }

    /// Closes the connection in an orderly way.
    pub async fn close(mut self) {
        if let Some(connection) = self.connection.take() {
            // It ends with the process in any case.
            let _ = timeout(self.connect_timeout, connection.close()).await;
        }
    }
}

/// Reads orders, and changes single ones.
#[derive(Debug, Clone)]
pub struct Orders {
    pool: PgPool,
    connect_timeout: Duration,
    statement_patience: Duration,
}

impl Orders {
    /// Shares `pool`.
    #[must_use]
    pub fn new(pool: PgPool, limits: &Limits) -> Self {
        Self { pool, connect_timeout: limits.connect_timeout(), statement_patience: limits.statement_patience() }
    }

    /// An order, if there is one.
    ///
    /// # Errors
    /// When Postgres does not say.
    pub async fn order(&self, id: OrderId) -> Result<Option<Versioned>, StoreError> {
        self.on_connection(async |connection| read_order(connection, id).await).await
    }

    /// Does some work on a connection of the pool, within its time.
    async fn on_connection<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let connection = timeout(self.connect_timeout, self.pool.acquire()).await;
        let mut connection =
            connection.unwrap_or_else(|_| Err(timed_out("no connection"))).map_err(StoreError::Unreachable)?;
        let Ok(done) = timeout(self.statement_patience, work(&mut connection)).await else {
            connection.close_on_drop();
            return Err(StoreError::InDoubt(timed_out("no answer to a statement")));
        };
        Ok(done?)
    }

    /// Whether Postgres answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check(&self) -> Result<(), StoreError> {
        // A pool tries a connection before it hands it out, or opens one: nothing more is needed.
        let connection = timeout(self.connect_timeout, self.pool.acquire()).await;
        let connection = connection.unwrap_or_else(|_| Err(timed_out("no connection")));
        connection.map(drop).map_err(StoreError::Unreachable)
    }
}

fn timed_out(what: &str) -> sqlx::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} within its time")).into()
}

async fn read_order(connection: &mut PgConnection, id: OrderId) -> Result<Option<Versioned>, sqlx::Error> {
    // By the primary key. No lock: a reader never waits for a writer.
    let row = sqlx::query!(
        r#"-- read_order
        SELECT version, row_to_json(ROW(id, user_id, product_id, quantity, status, version, created_at, updated_at,
            failure_reason)::order_document)::text AS "document!"
        FROM orders WHERE id = $1 AND deleted_at IS NULL"#,
        id.get()
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| Versioned { version: row.version, document: row.document.into() }))
}

async fn insert_orders(connection: &mut PgConnection, orders: &NewOrders) -> Result<Vec<Written>, sqlx::Error> {
    // Order, transition and event are one statement and so one transaction. The parts of a WITH run in no order that one may
    // rely on; the append rule holds all the same, since nobody else can know an order whose id was drawn a moment ago, let alone
    // change it, before this commits. All three tables are only appended to: no lock is waited for but those of a migration.
    //
    // now() is the time of the transaction, the same in every place: created_at = updated_at = occurred_at.
    //
    // fetch_all, because it reads up to ReadyForQuery: Postgres sends the rows before it commits, so that whoever stops at a row
    // can take an order for accepted whose commit then fails.
    let rows = sqlx::query!(
        r#"-- insert_orders
        WITH new AS MATERIALIZED (
            SELECT place, nextval('orders_id_seq') AS id, user_id, product_id, quantity, event_id, headers
            FROM UNNEST($1::bigint[], $2::bigint[], $3::integer[], $4::uuid[], $5::text[]) WITH ORDINALITY
                AS given (user_id, product_id, quantity, event_id, headers, place)
        ), drawn AS MATERIALIZED (
            SELECT new.*,
                row_to_json(ROW(id, user_id, product_id, quantity, 'Pending', 1, now(), now(), NULL)::order_document) AS document
            FROM new
        ), inserted_orders AS (
            INSERT INTO orders (id, user_id, product_id, quantity, status, version, created_at, updated_at)
            SELECT id, user_id, product_id, quantity, 'Pending', 1, now(), now() FROM drawn
        ), inserted_transitions AS (
            INSERT INTO order_transitions (order_id, version, from_status, to_status, event_id, occurred_at)
            SELECT id, 1, NULL, 'Pending', event_id, now() FROM drawn
        ), inserted_events AS (
            INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, headers, occurred_at)
            SELECT event_id, 'order', id::text, 1, 'order.created', document, coalesce(headers::jsonb, '{}'), now()
            FROM drawn ORDER BY place
        )
        SELECT id AS "id!", document::text AS "document!" FROM drawn ORDER BY place"#,
        &orders.user_ids,
        &orders.product_ids,
        &orders.quantities,
        &orders.event_ids,
        &orders.headers as &[Option<String>],
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| Written { id: row.id, document: row.document.into() }).collect())
}
