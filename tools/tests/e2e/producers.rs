//! The SQL of the documents for producers, run as it is printed: what it writes is published.

use anyhow::{Context, Result};
use shared::testing::{TestDatabase, all_settled, kafka_brokers, published_once};
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
    all_settled(&database.pool).await;
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
        assert_eq!(on_topic(topic, &ids).await, ids, "events of {topic}");
    }
    relay.stop().await?;
    Ok(())
}

/// Those of the events `wanted` that are on the topic, in its order; waits until all of them are. Other tests may use the topic too.
async fn on_topic(topic: &str, wanted: &[String]) -> Vec<String> {
    let all = wanted.to_vec();
    let records = published_once(&kafka_brokers(), topic, move |seen| all.iter().all(|id| seen.contains(id))).await;
    records.into_iter().map(|record| record.event_id).filter(|id| wanted.contains(id)).collect()
}
