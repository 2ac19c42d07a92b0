//! The SQL of the documents for producers, run as it is printed: what it writes is published.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use shared::testing::{PATIENCE, TestDatabase, eventually, kafka_brokers};
use sqlx::{Connection, PgConnection};
use tools::stack::{Kind, Service};

use super::harness::surroundings;
use super::reaper;

const PRODUCERS: &str = include_str!("../../../deploy/PRODUCERS.md");
const README: &str = include_str!("../../../README.md");

/// The SQL blocks of a document, in their order.
fn sql_blocks(document: &'static str) -> Vec<&'static str> {
    let starts = document.split("```sql\n").skip(1);
    starts.map(|rest| rest.split_once("```").map_or(rest, |(block, _)| block)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_for_producers_are_published_as_the_documents_say() -> Result<()> {
    let database = TestDatabase::create("the_examples_for_producers").await;
    let mut connection = PgConnection::connect(&database.url).await?;
    let blocks: Vec<&str> = [PRODUCERS, README].into_iter().flat_map(sql_blocks).collect();
    assert!(blocks.len() >= 7, "{} blocks of SQL are found", blocks.len());
    for block in blocks {
        sqlx::raw_sql(block).execute(&mut connection).await.with_context(|| format!("in\n{block}"))?;
    }

    let logs = tempfile::tempdir()?;
    let surroundings = surroundings(&database.url, kafka_brokers(), logs.path().to_owned())?;
    let mut relay = Service::start(Kind::Relay, "relay", &surroundings, &[], &reaper()?)?;
    eventually("all is published", async || {
        let sql = "SELECT count(*) FROM outbox o JOIN relay_lanes l USING (lane) WHERE o.id > l.position";
        let open: i64 = sqlx::query_scalar(sql).fetch_one(&database.pool).await.expect("the database answers");
        (open == 0).then_some(())
    })
    .await;
    for (topic, types) in [
        ("accounts", vec!["account.debited", "account.closed", "account.debited"]),
        ("invoices", vec!["invoice.opened", "invoice.paid"]),
        ("shipments", vec!["ShipmentSent"]),
    ] {
        let written: Vec<(String, i64, String)> = sqlx::query_as(
            "SELECT event_id::text, aggregate_version, type FROM outbox WHERE aggregate_type || 's' = $1 ORDER BY id",
        )
        .bind(topic)
        .fetch_all(&database.pool)
        .await?;
        assert_eq!(written.iter().map(|row| row.2.as_str()).collect::<Vec<_>>(), types);
        assert_eq!(written.iter().map(|row| row.1).collect::<Vec<_>>(), (1..=3).take(types.len()).collect::<Vec<_>>());
        let ids: Vec<String> = written.into_iter().map(|row| row.0).collect();
        let wanted = ids.clone();
        let found = tokio::task::spawn_blocking(move || on_topic(topic, &wanted)).await??;
        assert_eq!(found, ids, "events of {topic}");
    }
    relay.stop().await?;
    Ok(())
}

/// Those of the events `wanted` that are on the topic, in its order; waits until all of them are. Other tests may use the topic too.
fn on_topic(topic: &str, wanted: &[String]) -> Result<Vec<String>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka_brokers())
        .set("group.id", "nobody")
        .set("enable.auto.commit", "false")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(5))?;
    let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment.add_partition_offset(topic, i32::try_from(partition)?, Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;
    let start = Instant::now();
    let mut found = Vec::new();
    while found.len() < wanted.len() {
        ensure!(start.elapsed() < PATIENCE, "{} of {} events are on the topic {topic}", found.len(), wanted.len());
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message?;
        let headers = message.headers().context("headers")?;
        let id = headers.iter().find(|header| header.key == "id").and_then(|header| header.value).context("an id")?;
        let id = str::from_utf8(id)?.to_owned();
        if wanted.contains(&id) {
            found.push(id);
        }
    }
    Ok(found)
}
