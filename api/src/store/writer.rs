//! A connection that writes orders: opened when it is needed, and given up when nobody knows what became of a statement.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use shared::db::{Connector, DatabaseConfig, RESTED, words};
use shared::throttle::Throttle;
use sqlx::types::chrono::NaiveDate;
use sqlx::{Connection as _, PgConnection};
use tokio::time::timeout;
use uuid::Uuid;

use super::insert::{Inserted, NewOrders, Written, insert_keyed_orders, insert_orders};
use super::keys::{self, Known};
use super::{StoreError, open, timed_out};
use crate::config::Limits;

/// Why an order with an idempotency key was neither written nor found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyConflict {
    /// The key has made another order.
    Reused,
    /// A request with the same key is under way.
    Running,
}

/// One connection that writes orders. It opens and reopens itself, so that the way to Postgres has one owner and no pool's
/// round trip before each statement.
#[derive(Debug)]
pub struct Writer {
    connector: Connector,
    connect_timeout: Duration,
    statement_patience: Duration,
    key_retention: Duration,
    connection: Option<PgConnection>,
    last_used: Instant,
    log: Throttle,
}

impl Writer {
    /// A writer that is not connected yet.
    #[must_use]
    pub fn new(database: &DatabaseConfig, limits: &Limits) -> Self {
        Self {
            connector: database.connector(),
            connect_timeout: limits.connect_timeout(),
            statement_patience: limits.statement_patience(),
            key_retention: limits.idempotency_retention,
            connection: None,
            last_used: Instant::now(),
            log: Throttle::new(),
        }
    }

    /// Opens the connection ahead of the first order, which would otherwise wait for it. Where that fails, the first order tries again.
    pub async fn open_ahead(&mut self) {
        if let Ok(connection) = self.connect().await {
            self.keep(connection);
        }
    }

    /// Writes all of `orders`, each with its first transition, its event and its key, or none. Those whose key is taken are not
    /// written but answered with what the key was answered with. The answers come in the order of `orders`.
    ///
    /// # Errors
    /// When they were not written, or that is not known.
    pub async fn insert(&mut self, orders: &NewOrders) -> Result<Vec<Result<Written, KeyConflict>>, StoreError> {
        // Taken out meanwhile: a connection that is dropped amid a statement must not be used again.
        let mut connection = self.connect().await?;
        let inserting = async {
            if orders.have_keys() {
                insert_keyed_orders(&mut connection, orders, self.key_retention).await
            } else {
                insert_orders(&mut connection, orders).await
            }
        };
        let inserted = timeout(self.statement_patience, inserting).await;
        let inserted =
            inserted.unwrap_or_else(|_| Err(timed_out("no answer to a statement"))).map_err(StoreError::from);
        let is_lost = |error: &StoreError| matches!(error, StoreError::InDoubt(_)) || error.is_read_only();
        if !inserted.as_ref().is_err_and(is_lost) {
            self.keep(connection);
        }
        let inserted = inserted?;
        Ok(self.answer(orders, inserted).await)
    }

    /// Adds what is known of the keys that were taken. What was written stays written, whatever becomes of this.
    async fn answer(&mut self, orders: &NewOrders, inserted: Inserted) -> Vec<Result<Written, KeyConflict>> {
        let missed: Vec<Uuid> = orders
            .keys
            .iter()
            .zip(&inserted.written)
            .filter(|(_, written)| written.is_none())
            .filter_map(|(key, _)| *key)
            .collect();
        let known = if missed.is_empty() { HashMap::new() } else { self.read_keys(inserted.day, &missed).await };
        let answers = inserted.written.into_iter().enumerate().map(|(place, written)| match written {
            Some(written) => Ok(written),
            None => keys::answer(&known, orders.keys[place], orders.fingerprints[place]),
        });
        answers.collect()
    }

    async fn read_keys(&mut self, day: NaiveDate, keys: &[Uuid]) -> HashMap<Uuid, Known> {
        let Some(mut connection) = self.connection.take() else { return HashMap::new() };
        let known = timeout(self.statement_patience, keys::read_keys(&mut connection, day, keys)).await;
        match known.unwrap_or_else(|_| Err(timed_out("no answer to a statement"))) {
            Ok(known) => {
                self.keep(connection);
                known
            }
            Err(error) => {
                // They are told that their request is under way, and come again.
                if let Some(others) = self.log.pass("keys") {
                    tracing::warn!(
                        error = words(&error),
                        others_since_the_last = others,
                        "what idempotency keys were answered with cannot be read"
                    );
                }
                HashMap::new()
            }
        }
    }

    fn keep(&mut self, connection: PgConnection) {
        self.connection = Some(connection);
        self.last_used = Instant::now();
    }

    async fn connect(&mut self) -> Result<PgConnection, StoreError> {
        if let Some(mut connection) = self.connection.take() {
            // An order that is lost because the server has gone is lost for nothing.
            let trusted = self.last_used.elapsed() < RESTED
                || matches!(timeout(self.connect_timeout, connection.ping()).await, Ok(Ok(())));
            if trusted {
                return Ok(connection);
            }
        }
        open(&self.connector, self.connect_timeout).await
    }

    /// Closes the connection in an orderly way.
    pub async fn close(mut self) {
        if let Some(connection) = self.connection.take() {
            // It ends with the process in any case.
            let _ = timeout(self.connect_timeout, connection.close()).await;
        }
    }
}
