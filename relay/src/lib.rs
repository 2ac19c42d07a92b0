//! The relay reads events from the Postgres outbox and publishes them to Kafka: each at least once, those of one aggregate in
//! the order they were written, however many relays run. It knows nothing of what the events say.
//!
//! Read [`worker`] first: it is the loop. [`lanes`] is the theory behind it.

pub mod backlog;
pub mod batch;
pub mod config;
pub mod holders;
pub mod lanes;
pub mod metrics;
pub mod outbox;
mod polling;
mod publisher;
pub mod replay;
pub mod retention;
pub mod routes;
pub mod session;
pub mod worker;

use std::process::ExitCode;

use anyhow::Context;
use prometheus_client::registry::Registry;
use shared::db::{ConnectError, Database};
use shared::health::{self, Readiness};
use shared::kafka::TopicUse;
use shared::shutdown::Shutdown;
use tokio::task::JoinHandle;

use config::Retention;
use holders::Watch;

pub use config::RelayConfig;

/// What the relay needs before it publishes, as `/readyz` names it.
pub const POSTGRES: &str = "postgres";
/// See [`POSTGRES`].
pub const KAFKA: &str = "kafka";

/// What the executable does.
pub fn main() -> ExitCode {
    shared::service::run("outrider-relay", RelayConfig::from_env, run)
}

/// Runs a relay until the shutdown is asked for.
///
/// # Errors
/// When the admin port is taken, the schema is too old, Postgres refuses us for good, or the database is a restored copy whose
/// cursors do not hold in this cluster.
pub async fn run(config: RelayConfig, shutdown: Shutdown) -> anyhow::Result<()> {
    let readiness = Readiness::waiting_for(&[POSTGRES, KAFKA]);
    let mut registry = Registry::default();
    let metrics = metrics::Metrics::register(&mut registry);
    health::serve(config.admin_bind, readiness.clone(), registry, &shutdown)
        .with_context(|| format!("ADMIN_BIND: {} cannot be listened on", config.admin_bind))?;
    let waiting = |error: &ConnectError| readiness.missing(POSTGRES, error.to_string());
    let database = match config.database.connect_telling(&shutdown, waiting).await {
        Err(ConnectError::ShutDown) => return Ok(()),
        connected => connected?,
    };
    readiness.met(POSTGRES);
    if !config.kafka.wait_until_up("outrider-relay", &shutdown).await {
        return Ok(());
    }
    readiness.met(KAFKA);
    tokio::spawn({
        let (config, database) = (config.clone(), database.clone());
        async move {
            let uses = written_topics(&config, &database).await;
            config.kafka.say_findings("outrider-relay", uses).await;
        }
    });
    let upkeep = keep_up(&config, &database, &metrics, &shutdown);
    let worker = worker::Worker::new(config, database, metrics, readiness);
    // As a task of its own, it runs on the thread that hears of what arrives at its socket. Here, on the main thread, every few rows
    // that Postgres sends would have to wake it.
    let result = tokio::spawn({
        let shutdown = shutdown.clone();
        async move { worker.run(&shutdown).await }
    })
    .await;
    shutdown.request();
    upkeep.await?;
    result?
}

/// The topics that routes lead to, as far as routes name aggregate types.
async fn written_topics(config: &RelayConfig, database: &Database) -> Vec<TopicUse> {
    // Without an answer those of the environment will do: publishing needs the table too, and says what is wrong.
    let table = database.with(outbox::routes::routes).await.unwrap_or_default();
    let routes = config.routes.with_table(table);
    let topics = routes.types().filter_map(|aggregate_type| routes.resolve(aggregate_type).ok());
    topics.map(|topic| TopicUse { topic, written: true, group: None }).collect()
}

/// What a relay does beside publishing. Ends with the shutdown.
fn keep_up(
    config: &RelayConfig,
    database: &Database,
    metrics: &metrics::Metrics,
    shutdown: &Shutdown,
) -> JoinHandle<()> {
    let backlog = backlog::watch(database.clone(), metrics.backlog.clone(), shutdown.clone());
    let metrics = &metrics.upkeep;
    let ahead = retention::keep_partitions_ahead(database.clone(), metrics.clone(), shutdown.clone());
    let watch = Watch { relay: config.relay.clone(), age: config.limits.holder_age };
    let holders = holders::watch(database.clone(), watch, metrics.clone(), shutdown.clone());
    let dropped = match config.limits.retention {
        Retention::Forever => None,
        Retention::For(time) => {
            Some(retention::drop_partitions(database.clone(), time, metrics.clone(), shutdown.clone()))
        }
    };
    tokio::spawn(async move {
        tokio::join!(ahead, holders, backlog, async {
            if let Some(dropped) = dropped {
                dropped.await;
            }
        });
    })
}
