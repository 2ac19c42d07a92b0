//! Orders as the api writes them, their events as the relay publishes them, and whether each has had its effect once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::TryStreamExt;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use shared::event;
use sqlx::PgPool;

use crate::bench::ground::{Ground, Scene};
use crate::bench::topic::config;

/// How long all orders may take after the last of them.
const PATIENCE: Duration = Duration::from_mins(1);

/// Inserts `count` orders with their first transition, and has Postgres write them to disk, so that it does not do so while a
/// processor is measured.
pub async fn write(pool: &PgPool, count: u64) -> Result<()> {
    sqlx::query("SELECT outbox_make_partitions(4)").execute(pool).await?;
    // Event ids of version 7, as the api makes them: random ones would be dearer for every index.
    sqlx::query(
        "WITH new AS (
            INSERT INTO orders (user_id, product_id, quantity)
            SELECT 1 + i % 1000, 1 + i % 100, 1 + i % 10 FROM generate_series(1, $1::bigint) i RETURNING id
        )
        INSERT INTO order_transitions (order_id, version, to_status, event_id)
        SELECT id, 1, 'Pending', encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
            PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid
        FROM new",
    )
    .bind(i64::try_from(count)?)
    .execute(pool)
    .await?;
    for statement in ["VACUUM ANALYZE orders", "VACUUM ANALYZE order_transitions", "CHECKPOINT"] {
        sqlx::query(statement).execute(pool).await?;
    }
    Ok(())
}

/// An order that fails for good, and how many events of its key there are beyond the first.
#[derive(Debug, Clone, Copy)]
pub struct Poison {
    /// Its id.
    pub order: i64,
    /// Further events.
    pub more: u64,
}

/// Produces `order.created` of each order with the headers that the relay gives it; among them those of a `poison`ed key, evenly.
pub async fn produce(ground: &Ground, scene: &Scene, poison: Option<Poison>) -> Result<()> {
    let producer = config(&ground.brokers)?.producer("outrider-bench", Duration::from_mins(1));
    let producer: ThreadedProducer<DefaultProducerContext> = producer.create()?;
    let topic = format!("{}s", scene.name);
    let all: i64 = sqlx::query_scalar("SELECT count(*) FROM orders").fetch_one(&scene.pool).await?;
    let every = poison.map(|poison| (u64::try_from(all).unwrap_or(0) / poison.more.max(1)).max(1));
    let mut rows = sqlx::query_as::<_, (i64, String, String)>(
        "SELECT o.id, t.event_id::text, row_to_json(ROW(o.id, o.user_id, o.product_id, o.quantity, o.status, o.version, o.created_at,
            o.updated_at, o.failure_reason)::order_document)::text
        FROM orders o JOIN order_transitions t ON t.order_id = o.id ORDER BY o.id",
    )
    .fetch(&scene.pool);
    let (mut number, mut version) = (0, 1);
    while let Some((id, event_id, payload)) = rows.try_next().await? {
        send(&producer, &topic, &Created { id, version: 1, event_id: &event_id, payload: &payload }).await?;
        number += 1;
        if let (Some(poison), Some(every)) = (poison, every)
            && number % every == 0
            && version <= i64::try_from(poison.more)?
        {
            version += 1;
            let event_id = format!("00000000-0000-7000-8000-{version:012}");
            send(&producer, &topic, &Created { id: poison.order, version, event_id: &event_id, payload: &payload })
                .await?;
        }
    }
    while producer.in_flight_count() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let sent = number + u64::try_from(version - 1)?;
    ensure!(scene.topic.len()? == sent, "not all of {sent} records have arrived");
    Ok(())
}

struct Created<'a> {
    id: i64,
    version: i64,
    event_id: &'a str,
    payload: &'a str,
}

async fn send(producer: &ThreadedProducer<DefaultProducerContext>, topic: &str, event: &Created<'_>) -> Result<()> {
    let (key, version) = (event.id.to_string(), event.version.to_string());
    let trace = format!("00-{:032x}-00f067aa0ba902b7-01", event.id);
    let headers = [
        (event::ID, event.event_id),
        (event::CE_ID, event.event_id),
        (event::CE_TYPE, "order.created"),
        (event::CE_SOURCE, "outrider-bench"),
        (event::CE_SUBJECT, &key),
        (event::CE_TIME, "2026-01-01T00:00:00.000000Z"),
        (event::CE_SPECVERSION, "1.0"),
        (event::AGGREGATE_VERSION, &version),
        (event::TRACEPARENT, &trace),
        (event::CONTENT_TYPE, "application/json"),
    ];
    let headers = headers.iter().fold(OwnedHeaders::new_with_capacity(headers.len()), |all, (key, value)| {
        all.insert(Header { key, value: Some(*value) })
    });
    let mut record = BaseRecord::to(topic).key(key.as_str()).payload(event.payload).headers(headers);
    loop {
        record = match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), record)) => record,
            Err((error, _)) => return Err(error.into()),
        };
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// How many records a group has passed, of all partitions.
pub async fn passed(pool: &PgPool, group: &str) -> Result<u64> {
    let passed: i64 =
        sqlx::query_scalar("SELECT coalesce(sum(next_offset), 0)::bigint FROM consumer_offsets WHERE group_id = $1")
            .bind(group)
            .fetch_one(pool)
            .await?;
    u64::try_from(passed).context("offsets are not negative")
}

/// How many orders are Processed.
pub async fn processed(pool: &PgPool) -> Result<u64> {
    let processed: i64 =
        sqlx::query_scalar("SELECT count(*) FROM orders WHERE status = 'Processed'").fetch_one(pool).await?;
    u64::try_from(processed).context("a count")
}

/// Waits until so many orders are Processed.
pub async fn all_processed(pool: &PgPool, count: u64) -> Result<()> {
    let begun = Instant::now();
    while processed(pool).await? < count {
        ensure!(begun.elapsed() < PATIENCE, "not all orders were Processed within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Checks that `count` orders are Processed, and that of every order each version has exactly one transition and each one beyond
/// the first exactly one event.
pub async fn check(pool: &PgPool, count: u64) -> Result<()> {
    let processed = processed(pool).await?;
    ensure!(processed == count, "{processed} orders are Processed and not {count}");
    // Two transitions of one version are impossible by the primary key; one too many would be a version too many.
    let wrong: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM orders o
        LEFT JOIN (SELECT order_id, count(*) AS transitions, max(version) AS latest FROM order_transitions GROUP BY order_id) t
            ON t.order_id = o.id
        LEFT JOIN (SELECT aggregate_id::bigint AS id, count(*) AS events, count(DISTINCT aggregate_version) AS versions
            FROM outbox WHERE aggregate_type = 'order' AND aggregate_version > 1 GROUP BY aggregate_id) e ON e.id = o.id
        WHERE t.transitions IS DISTINCT FROM o.version OR t.latest <> o.version OR coalesce(e.events, 0) <> o.version - 1
            OR coalesce(e.versions, 0) <> o.version - 1 OR (o.status = 'Processed' AND o.version <> 2)",
    )
    .fetch_one(pool)
    .await?;
    ensure!(wrong == 0, "{wrong} orders do not have exactly their transitions and events");
    Ok(())
}
