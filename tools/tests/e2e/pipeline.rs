//! The three services as real processes: an order's whole way, and the promises while everything is killed and frozen.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use api::representation::OrderDocument;
use shared::testing::{PATIENCE, TestDatabase, eventually, first_appearances, partitions_of, published_at};
use tools::http::{NewOrder, OrdersApi, client};
use tools::stack::service::Surroundings;
use tools::stack::throwaway::{Supply, Throwaway};
use tools::stack::{Kind, Service};

use super::harness::surroundings;
use super::supply;

/// Beside the other tests it may take more than a second to open the first connection to Postgres, and an order that waits for it longer is
/// refused.
const PATIENT_API: [(&str, &str); 2] = [("API_CONNECT_TIMEOUT_MS", "60000"), ("API_QUEUE_AGE_MAX_MS", "60000")];

/// Short enough for a test to outlast it several times.
pub(super) const RELAY_ENV: [(&str, &str); 4] = [
    ("RELAY_LEASE_MS", "3000"),
    ("RELAY_MESSAGE_TIMEOUT_MS", "1500"),
    ("RELAY_LEASE_MARGIN_MS", "500"),
    ("RELAY_SETTLE_MS", "50"),
];

/// The least that a broker allows by default: a killed member's partitions are free after it.
const PROCESSOR_ENV: [(&str, &str); 2] = [("PROCESSOR_SESSION_TIMEOUT_MS", "6000"), ("PROCESSOR_BATCH_ROWS_MAX", "50")];

/// A database, and a Kafka of its own: the topic `orders` is that of every pipeline.
pub(super) struct Stage {
    pub(super) database: TestDatabase,
    pub(super) surroundings: Surroundings,
    pub(super) supply: Supply,
    // Last: the services end before their servers.
    pub(super) servers: Throwaway,
}

impl Stage {
    pub(super) async fn new(test: &str) -> Result<Self> {
        Self::around(TestDatabase::create(test).await, supply()?, Throwaway::new()?).await
    }

    /// The same with a Postgres of its own, for tests of what concerns the whole server.
    pub(super) async fn with_postgres(test: &str) -> Result<Self> {
        let (supply, mut servers) = (supply()?, Throwaway::new()?);
        let url = servers.start_postgres(&supply).await?;
        Self::around(TestDatabase::create_on(&url, test).await, supply, servers).await
    }

    async fn around(database: TestDatabase, supply: Supply, mut servers: Throwaway) -> Result<Self> {
        let kafka_brokers = servers.start_kafka(&supply).await?;
        let surroundings = surroundings(&database.url, kafka_brokers, servers.folder().to_owned())?;
        Ok(Self { database, surroundings, supply, servers })
    }

    pub(super) async fn start(&self, kind: Kind, name: &str, env: &[(&str, &str)]) -> Result<Service> {
        let env = [&PATIENT_API[..], env].concat();
        let mut service = Service::start(kind, name, &self.surroundings, &env, &self.supply.reaper)?;
        service.wait_ready().await?;
        Ok(service)
    }

    /// Starts one of each, and waits until they are ready; in the order of [`Kind::ALL`].
    pub(super) async fn start_all(&self) -> Result<Vec<Service>> {
        let mut services = Vec::new();
        for kind in Kind::ALL {
            let env = if kind == Kind::Relay { &RELAY_ENV[..] } else { &[] };
            services.push(self.start(kind, kind.name(), env).await?);
        }
        Ok(services)
    }

    /// Starts one that is not waited for: it may be killed before it is ready.
    fn launch(&self, kind: Kind, name: &str, env: &[(&str, &str)]) -> Result<Service> {
        Service::start(kind, name, &self.surroundings, env, &self.supply.reaper)
    }

    pub(super) async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.database.pool).await.expect("the database answers")
    }

    async fn all_processed(&self, orders: i64) {
        eventually("all orders are Processed", async || {
            (self.count("SELECT count(*) FROM orders WHERE status = 'Processed' AND version = 2").await == orders)
                .then_some(())
        })
        .await;
    }

    /// Every order has exactly its two transitions and its two events, in the database and, in their order, on the topic.
    async fn assert_exactly_once(&self, orders: i64) -> Result<()> {
        for (what, sql) in [
            ("orders", "SELECT count(*) FROM orders WHERE status = 'Processed' AND version = 2"),
            ("creations", "SELECT count(*) FROM order_transitions WHERE version = 1 AND from_status IS NULL"),
            (
                "transitions",
                "SELECT count(*) FROM order_transitions WHERE version = 2 AND from_status = 'Pending' AND to_status = 'Processed'",
            ),
            (
                "transitions with the event that tells of them",
                "SELECT count(*) / 2 FROM order_transitions t JOIN outbox o ON o.event_id = t.event_id
                    AND o.aggregate_id = t.order_id::text AND o.aggregate_version = t.version",
            ),
        ] {
            assert_eq!(self.count(sql).await, orders, "{what}");
        }
        for (what, sql) in [
            ("other transitions", "SELECT count(*) FROM order_transitions WHERE version > 2"),
            ("dead letters", "SELECT count(*) FROM dead_letters"),
            ("other events", "SELECT count(*) FROM outbox WHERE aggregate_version > 2"),
        ] {
            assert_eq!(self.count(sql).await, 0, "{what}");
        }
        let wanted = usize::try_from(orders)?;
        let brokers = &self.surroundings.kafka_brokers;
        let topic = versions_on_topic(brokers, 2 * wanted).await;
        assert_eq!(partitions_of(brokers, "orders").await, 12, "partitions of a topic that was made");
        ensure!(topic.len() == wanted, "{} orders on the topic", topic.len());
        for (key, versions) in topic {
            assert_eq!(versions, [1, 2], "versions of order {key} on the topic, repeats left out");
        }
        Ok(())
    }
}

/// The orders of the api among these.
pub(super) fn orders_of(services: &[Service]) -> Result<OrdersApi> {
    OrdersApi::new(services.iter().find_map(Service::api_url).context("an api")?.parse()?)
}

/// Shuts all of them down, in order.
pub(super) async fn stop_all(services: &mut [Service]) -> Result<()> {
    for service in services {
        assert!(service.stop().await?.success(), "{:?} ended well", service.kind());
    }
    Ok(())
}

/// Each order's versions in the order in which they first appear on the topic, once so many different events are there.
pub(super) async fn versions_on_topic(brokers: &str, wanted: usize) -> HashMap<String, Vec<i64>> {
    first_appearances(&published_at(brokers, "orders", wanted).await)
}

async fn post(api: &OrdersApi, count: u64) -> Result<()> {
    let mut posts = tokio::task::JoinSet::new();
    for number in 0..count {
        let api = api.clone();
        posts.spawn(async move {
            api.post(&NewOrder { user_id: 1 + number % 100, product_id: 1 + number % 7, quantity: 1 }).await
        });
        if posts.len() >= 64 {
            posts.join_next().await.context("a post")???;
        }
    }
    while let Some(posted) = posts.join_next().await {
        posted??;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_goes_the_whole_way() -> Result<()> {
    let stage = Stage::new("an_order_goes_the_whole_way").await?;
    let mut api = stage.start(Kind::Api, "api", &[]).await?;
    let mut relay = stage.start(Kind::Relay, "relay", &RELAY_ENV).await?;
    let mut processor = stage.start(Kind::Processor, "processor", &PROCESSOR_ENV).await?;
    // As the clients of the system that this one replaces post it.
    let url = api.api_url().context("the api has a URL")?;
    let answer = client()?
        .post(format!("{url}/orders"))
        .header("content-type", "application/json")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .body(r#"{"ID":0,"CreatedAt":"0001-01-01T00:00:00Z","UpdatedAt":"0001-01-01T00:00:00Z","DeletedAt":null,"user_id":7,"product_id":42,"quantity":3,"status":"Shipped"}"#)
        .send()
        .await?;
    assert_eq!(answer.status().as_u16(), 201);
    assert_eq!(answer.headers().get("location").context("a Location")?, "/orders/1");
    let body = answer.text().await?;
    let order: serde_json::Value = serde_json::from_str(&body)?;
    assert_eq!(order["ID"], 1);
    assert_eq!((&order["status"], &order["version"]), (&"Pending".into(), &1.into()));

    stage.all_processed(1).await;
    let read = client()?.get(format!("{url}/orders/1")).send().await?.text().await?;
    let read: serde_json::Value = serde_json::from_str(&read)?;
    assert_eq!((&read["status"], &read["version"], &read["user_id"]), (&"Processed".into(), &2.into(), &7.into()));
    stage.assert_exactly_once(1).await?;
    let payload: String = sqlx::query_scalar("SELECT payload::text FROM outbox WHERE aggregate_version = 1")
        .fetch_one(&stage.database.pool)
        .await?;
    let shown = OrderDocument::from(payload).represent().expect("an order");
    assert_eq!(String::from_utf8(shown)?, body, "the event carries the order of the answer");
    // All three end in good order.
    for service in [&mut api, &mut relay, &mut processor] {
        assert!(service.stop().await?.success(), "{:?} ended well", service.kind());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_and_processors_killed_amid_a_backlog_lose_nothing_and_apply_nothing_twice() -> Result<()> {
    const ORDERS: u64 = 4_000;
    let stage = Stage::new("relays_and_processors_killed").await?;
    let mut api = stage.start(Kind::Api, "api", &[]).await?;
    let orders = OrdersApi::new(api.api_url().context("the api has a URL")?.parse()?)?;
    let posting =
        tokio::spawn(async move { post(&orders, ORDERS).await.inspect_err(|error| eprintln!("posting: {error:#}")) });

    // Each round, one of two relays and one of two processors are killed at some moment of their work.
    let mut steady = stage.start(Kind::Relay, "relay-steady", &RELAY_ENV).await?;
    let mut other = stage.start(Kind::Processor, "processor-steady", &PROCESSOR_ENV).await?;
    for round in 0..3 {
        let mut relay = stage.launch(Kind::Relay, &format!("relay-{round}"), &RELAY_ENV)?;
        let mut processor = stage.launch(Kind::Processor, &format!("processor-{round}"), &PROCESSOR_ENV)?;
        let before = stage.count("SELECT count(*) FROM order_transitions WHERE version = 2").await;
        eventually("the pipeline moves on", async || {
            let now = stage.count("SELECT count(*) FROM order_transitions WHERE version = 2").await;
            (now >= (before + 300).min(i64::try_from(ORDERS).ok()?)).then_some(())
        })
        .await;
        if round == 1 {
            // The steady ones go this time; the newcomers take over.
            steady.process().kill().await?;
            other.process().kill().await?;
            std::mem::swap(&mut steady, &mut relay);
            std::mem::swap(&mut other, &mut processor);
        } else {
            relay.process().kill().await?;
            processor.process().kill().await?;
        }
    }
    posting.await??;
    let total = i64::try_from(ORDERS)?;
    stage.all_processed(total).await;
    stage.assert_exactly_once(total).await?;
    api.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_killed_between_database_commit_and_kafka_commit_applies_nothing_twice() -> Result<()> {
    const ORDERS: u64 = 200;
    let stage = Stage::new("a_processor_killed_between").await?;
    let mut api = stage.start(Kind::Api, "api", &[]).await?;
    let mut relay = stage.start(Kind::Relay, "relay", &RELAY_ENV).await?;
    post(&OrdersApi::new(api.api_url().context("the api has a URL")?.parse()?)?, ORDERS).await?;
    // Each dies right after the first commit of its life: the effects are there, and Kafka has been told nothing.
    for round in 0..3 {
        let before = stage.count("SELECT coalesce(sum(next_offset), 0)::bigint FROM consumer_offsets").await;
        let env = [PROCESSOR_ENV[0], PROCESSOR_ENV[1], ("PROCESSOR_FAILPOINT", "after-db-commit")];
        let mut processor = stage.launch(Kind::Processor, &format!("processor-{round}"), &env)?;
        let status = tokio::time::timeout(PATIENCE, processor.process().wait()).await??;
        assert!(!status.success(), "it was to abort");
        let after = stage.count("SELECT coalesce(sum(next_offset), 0)::bigint FROM consumer_offsets").await;
        assert!(after > before, "it had committed to the database");
    }
    let mut processor = stage.start(Kind::Processor, "processor", &PROCESSOR_ENV).await?;
    let total = i64::try_from(ORDERS)?;
    stage.all_processed(total).await;
    stage.assert_exactly_once(total).await?;
    for service in [&mut api, &mut relay, &mut processor] {
        service.stop().await?;
    }
    Ok(())
}
