//! An outbox of small partitions, and tries to drop them.

use std::time::{Duration, Instant};

use relay::outbox::retention::{Attempt, Outcome, drop_oldest_partition};
use shared::db::Database;
use shared::testing::{PATIENCE, TestDatabase};
use sqlx::{Connection, PgConnection, PgPool};

use crate::support::forget;

/// A database whose outbox has partitions for ids 1 to 100, 101 to 200, and 201 to ten million, and lanes that are settled by hand.
pub struct Stage {
    pub database: TestDatabase,
    /// Connections as the relay has them.
    pub relay: Database,
}

impl Stage {
    pub async fn new(test: &str) -> Self {
        let database = TestDatabase::create(test).await;
        small_partitions(&database.pool).await;
        let relay = database.config("outrider_relay").open().await.expect("the relay may connect");
        Self { database, relay }
    }

    pub async fn run(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&self.database.pool).await.expect("the owner may");
    }

    /// Inserts `count` rows of many keys, so that every lane has some.
    pub async fn fill(&self, count: i32) {
        sqlx::query(INSERT).bind(count).execute(&self.database.pool).await.expect("the rows are inserted");
    }

    /// All that is committed is published.
    pub async fn settle(&self) {
        self.run(
            "UPDATE relay_lanes SET position = (SELECT max(id) FROM outbox), seen = pg_current_snapshot(), settled_at = now(),
                system_identifier = (SELECT system_identifier FROM pg_control_system())",
        )
        .await;
    }

    pub async fn connection(&self) -> PgConnection {
        PgConnection::connect(&self.database.url).await.expect("a connection")
    }

    /// A try to drop with a retention of nothing.
    pub async fn try_to_drop(&self) -> Option<Outcome> {
        self.try_with(Duration::ZERO).await
    }

    pub async fn try_with(&self, retention: Duration) -> Option<Outcome> {
        attempt(&self.relay, retention).await.map(|attempt| attempt.outcome)
    }

    pub async fn partitions(&self) -> Vec<String> {
        sqlx::query_scalar("SELECT name::text FROM outbox_partitions ORDER BY first_id")
            .fetch_all(&self.database.pool)
            .await
            .expect("the partitions can be read")
    }

    /// Takes something out of one of the functions, as if somebody had forgotten it.
    pub async fn forget(&self, function: &str, what: &str, instead: &str) {
        forget(&self.database.pool, function, what, instead).await;
    }
}

pub const INSERT: &str = "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
    SELECT gen_random_uuid(), 'thing', i::text, 1, 'thing.made', '{}' FROM generate_series(1, $1) i";

/// A row with an id that was drawn long ago.
pub const INSERT_5: &str =
    "INSERT INTO outbox (id, event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
    OVERRIDING SYSTEM VALUE VALUES (5, gen_random_uuid(), 'thing', 'late', 1, 'thing.made', '{}')";

pub async fn small_partitions(pool: &PgPool) {
    sqlx::raw_sql(
        "DROP TABLE outbox_p1, outbox_p5000001, outbox_p10000001;
        CREATE TABLE outbox_p1 PARTITION OF outbox FOR VALUES FROM (1) TO (101);
        CREATE TABLE outbox_p101 PARTITION OF outbox FOR VALUES FROM (101) TO (201);
        CREATE TABLE outbox_p201 PARTITION OF outbox FOR VALUES FROM (201) TO (10000001);",
    )
    .execute(pool)
    .await
    .expect("the owner may");
}

pub async fn attempt(database: &Database, retention: Duration) -> Option<Attempt> {
    let attempt = database.with(async |connection| drop_oldest_partition(connection, retention).await);
    let attempt = tokio::time::timeout(PATIENCE, attempt).await;
    attempt.expect("a try ends soon").expect("a try ends well")
}

pub fn stays(reason: &str) -> Outcome {
    Outcome::Stays(reason.to_owned())
}

/// Waits until the session that tries to drop waits for this: `PgSleep` between its two looks, `relation` for a lock.
pub async fn dropper_waits(connection: &mut PgConnection, wait_event: &str) {
    let start = Instant::now();
    loop {
        let waits: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = $1
                AND query LIKE '-- drop_oldest_partition%')",
        )
        .bind(wait_event)
        .fetch_one(&mut *connection)
        .await
        .expect("the sessions can be seen");
        if waits {
            return;
        }
        // No pause: a lock is waited for 150 ms only.
        assert!(start.elapsed() < PATIENCE, "nobody waits for {wait_event}");
    }
}
