//! A primary that dies under relays that have work, and a standby that takes its place.

mod pair;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use relay::RelayConfig;
use relay::outbox::slots::replication_slots;
use shared::config::Env;
use shared::shutdown::Shutdown;
use shared::testing::{eventually, kafka_brokers, published, unique};
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tools::stack::free_port;

use super::command_line::outrider;
use super::doctor::{doctor, examined, has};
use super::supply;
use pair::Pair;

const WRITERS: usize = 4;
const KEYS: usize = 6;

/// A relay inside of this process.
pub(super) struct Relay {
    admin_port: u16,
    shutdown: Shutdown,
    pub(super) task: JoinHandle<Result<()>>,
}

impl Relay {
    pub(super) fn start(url: &str) -> Result<Self> {
        let (admin_port, brokers) = (free_port()?, kafka_brokers());
        let admin = format!("127.0.0.1:{admin_port}");
        let settings = [
            ("DATABASE_URL", url),
            ("DB_ROLE", "outrider_relay"),
            ("KAFKA_BROKERS", brokers.as_str()),
            ("ADMIN_BIND", admin.as_str()),
            ("RELAY_LEASE_MS", "3000"),
            ("RELAY_MESSAGE_TIMEOUT_MS", "1500"),
            ("RELAY_LEASE_MARGIN_MS", "500"),
            ("RELAY_LANE_ROWS_MAX", "20"),
        ];
        let config = RelayConfig::from_env(&Env::from_pairs(settings))?;
        let shutdown = Shutdown::new();
        let task = tokio::spawn(relay::run(config, shutdown.clone()));
        Ok(Self { admin_port, shutdown, task })
    }

    /// What `/readyz` says, status line included.
    async fn readiness(&self) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin_port)).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    async fn says(&self, what: &str) {
        eventually(&format!("/readyz says {what}"), async || {
            assert!(!self.task.is_finished(), "the relay has ended");
            self.readiness().await.is_ok_and(|answer| answer.contains(what)).then_some(())
        })
        .await;
    }

    pub(super) async fn stop(self) -> Result<()> {
        self.shutdown.request();
        self.task.await?
    }
}

/// Gives each of its keys one version after the other until it is told to stop; returns the highest of each that was acknowledged. The
/// version comes from the database, since nobody knows what became of a commit without an answer.
async fn write(
    url: String,
    writer: usize,
    aggregate_type: String,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicI64>,
) -> HashMap<String, i64> {
    let mut highest = HashMap::new();
    let mut connection: Option<PgConnection> = None;
    while !stop.load(Ordering::Relaxed) {
        let Some(open) = &mut connection else {
            connection = PgConnection::connect(&url).await.ok();
            if connection.is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            continue;
        };
        let key = format!("{writer}-{}", rand::random_range(0..KEYS));
        let sql = "WITH changed AS (
                INSERT INTO things AS t VALUES ($2, 1) ON CONFLICT (id) DO UPDATE SET version = t.version + 1 RETURNING version
            )
            INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
            SELECT gen_random_uuid(), $1, $2, version, 'thing.changed', '{}' FROM changed RETURNING aggregate_version";
        match sqlx::query_scalar::<_, i64>(sql).bind(&aggregate_type).bind(&key).fetch_one(open).await {
            Ok(version) => {
                highest.insert(key, version);
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            // Cut off, or led to a server that takes no writes yet.
            Err(_) => connection = None,
        }
    }
    highest
}

async fn grows_by(counter: &AtomicI64, more: i64) {
    let from = counter.load(Ordering::Relaxed);
    eventually("the writers go on", async || (counter.load(Ordering::Relaxed) >= from + more).then_some(())).await;
}

/// Ids of the events that the settled cursors cover, on this server.
async fn settled(connection: &mut PgConnection) -> Result<HashSet<String>> {
    let sql = "SELECT o.event_id::text FROM outbox o JOIN relay_lanes l USING (lane)
        LEFT JOIN relay_waiting w ON w.lane = o.lane AND w.aggregate_type = o.aggregate_type
        WHERE o.id <= l.position AND pg_visible_in_snapshot(o.txid::text::xid8, l.seen)
            AND (w.lane IS NULL OR (o.id <= w.position AND pg_visible_in_snapshot(o.txid::text::xid8, w.seen)))";
    Ok(sqlx::query_scalar(sql).fetch_all(connection).await?.into_iter().collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_killed_amid_publishing_and_a_promoted_standby_lose_and_reorder_nothing() -> Result<()> {
    let mut pair = Pair::start(&supply()?).await?;
    let (url, aggregate_type) = (pair.url(), unique("thing"));
    let mut primary = pair.at_primary().await?;
    sqlx::raw_sql("CREATE TABLE things (id text PRIMARY KEY, version bigint NOT NULL)").execute(&mut primary).await?;
    let relays = [Relay::start(&url)?, Relay::start(&url)?];
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            tokio::spawn(write(
                url.clone(),
                writer,
                aggregate_type.clone(),
                Arc::clone(&stop),
                Arc::clone(&acknowledged),
            ))
        })
        .collect();
    for relay in &relays {
        relay.says("200 OK").await;
    }
    // A transaction that is open when the primary dies: in the lists of the settled snapshots, and never heard of again.
    let mut held = pair.at_primary().await?;
    sqlx::raw_sql("BEGIN; INSERT INTO things VALUES ('held', 1)").execute(&mut held).await?;
    sqlx::query("INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload) VALUES (gen_random_uuid(), $1, 'held', 1, 'thing.changed', '{}')")
        .bind(&aggregate_type)
        .execute(&mut held)
        .await?;
    grows_by(&acknowledged, 500).await;
    eventually("much is published and settled", async || {
        (settled(&mut primary).await.ok()?.len() >= 300).then_some(())
    })
    .await;
    let slots = replication_slots(&mut primary).await?;
    assert!(slots.iter().any(|slot| slot.name == "standby" && slot.active && slot.xmin_age.is_some()), "{slots:?}");

    // Cut off first: a backend that outlives the server's main process by a moment may show what no standby has confirmed.
    pair.proxy.lead_to(None);
    pair.primary.process().kill().await?;
    let killed = now_ms()?;

    // Led to the standby, the relays wait and say why; what is run by hand refuses.
    pair.proxy.lead_to(Some(pair.standby.port()));
    for relay in &relays {
        relay.says("is a standby").await;
    }
    for command in ["migrate", "replay --from-id 1 --dry-run"] {
        let output = outrider(command).env("DATABASE_URL", &url).env("KAFKA_BROKERS", kafka_brokers()).output()?;
        let said = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(1), "{command}: {said}");
        assert!(said.contains("is a standby") && said.contains("DATABASE_URL"), "{command}: {said}");
    }
    has(&examined(&mut doctor(&url, &kafka_brokers()))?, "database.primary", "wrong", "is a standby")?;
    let mut standby = pair.at_standby().await?;
    eventually("all that was received is there", async || {
        let sql = "SELECT pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()";
        sqlx::query_scalar::<_, bool>(sql).fetch_one(&mut standby).await.ok()?.then_some(())
    })
    .await;
    let before = settled(&mut standby).await?;
    sqlx::query("SELECT pg_promote()").execute(&mut standby).await?;

    for relay in &relays {
        relay.says("200 OK").await;
    }
    grows_by(&acknowledged, 300).await;
    stop.store(true, Ordering::Relaxed);
    let mut highest = HashMap::new();
    for writer in writers {
        highest.extend(writer.await?);
    }
    let rows: Vec<(String, String, i64)> =
        sqlx::query_as("SELECT event_id::text, aggregate_id, aggregate_version FROM outbox")
            .fetch_all(&mut standby)
            .await?;
    check(&aggregate_type, rows, &highest, &before, killed).await?;
    for relay in relays {
        relay.stop().await?;
    }
    Ok(())
}

/// What was acknowledged is there; what is there was published, and nothing else; each key's in order; and nothing was repeated that was settled.
async fn check(
    aggregate_type: &str,
    rows: Vec<(String, String, i64)>,
    highest: &HashMap<String, i64>,
    settled: &HashSet<String>,
    killed: i64,
) -> Result<()> {
    let mut versions: HashMap<&str, i64> = HashMap::new();
    for (_, key, version) in &rows {
        let known = versions.entry(key).or_default();
        *known = (*known).max(*version);
    }
    for (key, version) in highest {
        assert!(versions.get(key.as_str()) >= Some(version), "{key}: {version} was acknowledged");
    }
    assert!(!versions.contains_key("held"));
    let (topic, distinct) = (format!("{aggregate_type}s"), rows.len());
    let records = published(&topic, distinct).await;
    let mut seen = HashSet::new();
    let mut published: HashMap<&str, Vec<i64>> = HashMap::new();
    for record in &records {
        if seen.insert(record.event_id.as_str()) {
            published.entry(&record.key).or_default().push(record.version);
        } else if record.timestamp_ms > killed && settled.contains(&record.event_id) {
            bail!("version {} of {} was settled, and published again", record.version, record.key);
        }
    }
    let written: HashSet<&str> = rows.iter().map(|(event_id, ..)| event_id.as_str()).collect();
    assert_eq!(seen, written, "events published and written");
    for (key, found) in published {
        let expected: Vec<i64> = (1..=versions[key]).collect();
        assert_eq!(found, expected, "versions of {key}");
    }
    Ok(())
}

fn now_ms() -> Result<i64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is right")?;
    Ok(i64::try_from(since.as_millis())?)
}
