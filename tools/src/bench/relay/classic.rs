//! The obvious relay, for comparison: lock rows, publish them, delete them. It is the reason for ours.

use std::time::{Duration, Instant};

use anyhow::Result;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use sqlx::{Connection, PgConnection, Row};

use super::{Scale, load, per_second};
use crate::bench::figure::{Bound, Figure};
use crate::bench::ground::{Ground, Scene};
use crate::bench::topic::{Topic, config};
use crate::stack::postgres;

/// Rows a transaction.
const BATCH_ROWS: i64 = 1_000;

/// Its rate over a backlog, free and with a reader whose snapshot is held.
pub async fn measure(ground: &Ground, scale: Scale) -> Result<Vec<Figure>> {
    let mut rates = Vec::new();
    for (name, held) in [("classic", false), ("classicheld", true)] {
        let scene = ground.scene(name).await?;
        Topic::create(&ground.brokers, &scene.name).await?;
        load::backlog(&scene.pool, &scene.name, scale.held_rows).await?;
        // A table as such relays have it: one index, rows deleted when published.
        sqlx::query("CREATE TABLE classic AS SELECT id, aggregate_id, payload FROM outbox")
            .execute(&scene.pool)
            .await?;
        sqlx::query("CREATE UNIQUE INDEX ON classic (id)").execute(&scene.pool).await?;
        sqlx::query("VACUUM ANALYZE classic").execute(&scene.pool).await?;
        let mut reader = postgres::connect(scene.database_url()).await?;
        if held {
            sqlx::query("BEGIN ISOLATION LEVEL REPEATABLE READ").execute(&mut reader).await?;
            sqlx::query("SELECT count(*) FROM relay_lanes").execute(&mut reader).await?;
        }
        rates.push(drain(ground, &scene, scale).await?);
        reader.close().await?;
        scene.close().await?;
    }
    eprintln!("  events/s at the end of the run: free {:.0}, with a held reader {:.0}", rates[0], rates[1]);
    Ok(vec![
        Figure::new("the classic relay", rates[0], "events/s", Bound::Shown),
        Figure::new("the classic relay with a reader held open", rates[1], "events/s", Bound::Shown),
    ])
}

/// Publishes until the backlog or the time is over; returns the rate in the last quarter of that.
async fn drain(ground: &Ground, scene: &Scene, scale: Scale) -> Result<f64> {
    let producer = config(&ground.brokers)?.producer("outrider-bench", Duration::from_secs(30));
    let producer: ThreadedProducer<DefaultProducerContext> = producer.create()?;
    let mut connection = postgres::connect(scene.database_url()).await?;
    let (begun, time) = (Instant::now(), Duration::from_secs(scale.seconds));
    let mut batches = Vec::new();
    while begun.elapsed() < time {
        let published = batch(&mut connection, &producer, &scene.name).await?;
        if published == 0 {
            break;
        }
        batches.push((begun.elapsed(), published));
    }
    let end = batches.last().map_or(time, |(at, _)| *at);
    let from = end * 3 / 4;
    let last: u64 = batches.iter().filter(|(at, _)| *at > from).map(|(_, count)| count).sum();
    Ok(per_second(last, end.saturating_sub(from)))
}

async fn batch(
    connection: &mut PgConnection,
    producer: &ThreadedProducer<DefaultProducerContext>,
    topic: &str,
) -> Result<u64> {
    let mut transaction = connection.begin().await?;
    let rows =
        sqlx::query("SELECT id, aggregate_id, payload::text FROM classic ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED")
            .bind(BATCH_ROWS)
            .fetch_all(&mut *transaction)
            .await?;
    let mut ids: Vec<i64> = Vec::with_capacity(rows.len());
    for row in &rows {
        ids.push(row.try_get(0)?);
        let record = BaseRecord::to(topic).key(row.try_get::<&str, _>(1)?).payload(row.try_get::<&str, _>(2)?);
        producer.send(record).map_err(|(error, _)| error)?;
    }
    while producer.in_flight_count() > 0 {
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    sqlx::query("DELETE FROM classic WHERE id = ANY ($1)").bind(&ids).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(ids.len() as u64)
}
