//! Postgres and Kafka of our own.

use anyhow::{Context, Result};
use rdkafka::consumer::{BaseConsumer, Consumer};
use shared::config::Env;
use shared::kafka::KafkaConfig;
use sqlx::{Connection, Executor};
use std::time::Duration;
use tools::stack::kafka::KafkaOptions;
use tools::stack::postgres::{PostgresOptions, connect};
use tools::stack::reaper::started;
use tools::stack::throwaway::{Supply, Throwaway};
use tools::stack::{Kafka, Postgres};

use super::supply;

async fn start_postgres(supply: &Supply, place: &Throwaway, settings: &[(&str, &str)]) -> Result<Postgres> {
    let folder = place.folder().join("pg");
    let log = place.folder().join("pg.log");
    let binaries = supply.postgres(&log, &folder).await?;
    let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let options = PostgresOptions { folder, log, durable: false, settings };
    Postgres::start(&binaries, &options, &supply.reaper).await
}

#[tokio::test]
async fn postgres_keeps_its_data_over_a_stop_and_over_a_kill() -> Result<()> {
    let supply = supply()?;
    let place = Throwaway::new()?;
    let mut postgres = start_postgres(&supply, &place, &[]).await?;
    postgres.create_database("shop").await?;
    postgres.create_database("shop").await?;
    let mut connection = connect(&postgres.url("shop")).await?;
    connection.execute("CREATE TABLE t AS SELECT 1 AS n").await?;
    connection.close().await?;
    let pid = postgres.process().pid();
    postgres.stop().await?;
    assert_eq!(started(pid), None);

    let mut postgres = start_postgres(&supply, &place, &[]).await?;
    postgres.process().kill().await?;

    let postgres = start_postgres(&supply, &place, &[("application_name", "mine")]).await?;
    let mut connection = connect(&postgres.url("shop")).await?;
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(&mut connection).await?;
    assert_eq!(count, 1);
    Ok(())
}

#[tokio::test]
async fn postgres_lets_nobody_in_without_the_password() -> Result<()> {
    let supply = supply()?;
    let mut place = Throwaway::new()?;
    let url = place.start_postgres(&supply).await?;
    let (_, host) = url.split_once('@').context("a URL with a password")?;
    assert!(connect(&format!("postgres://postgres:guess@{host}")).await.is_err());
    assert!(connect(&url).await.is_ok());
    Ok(())
}

#[tokio::test]
async fn a_postgres_that_cannot_start_says_why() -> Result<()> {
    let supply = supply()?;
    let place = Throwaway::new()?;
    let error = start_postgres(&supply, &place, &[("wal_level", "nonsense")]).await.err().context("it can't start")?;
    let text = format!("{error:#}");
    assert!(text.contains("postgres ended with exit code 1"), "{text}");
    assert!(text.contains("pg.log") && text.contains("nonsense"), "{text}");
    Ok(())
}

#[tokio::test]
async fn kafka_keeps_its_topics_when_it_comes_back_on_other_ports() -> Result<()> {
    let supply = supply()?;
    let place = Throwaway::new()?;
    let jars = supply.kafka(&place.folder().join("maven.log")).await?;
    let options = KafkaOptions {
        folder: place.folder().join("k"),
        log: place.folder().join("k.log"),
        settings: vec![("num.partitions".to_owned(), "3".to_owned())],
    };
    let mut kafka = Kafka::start(&jars, &options, &supply.reaper).await?;
    let first = kafka.brokers();
    // Asking for a topic by its name makes it, unless the broker is told not to.
    assert_eq!(partitions(&first, "kept").await?, 3);
    kafka.stop().await?;

    let mut kafka = Kafka::start(&jars, &options, &supply.reaper).await?;
    assert_ne!(kafka.brokers(), first);
    assert_eq!(partitions(&kafka.brokers(), "kept").await?, 3);
    let pid = kafka.process().pid();
    drop(kafka);
    assert_eq!(started(pid), None);
    Ok(())
}

/// The number of partitions of a topic, as soon as there is one.
async fn partitions(brokers: &str, topic: &'static str) -> Result<usize> {
    let config = KafkaConfig::from_env(&Env::from_pairs([("KAFKA_BROKERS", brokers)]))?;
    let client: BaseConsumer = config.client("test").set("allow.auto.create.topics", "true").create()?;
    let client = std::sync::Arc::new(client);
    Ok(shared::testing::eventually(topic, async || {
        let client = std::sync::Arc::clone(&client);
        let asked = move || client.fetch_metadata(Some(topic), Duration::from_secs(5)).ok();
        let metadata = tokio::task::spawn_blocking(asked).await.ok()??;
        let count = metadata.topics().first()?.partitions().len();
        (count > 0).then_some(count)
    })
    .await)
}
