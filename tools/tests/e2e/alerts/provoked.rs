//! Each alert is provoked on a running pipeline, seen to fire, and cleared by doing what its entry in the runbook says.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::{Datelike, TimeDelta, Utc};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustix::process::{Signal, kill_process_group};
use serde_json::Value;
use shared::testing::{eventually, eventually_within};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgConnection};
use tools::http::NewOrder;
use tools::stack::{Kind, Service};

use super::prometheus::{PATIENCE, Prometheus};
use super::{Load, NO_RELAY, all_processed};
use crate::command_line::{operator, well};
use crate::dead_letters::REFUSE;
use crate::pipeline::{RELAY_ENV, Stage, orders_of, stop_all};

/// Told of by tests of their own: a relay that is gone, and what only a bug can provoke.
const ELSEWHERE: [&str; 2] = [NO_RELAY, "OutriderPanics"];

fn shipped(file: &str) -> Result<String> {
    Ok(fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file))?)
}

/// The statement of an alert's entry in the runbook that begins with these words.
fn statement(alert: &str, beginning: &str) -> Result<String> {
    let runbook = shipped("RUNBOOK.md")?;
    let entry = runbook.split("\n## ").find(|entry| entry.lines().next() == Some(alert)).context("an entry")?;
    let found = entry.split('`').find(|code| code.starts_with(beginning));
    Ok(found.with_context(|| format!("{alert}: no statement begins with {beginning}"))?.replace('\n', " "))
}

/// A pipeline with two relays under load, and a Prometheus that looks at it.
struct Scene {
    stage: Stage,
    services: Vec<Service>,
    load: Load,
    prometheus: Prometheus,
    /// The alerts that have fired.
    told: BTreeSet<String>,
}

impl Scene {
    async fn new() -> Result<Self> {
        let stage = Stage::with_postgres("alerts_fire_when_they_are_provoked").await?;
        let relay_env = [&RELAY_ENV[..], &[("RELAY_HOLDER_AGE", "4s")]].concat();
        let services = vec![
            stage.start(Kind::Api, "api", &[("API_STATEMENT_TIMEOUT_MS", "1000")]).await?,
            stage.start(Kind::Relay, "relay-1", &relay_env).await?,
            stage.start(Kind::Relay, "relay-2", &relay_env).await?,
            stage.start(Kind::Processor, "processor", &[]).await?,
        ];
        let prometheus = Prometheus::start(&stage, &services).await?;
        let load = Load::start(orders_of(&services)?);
        Ok(Self { stage, services, load, prometheus, told: BTreeSet::new() })
    }

    /// Waits until each of these fires.
    async fn fire(&mut self, alerts: &[&str]) {
        for alert in alerts {
            self.prometheus.becomes(alert, Some("firing")).await;
            self.told.insert((*alert).to_owned());
        }
    }

    /// Waits until nothing is told, not even that something may be wrong.
    async fn clear(&self) {
        let mut active = Vec::new();
        let what = "all alerts are clear";
        eventually_within(PATIENCE, what, async || {
            let now = self.prometheus.active().await.ok()?;
            if now != active {
                eprintln!("active: {now:?}");
                active.clone_from(&now);
            }
            now.is_empty().then_some(())
        })
        .await;
    }

    /// Runs `outrider` as an operator. What it said.
    fn operate(&self, arguments: &[&str]) -> Result<String> {
        well(operator("", &self.stage.database.url).args(arguments))
    }

    /// A session that nobody remembers, with a transaction in which this statement was made.
    async fn forgotten(&self, statement: &'static str) -> Result<PgConnection> {
        let options: PgConnectOptions = self.stage.database.url.parse()?;
        let mut session = options.application_name("forgotten").connect().await?;
        session.execute("BEGIN").await?;
        session.execute(statement).await?;
        Ok(session)
    }

    /// Ends the session that the runbook's statement finds.
    async fn end_what_holds(&self, alert: &str) -> Result<()> {
        let finds = statement(alert, "WITH RECURSIVE")?;
        // A waiting session may end while the statement looks, and be found as one that waits for no other.
        let holder = eventually("one session holds it up", async || {
            let finds = AssertSqlSafe(finds.clone());
            let found: Vec<i32> = sqlx::query_scalar(finds).fetch_all(&self.stage.database.pool).await.ok()?;
            eprintln!("{alert}: held up by {found:?}");
            (found.len() == 1).then(|| found[0])
        })
        .await;
        self.terminate(alert, holder).await
    }

    async fn terminate(&self, alert: &str, pid: i32) -> Result<()> {
        let end = statement(alert, "SELECT pg_terminate_backend")?.replace("PID", &pid.to_string());
        let ended: bool = sqlx::query_scalar(AssertSqlSafe(end)).fetch_one(&self.stage.database.pool).await?;
        ensure!(ended, "{pid} was ended");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_fire_when_they_are_provoked_and_clear_by_the_runbook() -> Result<()> {
    let mut scene = Scene::new().await?;
    eventually("Prometheus knows of both relays", async || {
        scene.prometheus.has("sum(relay_lanes_held)==16").await.then_some(())
    })
    .await;
    scene.clear().await;

    keys_are_parked(&mut scene).await?;
    postgres_is_held_up(&mut scene).await?;
    a_certificate_ends(&mut scene).await?;
    the_processor_stands_still(&mut scene).await?;
    orders_are_refused(&mut scene).await?;
    kafka_takes_nothing(&mut scene).await?;
    a_relay_is_frozen(&mut scene).await?;

    let alerts = shipped("alerts.yaml")?;
    let shipped = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let untold: Vec<&str> = shipped.filter(|name| !scene.told.contains(*name) && !ELSEWHERE.contains(name)).collect();
    assert_eq!(untold, Vec::<&str>::new(), "alerts that were not provoked");
    let posted = scene.load.stop().await?;
    all_processed(&scene.stage, posted).await;
    scene.prometheus.process.stop().await?;
    stop_all(&mut scene.services).await
}

/// One event that Kafka refuses, and one order that cannot be processed.
async fn keys_are_parked(scene: &mut Scene) -> Result<()> {
    sqlx::raw_sql(REFUSE).execute(&scene.stage.database.pool).await?;
    let huge = format!("\"{}\"", "x".repeat(1_100_000));
    sqlx::query("SELECT outbox_append('thing', 'big', 'thing.changed', $1::json)")
        .bind(huge)
        .execute(&scene.stage.database.pool)
        .await?;
    orders_of(&scene.services)?.post(&NewOrder { user_id: 1, product_id: 666, quantity: 1 }).await?;
    scene.fire(&["OutriderKeysParkedByRelay", "OutriderKeysParkedByProcessor"]).await;

    ensure!(scene.operate(&["parked", "list"])?.contains("thing/big"));
    scene.operate(&["parked", "discard", "--key", "thing/big", "--why", "nobody needs it"])?;
    ensure!(scene.operate(&["dead-letters", "list", "--group-by", "reason"])?.contains("666 is not for sale"));
    sqlx::raw_sql("DROP TRIGGER refuse ON orders").execute(&scene.stage.database.pool).await?;
    scene.operate(&["dead-letters", "replay", "--reason", "not for sale", "--dry-run"])?;
    scene.operate(&["dead-letters", "replay", "--reason", "not for sale", "--yes"])?;
    scene.clear().await;
    Ok(())
}

/// A session that keeps partitions from being made while ids are used up, and a replication slot that nobody reads.
async fn postgres_is_held_up(scene: &mut Scene) -> Result<()> {
    let pool = scene.stage.database.pool.clone();
    let session = scene.forgotten("LOCK TABLE outbox IN SHARE UPDATE EXCLUSIVE MODE").await?;
    sqlx::raw_sql(
        "SELECT pg_create_physical_replication_slot('forgotten', true);
        SELECT setval(pg_get_serial_sequence('outbox', 'id'), 14000000);",
    )
    .execute(&pool)
    .await?;
    // Something for the slot to keep.
    sqlx::raw_sql("CREATE TABLE log AS SELECT repeat('x', 1000) FROM generate_series(1, 5000)").execute(&pool).await?;
    scene.fire(&["OutriderTransactionHeldOpen", "OutriderPartitionsRunOut", "OutriderReplicationSlotBehind"]).await;

    let status: Value = serde_json::from_str(&scene.operate(&["status", "--json"])?)?;
    let open = status["transactions"]["open"].as_array().context("transactions")?;
    let held = open.iter().find(|open| open["application"] == "forgotten").context("status names the holder")?;
    let holder = i32::try_from(held["pid"].as_i64().context("its process")?)?;
    let locks = statement("OutriderPartitionsRunOut", "SELECT DISTINCT pid")?;
    let pids: Vec<i32> = sqlx::query_scalar(AssertSqlSafe(locks)).fetch_all(&pool).await?;
    assert_eq!(pids, [holder], "the lock that is in the way");
    scene.terminate("OutriderTransactionHeldOpen", holder).await?;
    drop(session);
    let slot = status["slots"].to_string();
    ensure!(slot.contains("forgotten"), "status names the slot: {status}");
    let drop_slot = statement("OutriderReplicationSlotBehind", "SELECT pg_drop_replication_slot")?;
    sqlx::raw_sql(AssertSqlSafe(drop_slot.replace("NAME", "forgotten"))).execute(&pool).await?;
    scene.clear().await;
    Ok(())
}

/// Writes a certificate that ends in so many days, and its key.
fn certificate(folder: &Path, days: i64) -> Result<(PathBuf, PathBuf)> {
    let end = (Utc::now() + TimeDelta::days(days)).date_naive();
    let mut params = CertificateParams::new(["localhost".to_owned()])?;
    params.not_after = date_time_ymd(end.year(), u8::try_from(end.month())?, u8::try_from(end.day())?);
    let key = KeyPair::generate()?;
    let (certificate, private) = (folder.join("certificate.pem"), folder.join("key.pem"));
    fs::write(&private, key.serialize_pem())?;
    fs::write(&certificate, params.self_signed(&key)?.pem())?;
    Ok((certificate, private))
}

/// A further api, whose certificate ends in three days.
async fn a_certificate_ends(scene: &mut Scene) -> Result<()> {
    let folder = scene.stage.servers.folder().to_owned();
    let (certificate_file, key_file) = certificate(&folder, 3)?;
    let files = (certificate_file.display().to_string(), key_file.display().to_string());
    let env = [("API_TLS_CERT", files.0.as_str()), ("API_TLS_KEY", files.1.as_str())];
    let api = scene.stage.start(Kind::Api, "api-tls", &env).await?;
    scene.services.push(api);
    scene.prometheus.look_at(&scene.services)?;
    scene.fire(&["OutriderCertificateEnds"]).await;

    certificate(&folder, 90)?;
    scene.clear().await;
    Ok(())
}

/// A lock that keeps batches from being applied, and the events that are late when it is gone.
async fn the_processor_stands_still(scene: &mut Scene) -> Result<()> {
    let session = scene.forgotten("LOCK TABLE inbox IN ACCESS EXCLUSIVE MODE").await?;
    scene.fire(&["OutriderProcessorBehind", "OutriderEventsStuckInKafka"]).await;

    scene.end_what_holds("OutriderProcessorBehind").await?;
    drop(session);
    scene.fire(&["OutriderLateBudgetBurns"]).await;
    scene.clear().await;
    Ok(())
}

/// A lock that keeps orders from being written.
async fn orders_are_refused(scene: &mut Scene) -> Result<()> {
    let session = scene.forgotten("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE").await?;
    scene.fire(&["OutriderErrorBudgetBurns"]).await;

    scene.end_what_holds("OutriderErrorBudgetBurns").await?;
    drop(session);
    scene.clear().await;
    Ok(())
}

/// A broker that answers nobody.
async fn kafka_takes_nothing(scene: &mut Scene) -> Result<()> {
    let broker = scene.stage.servers.kafka().context("a broker")?.process().pid();
    kill_process_group(broker, Signal::STOP)?;
    scene.fire(&["OutriderEventsNotPublished", "OutriderRelaySessionsFail"]).await;

    kill_process_group(broker, Signal::CONT)?;
    scene.clear().await;
    Ok(())
}

/// A relay that wakes after its lanes have been taken.
async fn a_relay_is_frozen(scene: &mut Scene) -> Result<()> {
    let relay = scene.services.iter().rposition(|service| service.kind() == Kind::Relay).context("a relay")?;
    // What it fails of first when it wakes is a race: that its lanes are gone, or that a record which was in flight has run out of
    // time, and then it begins anew and has no lanes to lose. So again, until it was the lanes.
    for _ in 0..10 {
        eventually("both relays have lanes", async || {
            scene.prometheus.has("count(relay_lanes_held==8)==2").await.then_some(())
        })
        .await;
        scene.services[relay].process().freeze()?;
        eventually("the other relay has all lanes", async || {
            scene.prometheus.has("relay_lanes_held==16").await.then_some(())
        })
        .await;
        scene.services[relay].process().thaw()?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        if scene.prometheus.active().await?.iter().any(|(alert, _)| alert == "OutriderLeaseChurn") {
            break;
        }
    }
    scene.fire(&["OutriderLeaseChurn"]).await;
    scene.clear().await;
    Ok(())
}
