//! Rows that no writer can insert any more, and a relay's connection to park them.

use std::collections::HashMap;
use std::time::Duration;

use relay::outbox::parked::{HeldKey, park};
use relay::outbox::{self, ClaimedLane};
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, Postgres};

use crate::support::Fixture;

/// A database whose outbox takes any row, as before it had bounds.
pub struct Stage {
    pub fixture: Fixture,
}

impl Stage {
    pub async fn new(test: &str) -> Self {
        let stage = Self { fixture: Fixture::new(test).await };
        stage.run("ALTER TABLE outbox DROP CONSTRAINT outbox_bounds").await;
        stage
    }

    /// As the owner of the tables.
    pub async fn run(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.fixture.database.pool).await.expect(sql);
    }

    /// The rows that a query of the owner answers with.
    pub async fn all<T>(&self, sql: &str) -> Vec<T>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&self.fixture.database.pool).await.expect(sql)
    }

    /// Inserts version `version` of a key of `aggregate_type`, each column after that given as SQL. Its outbox id.
    pub async fn plant(&self, aggregate_type: &str, version: i64, columns: &[(&str, &str)]) -> i64 {
        let mut values = HashMap::from([("aggregate_id", "'k'"), ("type", "'thing.changed'"), ("payload", "'{}'")]);
        values.extend(columns.iter().copied());
        let (names, values): (Vec<&str>, Vec<&str>) = values.into_iter().unzip();
        let sql = format!(
            "INSERT INTO outbox (aggregate_type, aggregate_version, {}) VALUES ($1, $2, {}) RETURNING id",
            names.join(", "),
            values.join(", ")
        );
        sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(aggregate_type)
            .bind(version)
            .fetch_one(&self.fixture.database.pool)
            .await
            .expect("the row is planted")
    }

    /// Has all sessions but that of a [`Holder`] report what they have read. By themselves they do so up to ten seconds later.
    pub async fn report_reads(&self) {
        let pool = &self.fixture.database.pool;
        let mut sessions = Vec::new();
        for _ in 1..pool.options().get_max_connections() {
            let mut session = pool.acquire().await.expect("a connection");
            sqlx::raw_sql("SELECT pg_stat_force_next_flush()").execute(&mut *session).await.expect("reported");
            // Held, so that the next one is another.
            sessions.push(session);
        }
    }

    /// A connection of a relay that holds all lanes.
    pub async fn holder(&self) -> Holder {
        let mut connection = self.fixture.database.pool.acquire().await.expect("a connection");
        connection.close_on_drop();
        sqlx::query("SET ROLE outrider_relay").execute(&mut *connection).await.expect("the owner may");
        let lanes = outbox::claim_lanes(&mut connection, "holder", Duration::from_mins(1), &[], 16).await;
        Holder { connection, lanes: lanes.expect("the lanes are free") }
    }

    /// All that is in the outbox counts as published or parked, and the lanes are free.
    pub async fn settle(&self) {
        self.run(
            "UPDATE relay_lanes SET position = (SELECT max(id) FROM outbox), seen = pg_current_snapshot(), settled_at = now(),
                owner = NULL, system_identifier = (SELECT system_identifier FROM pg_control_system())",
        )
        .await;
    }

    /// Asks for a retry of all that is parked, as an operator does.
    pub async fn request_all(&self) {
        self.run(
            "INSERT INTO relay_parked_requests (lane, aggregate_type, aggregate_id, requested_by)
            SELECT DISTINCT lane, aggregate_type, aggregate_id, 'test' FROM relay_parked",
        )
        .await;
    }
}

/// See [`Stage::holder`].
pub struct Holder {
    pub connection: PoolConnection<Postgres>,
    lanes: Vec<ClaimedLane>,
}

impl Holder {
    /// Parks a row of the outbox.
    pub async fn park(&mut self, id: i64, reason: Option<&str>) {
        let lane: i16 = sqlx::query_scalar("SELECT lane FROM outbox WHERE id = $1")
            .bind(id)
            .fetch_one(&mut *self.connection)
            .await
            .expect("the row is there");
        let token = self.token(lane);
        assert!(park(&mut self.connection, lane, token, &[id], &[reason]).await.expect("any row can be parked"));
    }

    /// The key of a parked row, as it is held.
    pub async fn key<'a>(&mut self, aggregate_type: &'a str, aggregate_id: &'a str) -> HeldKey<'a> {
        let lane: i16 = sqlx::query_scalar("SELECT (hashtextextended($1 || '/' || $2, 0) & 15)::smallint")
            .bind(aggregate_type)
            .bind(aggregate_id)
            .fetch_one(&mut *self.connection)
            .await
            .expect("a lane");
        HeldKey { lane, token: self.token(lane), aggregate_type, aggregate_id }
    }

    fn token(&self, lane: i16) -> i64 {
        self.lanes.iter().find(|held| held.lane == lane).expect("all lanes are held").token
    }
}
