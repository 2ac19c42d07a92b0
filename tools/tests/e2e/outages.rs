//! A broker that goes away for a while, under relays that have work.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rand::RngExt;
use rustix::process::Signal;
use shared::testing::eventually;
use tools::stack::Kind;

use super::pipeline::{RELAY_ENV, Stage, versions_on_topic};

const KEYS: i64 = 60;

/// Between two rounds of the writer: a version of every key each.
const PACE: Duration = Duration::from_millis(10);

/// Two relays, and a writer that gives every key one version after the other until it is told to stop.
struct Scene {
    stage: Stage,
    versions: Arc<AtomicI64>,
}

impl Scene {
    async fn new(test: &str) -> Result<Self> {
        Ok(Self { stage: Stage::new(test).await?, versions: Arc::new(AtomicI64::new(0)) })
    }

    /// Writes until `outage` is over.
    async fn write_during(&self, outage: impl Future<Output = Result<()>>) -> Result<()> {
        let pool = self.stage.database.pool.clone();
        let versions = Arc::clone(&self.versions);
        let writer = tokio::spawn(async move {
            loop {
                let version = versions.fetch_add(1, Ordering::Relaxed) + 1;
                sqlx::query(
                    "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
                     SELECT gen_random_uuid(), 'order', 'k' || key, $1, 'order.changed', '{\"some\": \"payload\"}'
                     FROM generate_series(1, $2) key",
                )
                .bind(version)
                .bind(KEYS)
                .execute(&pool)
                .await
                .expect("Postgres is well");
                tokio::time::sleep(PACE).await;
            }
        });
        let over = outage.await;
        // Cut off amid a statement, its version is written whole or not at all: the next lines look which.
        writer.abort();
        let _ = writer.await;
        let written: i64 = sqlx::query_scalar("SELECT coalesce(max(aggregate_version), 0) FROM outbox")
            .fetch_one(&self.stage.database.pool)
            .await?;
        self.versions.store(written, Ordering::Relaxed);
        over
    }

    /// Everything is published, and of each key in order.
    async fn assert_complete_and_in_order(&self) -> Result<()> {
        let versions = self.versions.load(Ordering::Relaxed);
        let events = usize::try_from(versions * KEYS)?;
        let topic = versions_on_topic(&self.stage.surroundings.kafka_brokers, events).await;
        let expected: Vec<i64> = (1..=versions).collect();
        for (key, found) in &topic {
            if let Some(place) = found.iter().zip(&expected).position(|(found, expected)| found != expected) {
                let near = &found[place..(place + 5).min(found.len())];
                panic!("{key}: {near:?} where {} was to come, of {versions}", expected[place]);
            }
        }
        assert_eq!(topic.len(), usize::try_from(KEYS)?);
        assert_eq!(self.stage.count("SELECT count(*) FROM relay_parked").await, 0, "parked events");
        Ok(())
    }

    async fn settled_beyond(&self, position: i64) {
        eventually("the relays go on", async || {
            (self.stage.count("SELECT max(position) FROM relay_lanes").await > position).then_some(())
        })
        .await;
    }
}

/// A broker that stands still, again and again, for about as long as a record may wait: when it goes on, some records of a key have been
/// given up and their youngers have not.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_stands_still_for_a_while_reorders_nothing() -> Result<()> {
    let mut scene = Scene::new("a_broker_that_stands_still").await?;
    let mut relays = vec![
        scene.stage.start(Kind::Relay, "relay-1", &RELAY_ENV).await?,
        scene.stage.start(Kind::Relay, "relay-2", &RELAY_ENV).await?,
    ];
    let broker = scene.stage.servers.kafka().context("a broker")?.process().pid();
    let stage = async {
        for _ in 0..10 {
            scene.settled_beyond(scene.stage.count("SELECT coalesce(max(id), 0) FROM outbox").await).await;
            rustix::process::kill_process_group(broker, Signal::STOP)?;
            let still = Duration::from_millis(rand::rng().random_range(1_400..3_400));
            tokio::time::sleep(still).await;
            rustix::process::kill_process_group(broker, Signal::CONT)?;
        }
        Ok(())
    };
    scene.write_during(stage).await?;
    scene.assert_complete_and_in_order().await?;
    for relay in &mut relays {
        relay.stop().await?;
    }
    Ok(())
}
