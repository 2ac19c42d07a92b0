//! A database, brokers, a relay's surroundings and a reader: the stage of one test about topics in trouble.

use std::time::Duration;

use anyhow::Result;
use shared::testing::{TestDatabase, eventually_within};
use tokio::time::{Instant, sleep};
use tools::stack::service::Surroundings;
use tools::stack::throwaway::Supply;
use tools::stack::{Kind, Service};

use super::broker::{Broker, BrokerOptions};
use super::reader::Reader;
use super::writer::Written;
use super::{supply, surroundings};

/// See the module.
pub(crate) struct Scene {
    pub(crate) database: TestDatabase,
    pub(crate) reader: Reader,
    pub(crate) surroundings: Surroundings,
    pub(crate) supply: Supply,
    // Last: clients end before their broker.
    pub(crate) broker: Broker,
}

/// Of a test that fails, what the relay said last.
impl Drop for Scene {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let log = std::fs::read_to_string(self.surroundings.logs.join("relay.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        eprintln!(
            "the relay's last lines:\n{}",
            lines.get(lines.len().saturating_sub(60)..).unwrap_or_default().join("\n")
        );
    }
}

impl Scene {
    pub(crate) async fn start(test: &str, options: &BrokerOptions) -> Result<Self> {
        let supply = supply()?;
        let database = TestDatabase::create(test).await;
        let broker = Broker::start(&supply, options).await?;
        let surroundings = surroundings(&database.url, broker.brokers(), broker.folder())?;
        let reader = Reader::start(&broker.brokers())?;
        Ok(Self { database, reader, surroundings, supply, broker })
    }

    /// Starts a service and waits until it is ready.
    pub(crate) async fn service(&self, kind: Kind, name: &str, env: &[(&str, &str)]) -> Result<Service> {
        let mut service = Service::start(kind, name, &self.surroundings, env, &self.supply.reaper)?;
        service.wait_ready().await?;
        Ok(service)
    }

    /// Starts a relay and waits until it is ready.
    pub(crate) async fn relay(&self, name: &str, env: &[(&str, &str)]) -> Result<Service> {
        self.service(Kind::Relay, name, env).await
    }

    /// In how many lanes types wait for their topic.
    pub(crate) async fn waiting(&self) -> Option<i64> {
        sqlx::query_scalar("SELECT count(*) FROM relay_waiting").fetch_one(&self.database.pool).await.ok()
    }

    /// Waits until so many events have arrived on a topic.
    pub(crate) async fn flows(&self, topic: &str, events: u64) {
        let what = format!("{events} events on {topic}");
        eventually_within(Duration::from_secs(20), &what, async || {
            (self.reader.figures(topic, 0..i64::MAX).events >= events).then_some(())
        })
        .await;
    }

    /// Waits until all of these events have arrived.
    ///
    /// # Panics
    /// When they have not in time; the message says how many are missing.
    pub(crate) async fn complete_within(&self, patience: Duration, what: &str, written: &Written) {
        if let Err(missing) = self.arrived_within(patience, written).await {
            panic!("{what}: {missing} events have not arrived in {patience:?}");
        }
    }

    /// Waits until all of these events have arrived, and says how long that took, or how many are missing.
    pub(crate) async fn arrived_within(&self, patience: Duration, written: &Written) -> Result<Duration, i64> {
        let begun = Instant::now();
        loop {
            match self.reader.missing(written) {
                0 => return Ok(begun.elapsed()),
                missing if begun.elapsed() > patience => return Err(missing),
                _ => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// In how many lines the relay's log has these words about this topic.
    pub(crate) fn said(&self, words: &str, topic: &str) -> usize {
        let topic = format!("{topic:?}");
        let log = std::fs::read_to_string(self.surroundings.logs.join("relay.log")).unwrap_or_default();
        log.lines().filter(|line| line.contains(words) && line.contains(&topic)).count()
    }

    /// How many events wait in `relay_parked`.
    pub(crate) async fn parked(&self) -> Result<i64> {
        Ok(sqlx::query_scalar("SELECT count(*) FROM relay_parked").fetch_one(&self.database.pool).await?)
    }
}
