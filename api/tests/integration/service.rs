//! An API in this process, and what its tests ask of it and of its database.

use std::net::SocketAddr;

use api::auth::settings::AuthConfig;
use api::config::Limits;
use api::edge::settings::Edge;
use api::representation::OrderDocument;
use api::{Config, Server};
use shared::db::DatabaseConfig;
use shared::shutdown::Shutdown;
use shared::testing::{PATIENCE, TestDatabase, eventually};
use sqlx::{PgPool, Postgres, Transaction};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::http::{Answer, order_request, request, send};

/// The smallest good order.
pub const ORDER: &str = r#"{"user_id": 1, "product_id": 2, "quantity": 3}"#;

/// An event's payload as the API shows the order.
pub fn shown(payload: String) -> String {
    let representation = OrderDocument::from(payload).represent().expect("an order");
    String::from_utf8(representation).expect("JSON")
}

/// A running API.
pub struct Api {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub shutdown: Shutdown,
    pub running: JoinHandle<anyhow::Result<()>>,
}

impl Api {
    /// Starts one on `database`.
    pub async fn start(database: &TestDatabase) -> Self {
        Self::with(database, |_| ()).await
    }

    /// Starts one whose limits `change` changes.
    pub async fn with(database: &TestDatabase, change: impl FnOnce(&mut Limits)) -> Self {
        Self::on(database.config("outrider_api"), change).await
    }

    /// Starts one that goes to its database as `database` says.
    pub async fn on(database: DatabaseConfig, change: impl FnOnce(&mut Limits)) -> Self {
        Self::configured(database, |config| change(&mut config.limits)).await
    }

    /// Starts one that is reached as `edge` says.
    pub async fn at(database: DatabaseConfig, edge: Edge, change: impl FnOnce(&mut Limits)) -> Self {
        Self::configured(database, |config| {
            config.edge = edge;
            change(&mut config.limits);
        })
        .await
    }

    /// Starts one that asks its callers who they are, as `auth` says.
    pub async fn guarded(database: DatabaseConfig, auth: AuthConfig, change: impl FnOnce(&mut Limits)) -> Self {
        Self::configured(database, |config| {
            config.auth = auth;
            change(&mut config.limits);
        })
        .await
    }

    async fn configured(database: DatabaseConfig, change: impl FnOnce(&mut Config)) -> Self {
        // A statement may wait for a lock that a test holds, and for everything else on a busy machine.
        let limits = Limits {
            workers: 1,
            connect_timeout_ms: 60_000,
            statement_timeout_ms: 60_000,
            queue_age_max_ms: 60_000,
            ..Limits::default()
        };
        let mut config = config(database, limits);
        change(&mut config);
        let shutdown = Shutdown::new();
        let server = Server::start(config, &shutdown).await.expect("the API starts");
        let (address, admin) = (server.address(), server.admin_address());
        Self { address, admin, shutdown, running: tokio::spawn(server.run()) }
    }

    pub async fn post(&self, body: &str) -> Answer {
        send(self.address, order_request(body)).await
    }

    /// Posts without waiting for the answer.
    pub fn posting(&self, body: &str) -> JoinHandle<Answer> {
        tokio::spawn(send(self.address, order_request(body)))
    }

    pub async fn get(&self, path: &str) -> Answer {
        send(self.address, request("GET", path, "", b"")).await
    }

    /// The value of a metric that counts something; 0 if it is not there. Labels belong to `name`.
    pub async fn metric(&self, name: &str) -> i64 {
        let text = send(self.admin, request("GET", "/metrics", "", b"")).await.body;
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        let value = line.and_then(|line| line.rsplit(' ').next());
        value.map_or(0, |value| value.trim_end_matches(".0").parse().expect("a whole number"))
    }

    /// The value of a metric in seconds.
    pub async fn metric_seconds(&self, name: &str) -> f64 {
        let text = send(self.admin, request("GET", "/metrics", "", b"")).await.body;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{name} is not in\n{text}")).parse().expect("a number")
    }

    /// Waits until that many orders wait for a statement.
    pub async fn queued(&self, count: i64) {
        eventually("the orders are queued", async || (self.metric("api_queue_depth").await == count).then_some(()))
            .await;
    }

    /// Shuts it down in order.
    pub async fn stop(self) {
        self.shutdown.request();
        let ended = timeout(PATIENCE, self.running).await.expect("it ends");
        ended.expect("no panic").expect("it ends in order");
    }
}

pub fn config(database: DatabaseConfig, limits: Limits) -> Config {
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    Config { bind: free, admin_bind: free, database, edge: Edge::default(), limits, auth: AuthConfig::none() }
}

/// How many orders, transitions and events there are.
pub async fn written(database: &TestDatabase) -> (i64, i64, i64) {
    let counts =
        "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM order_transitions), (SELECT count(*) FROM outbox)";
    sqlx::query_as(counts).fetch_one(&database.pool).await.expect("the tables can be counted")
}

/// Runs one statement as the owner of the database.
pub async fn execute(database: &TestDatabase, sql: &'static str) {
    sqlx::raw_sql(sql).execute(&database.pool).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Keeps orders from being written until the transaction is dropped.
pub async fn hold(pool: &PgPool) -> Transaction<'static, Postgres> {
    let mut transaction = pool.begin().await.expect("a transaction begins");
    sqlx::query("LOCK TABLE orders IN EXCLUSIVE MODE").execute(&mut *transaction).await.expect("nobody else locks");
    transaction
}

/// Stops each order of product 13 in its statement, with its key in the index and its transaction open, until this one is dropped.
pub async fn hold_product_13(database: &TestDatabase) -> Transaction<'static, Postgres> {
    execute(
        database,
        "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN PERFORM pg_advisory_xact_lock_shared(13); RETURN NEW; END $$;
         CREATE TRIGGER stop BEFORE INSERT ON orders FOR EACH ROW WHEN (NEW.product_id = 13) EXECUTE FUNCTION stop()",
    )
    .await;
    let mut held = database.pool.begin().await.expect("a transaction");
    sqlx::query("SELECT pg_advisory_xact_lock(13)").execute(&mut *held).await.expect("nobody has it");
    held
}

/// Waits until a statement of the API waits for that lock.
pub async fn statement_held(database: &TestDatabase) {
    statement_waits(database, "-- insert_orders%", 1).await;
}

/// Waits until so many statements like this one wait for a lock.
pub async fn statement_waits(database: &TestDatabase, like: &str, count: i64) {
    let waiting = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE $1";
    eventually("a statement waits", async || {
        let found: i64 =
            sqlx::query_scalar(waiting).bind(like).fetch_one(&database.pool).await.expect("the activity can be seen");
        (found >= count).then_some(())
    })
    .await;
}
