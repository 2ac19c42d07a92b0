//! Routes: by the environment, by the table, and while a relay runs.

use shared::testing::{eventually, unique};
use sqlx::PgPool;

use crate::support::{Fixture, all_settled, assert_complete_and_in_order, insert, published};

async fn route(pool: &PgPool, aggregate_type: &str, topic: &str) {
    sqlx::query(
        "INSERT INTO relay_routes VALUES ($1, $2) ON CONFLICT (aggregate_type) DO UPDATE SET topic = excluded.topic",
    )
    .bind(aggregate_type)
    .bind(topic)
    .execute(pool)
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_go_to_the_topic_of_their_types_route() {
    let fixture = Fixture::new("events_go_to_the_topic_of").await;
    let pool = &fixture.database.pool;
    let [by_environment, by_table, by_neither] = ["environment", "table", "neither"].map(unique);
    let [shop, billing] = ["shop.orders", "billing.payments"].map(unique);
    // The environment wins where both name a type.
    route(pool, &by_environment, "elsewhere").await;
    route(pool, &by_table, &billing).await;
    let relay = fixture.relay(&[("RELAY_ROUTES", &format!("{by_environment}={shop}"))]);
    let mut connection = pool.acquire().await.unwrap();
    for aggregate_type in [&by_environment, &by_table, &by_neither] {
        for version in 1..=3 {
            insert(&mut connection, aggregate_type, "k", version, "{}").await;
        }
    }
    for (topic, aggregate_type) in [(shop, by_environment), (billing, by_table), (format!("{by_neither}s"), by_neither)]
    {
        let records = published(&topic, 3).await;
        assert_complete_and_in_order(&records, |_| 3, 1);
        assert_eq!(records[0].headers["ce_source"], format!("/outrider/{aggregate_type}"), "whatever the topic");
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn types_without_a_route_of_their_own_follow_the_pattern() {
    let fixture = Fixture::new("types_without_a_route").await;
    let prefix = unique("outbox.event");
    route(&fixture.database.pool, "*", &format!("{prefix}.*")).await;
    let relay = fixture.relay(&[]);
    fixture.insert_all("k", 1, 3).await;
    let records = published(&format!("{prefix}.{}", fixture.aggregate_type), 3).await;
    assert_complete_and_in_order(&records, |_| 3, 1);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_relay_takes_up_a_changed_route() {
    let fixture = Fixture::new("a_running_relay_takes_up").await;
    let relay = fixture.relay(&[]);
    fixture.insert_all("k", 1, 3).await;
    fixture.published(3).await;
    all_settled(&fixture).await;
    let topic = unique("moved");
    route(&fixture.database.pool, &fixture.aggregate_type, &topic).await;
    // Each event goes to one of the two topics, the old one until the relay has read the table again.
    let mut version = 3;
    eventually("an event is published to the new topic", async || {
        version += 1;
        fixture.insert_all("k", version, version).await;
        all_settled(&fixture).await;
        topic_exists(&topic).then_some(())
    })
    .await;
    let before = fixture.published(usize::try_from(version - 1).unwrap()).await;
    assert_complete_and_in_order(&before, |_| version - 1, 1);
    let after = published(&topic, 1).await;
    assert_eq!(after.iter().map(|record| record.version).collect::<Vec<_>>(), [version]);
    relay.stop().await;
}

/// Whether the brokers know the topic; asking makes none.
fn topic_exists(topic: &str) -> bool {
    use rdkafka::consumer::Consumer;
    let consumer: rdkafka::consumer::BaseConsumer =
        rdkafka::ClientConfig::new().set("bootstrap.servers", shared::testing::kafka_brokers()).create().unwrap();
    let metadata = consumer.fetch_metadata(None, std::time::Duration::from_secs(5)).unwrap();
    metadata.topics().iter().any(|found| found.name() == topic)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_legal_topics_can_be_routes() {
    let fixture = Fixture::new("only_legal_topics").await;
    let long = "x".repeat(250);
    for (aggregate_type, topic) in [
        ("order", "a b"),
        ("order", ""),
        ("order", ".."),
        ("order", "a*"),
        ("order", &long),
        ("*", "all"),
        ("*", "*.*"),
    ] {
        let refused = sqlx::query("INSERT INTO relay_routes VALUES ($1, $2)")
            .bind(aggregate_type)
            .bind(topic)
            .execute(&fixture.database.pool)
            .await;
        let error = refused.unwrap_err();
        let constraint = error.as_database_error().and_then(|error| error.constraint());
        assert_eq!(constraint, Some("relay_routes_topic_check"), "{aggregate_type}={topic}: {error}");
    }
    route(&fixture.database.pool, "*", "outbox.event.*").await;
    route(&fixture.database.pool, "order", "shop.orders_v1-x").await;
}
