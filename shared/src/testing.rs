//! What the integration tests of all crates share. They need a running Postgres and Kafka, named by `DATABASE_URL` and
//! `KAFKA_BROKERS`, as `cargo dev test` starts them; every test has a database, topics and groups of its own.

#[cfg(feature = "kafka")]
mod topic;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry::Context;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgPool};

use crate::config::Env;
use crate::db::{Database, DatabaseConfig, MIGRATOR, ServerWatch};
#[cfg(feature = "kafka")]
pub use topic::{Record, first_appearances, make_topic, partitions_of, published, published_at, published_once};

/// How long a test waits for what must come. Long, since a machine may be busy: a test that passes never waits for it.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A migrated database that only one test uses.
#[derive(Debug)]
pub struct TestDatabase {
    /// Connections as its owner.
    pub pool: PgPool,
    /// For `DATABASE_URL`.
    pub url: String,
}

impl TestDatabase {
    /// Makes one on the server of `DATABASE_URL`, named after `test`.
    ///
    /// # Panics
    /// When there is no server, or it refuses.
    pub async fn create(test: &str) -> Self {
        Self::create_on(&required("DATABASE_URL"), test).await
    }

    /// Makes one on `server`, the URL of any database of it, named after `test`.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn create_on(server: &str, test: &str) -> Self {
        let options: PgConnectOptions = server.parse().expect("a Postgres URL");
        let name = format!("{}_{}", &test.chars().take(30).collect::<String>(), uuid::Uuid::now_v7().simple());
        let mut connection = options.connect().await.expect("the server answers");
        connection
            .execute(AssertSqlSafe(format!("CREATE DATABASE \"{name}\"")))
            .await
            .expect("a test may create a database");
        let (base, _) = server.rsplit_once('/').expect("the URL ends in a database");
        let pool = PgPoolOptions::new()
            .max_connections(8)
            .connect_with(options.database(&name))
            .await
            .expect("the new database answers");
        MIGRATOR.run(&pool).await.expect("the migrations apply to an empty database");
        Self { pool, url: format!("{base}/{name}") }
    }

    /// The same connections as services have them.
    #[must_use]
    pub fn database(&self) -> Database {
        Database::new(self.pool.clone(), ServerWatch::default())
    }

    /// The configuration of a service that uses this database under `role`.
    ///
    /// # Panics
    /// Never, as long as `create` made the URL.
    #[must_use]
    pub fn config(&self, role: &str) -> DatabaseConfig {
        let env = Env::from_pairs([("DATABASE_URL", self.url.as_str()), ("DB_ROLE", role)]);
        DatabaseConfig::from_env(&env, "outrider-test").expect("the URL of a test database is good")
    }
}

/// Waits until the relays have settled all rows of the outbox that are committed, and no event waits for its topic.
///
/// # Panics
/// When that takes longer than [`PATIENCE`].
pub async fn all_settled(database: &PgPool) {
    eventually("all rows are settled", async || {
        let sql = "SELECT (SELECT count(*) FROM outbox o JOIN relay_lanes l USING (lane) WHERE o.id > l.position OR l.seen IS NULL
                OR NOT pg_visible_in_snapshot(o.txid::text::xid8, l.seen)) + (SELECT count(*) FROM relay_waiting)";
        let open: i64 = sqlx::query_scalar(sql).fetch_one(database).await.ok()?;
        (open == 0).then_some(())
    })
    .await;
}

/// Keeps the spans that it is given. All clones keep the same.
#[derive(Debug, Clone, Default)]
pub struct Collector(Arc<Mutex<Vec<SpanData>>>);

impl Collector {
    /// What it has got, in that order.
    ///
    /// # Panics
    /// When a test has failed that holds it.
    #[must_use]
    pub fn spans(&self) -> Vec<SpanData> {
        self.0.lock().expect("nobody panics here").clone()
    }

    /// The names of that.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.spans().iter().map(|span| span.name.to_string()).collect()
    }
}

impl SpanProcessor for Collector {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.0.lock().expect("nobody panics here").push(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The brokers of `KAFKA_BROKERS`.
///
/// # Panics
/// When it is not set.
#[must_use]
pub fn kafka_brokers() -> String {
    required("KAFKA_BROKERS")
}

/// A name that no other test has, for a topic or a group.
#[must_use]
pub fn unique(prefix: &str) -> String {
    format!("{prefix}-{}", uuid::Uuid::now_v7().simple())
}

/// Asks `probe` until it answers with something, and returns that.
///
/// # Panics
/// When it has not within [`PATIENCE`]; the message says what was awaited.
pub async fn eventually<T>(what: &str, probe: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_within(PATIENCE, what, probe).await
}

/// Like [`eventually`], with a deadline of its own.
///
/// # Panics
/// When the deadline is over.
pub async fn eventually_within<T>(deadline: Duration, what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(start.elapsed() < deadline, "not within {deadline:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn required(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: run the tests with `cargo dev test`"))
}
