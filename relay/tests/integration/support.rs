//! A database, a topic and relays of a test's own.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command};

use relay::RelayConfig;
use rustix::process::{Pid, Signal, kill_process};
use shared::config::Env;
use shared::shutdown::Shutdown;
pub use shared::testing::{Record, first_appearances, published, published_at};
use shared::testing::{TestDatabase, kafka_brokers, make_topic, unique};
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use tokio::task::JoinHandle;
use uuid::Uuid;

/// What each test begins with.
pub struct Fixture {
    pub database: TestDatabase,
    /// No other test's; its topic is this and an "s".
    pub aggregate_type: String,
    logs: tempfile::TempDir,
}

impl Fixture {
    pub async fn new(test: &str) -> Self {
        Self {
            database: TestDatabase::create(test).await,
            aggregate_type: unique("thing"),
            logs: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    /// The same with the topic made: for a test that allows no repeats.
    pub async fn with_topic(test: &str) -> Self {
        let fixture = Self::new(test).await;
        make_topic(&fixture.topic()).await;
        fixture
    }

    pub fn topic(&self) -> String {
        format!("{}s", self.aggregate_type)
    }

    /// The settings of a relay with times short enough for a test to outlast a lease.
    pub fn settings(&self, extra: &[(&str, &str)]) -> Vec<(String, String)> {
        let brokers = kafka_brokers();
        let base = [
            ("DATABASE_URL", self.database.url.as_str()),
            ("DB_ROLE", "outrider_relay"),
            ("KAFKA_BROKERS", brokers.as_str()),
            ("ADMIN_BIND", "127.0.0.1:0"),
            ("RELAY_LEASE_MS", "3000"),
            ("RELAY_MESSAGE_TIMEOUT_MS", "1500"),
            ("RELAY_LEASE_MARGIN_MS", "500"),
        ];
        base.iter().chain(extra).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// A relay inside this process.
    pub fn relay(&self, extra: &[(&str, &str)]) -> InProcess {
        let env = Env::from_pairs(self.settings(extra));
        let config = RelayConfig::from_env(&env).expect("the settings are good");
        let name = config.relay.clone();
        let shutdown = Shutdown::new();
        let task = tokio::spawn(relay::run(config, shutdown.clone()));
        InProcess { name, shutdown, task }
    }

    /// A relay of its own process.
    pub fn process(&self, extra: &[(&str, &str)]) -> Process {
        let log = self.logs.path().join(format!("{}.log", Uuid::now_v7()));
        let file = File::create(&log).expect("a log file");
        let child = Command::new(env!("CARGO_BIN_EXE_outrider-relay"))
            .env_clear()
            .envs(self.settings(extra))
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .spawn()
            .expect("the relay's executable starts");
        Process { child, log }
    }

    /// `count` keys of one lane: only within a lane can a row be late.
    pub async fn keys_of_one_lane(&self, count: i64) -> Vec<String> {
        sqlx::query_scalar(
            "SELECT 'k' || i FROM generate_series(1, 10000) i WHERE hashtextextended($1 || '/k' || i, 0) & 15 = 3 LIMIT $2",
        )
        .bind(&self.aggregate_type)
        .bind(count)
        .fetch_all(&self.database.pool)
        .await
        .expect("the keys can be found")
    }

    /// Inserts version `version` of `key` in the transaction of `connection`.
    pub async fn insert(&self, connection: &mut PgConnection, key: &str, version: i64) -> i64 {
        insert(connection, &self.aggregate_type, key, version, r#"{"a":  1}"#).await
    }

    /// Inserts versions `from..=to` of `key`, a transaction each.
    pub async fn insert_all(&self, key: &str, from: i64, to: i64) {
        for version in from..=to {
            let mut connection = self.database.pool.acquire().await.expect("a connection");
            self.insert(&mut connection, key, version).await;
        }
    }

    /// The topic's records, once there are `distinct` different events in it.
    pub async fn published(&self, distinct: usize) -> Vec<Record> {
        published(&self.topic(), distinct).await
    }

    /// Lets `role` append events of a type by `outbox_append`.
    pub async fn grant(&self, role: &str, aggregate_type: &str) {
        sqlx::query(
            "INSERT INTO outbox_producers (role_name, aggregate_type, role_oid, system_identifier, granted_by)
             SELECT rolname, $2, oid, (SELECT system_identifier FROM pg_control_system()), 'test' FROM pg_roles WHERE rolname = $1",
        )
        .bind(role)
        .bind(aggregate_type)
        .execute(&self.database.pool)
        .await
        .expect("the owner may grant");
    }

    /// How many lanes each relay holds, by its name.
    pub async fn lanes_by_owner(&self) -> HashMap<String, i64> {
        sqlx::query_as::<_, (String, i64)>(
            "SELECT owner, count(*) FROM relay_lanes WHERE owner IS NOT NULL AND expires_at > now() GROUP BY owner",
        )
        .fetch_all(&self.database.pool)
        .await
        .expect("the lanes can be read")
        .into_iter()
        .collect()
    }
}

pub async fn insert(
    connection: &mut PgConnection,
    aggregate_type: &str,
    key: &str,
    version: i64,
    payload: &str,
) -> i64 {
    sqlx::query_scalar(
        "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
         VALUES ($1, $2, $3, $4, 'thing.changed', $5::json) RETURNING id",
    )
    .bind(Uuid::now_v7())
    .bind(aggregate_type)
    .bind(key)
    .bind(version)
    .bind(payload)
    .fetch_one(connection)
    .await
    .expect("the row is inserted")
}

/// SQLSTATE and message of a statement that must fail.
pub async fn refused(connection: &mut PgConnection, sql: &str) -> (String, String) {
    let error = sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.expect_err(sql);
    let error = error.as_database_error().expect("the server refuses it");
    (error.code().unwrap_or_default().into_owned(), error.message().to_owned())
}

/// Takes something out of a function of the database, as if somebody had forgotten it.
pub async fn forget(pool: &PgPool, function: &str, what: &str, instead: &str) {
    let sql: String = sqlx::query_scalar("SELECT pg_get_functiondef($1::regproc)")
        .bind(function)
        .fetch_one(pool)
        .await
        .expect("there is such a function");
    assert!(sql.contains(what), "{function} has no '{what}'");
    sqlx::raw_sql(AssertSqlSafe(sql.replace(what, instead))).execute(pool).await.expect("the function is replaced");
}

pub struct InProcess {
    pub name: String,
    shutdown: Shutdown,
    pub task: JoinHandle<anyhow::Result<()>>,
}

impl InProcess {
    /// An ordered shutdown.
    pub async fn stop(self) {
        self.shutdown.request();
        self.task.await.expect("the relay does not panic").expect("the relay ends well");
    }
}

pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("the process is ours");
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it and returns its log.
    pub fn kill(mut self) -> String {
        self.signal(Signal::KILL);
        self.child.wait().expect("the process is ours");
        self.log()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("the log can be read")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Of a test that fails, what the relay said last.
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "the relay's last lines:\n{}",
                lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n")
            );
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every key has its versions 1 to `versions(key)`, and they first appear in this order.
pub fn assert_complete_and_in_order(records: &[Record], versions: impl Fn(&str) -> i64, keys: usize) {
    let appearances = first_appearances(records);
    assert_eq!(appearances.len(), keys, "keys published");
    for (key, found) in appearances {
        let expected: Vec<i64> = (1..=versions(&key)).collect();
        assert_eq!(found, expected, "versions of {key}");
    }
}

/// Each event was published once.
pub fn assert_no_repeats(records: &[Record]) {
    let distinct: HashSet<&str> = records.iter().map(|record| record.event_id.as_str()).collect();
    assert_eq!(distinct.len(), records.len(), "some events were published twice");
}

/// Waits until the settled positions have reached the last row, and nothing waits for its topic.
pub async fn all_settled(fixture: &Fixture) {
    shared::testing::all_settled(&fixture.database.pool).await;
}
