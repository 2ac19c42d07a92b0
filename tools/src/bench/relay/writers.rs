//! Whether the relay keeps up with writers that insert as fast as they can, and what it costs them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sqlx::PgConnection;

use super::{Scale, per_second};
use crate::bench::figure::{Bound, Figure, median};
use crate::bench::ground::{Ground, Scene};
use crate::bench::topic::{Topic, header};
use crate::stack::postgres;

/// Writers, each with a connection of its own.
const WRITERS: i64 = 8;

/// Rounds with and without a relay, by turns.
pub async fn measure(ground: &Ground, scale: Scale) -> Result<Vec<Figure>> {
    let (mut alone, mut together, mut oldest) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..scale.rounds.min(3) {
        let scene = ground.scene(&format!("writers{round}a")).await?;
        alone.push(write(&scene, scale).await?.0);
        scene.close().await?;

        let mut scene = ground.scene(&format!("writers{round}b")).await?;
        scene.start_relay(ground, &[]).await?;
        let watched = watch(ground, &scene).await?;
        let (rate, count) = write(&scene, scale).await?;
        together.push(rate);
        scene.topic.reaches(count).await?;
        oldest.push(watched.finish().await?);
        scene.close().await?;
    }
    eprintln!("  writers alone {alone:.0?} events/s, with a relay {together:.0?}; oldest unpublished {oldest:.2?} s");
    let worst = oldest.iter().copied().fold(0.0, f64::max);
    let share = median(&together) / median(&alone) * 100.0;
    Ok(vec![
        Figure::new("8 writers alone", median(&alone), "events/s", Bound::Shown),
        Figure::new("8 writers: oldest unpublished event", worst, "s", Bound::AtMost(1.0)),
        Figure::new("8 writers: their rate against without a relay", share, "%", Bound::AtLeast(60.0)),
    ])
}

/// Writes as fast as it goes. Returns events a second, and how many.
async fn write(scene: &Scene, scale: Scale) -> Result<(f64, u64)> {
    let (begun, until) = (Instant::now(), Instant::now() + Duration::from_secs(scale.seconds / 2));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (name, mut connection) = (scene.name.clone(), postgres::connect(scene.database_url()).await?);
        writers.spawn(async move {
            let mut count = 0;
            while Instant::now() < until {
                insert_one(&mut connection, &name, writer * 1_000 + count % 1_000, count / 1_000 + 1).await?;
                count += 1;
            }
            anyhow::Ok(count)
        });
    }
    let mut count = 0;
    while let Some(written) = writers.join_next().await {
        count += u64::try_from(written??)?;
    }
    Ok((per_second(count, begun.elapsed()), count))
}

/// Inserts one event in a transaction of its own.
pub async fn insert_one(connection: &mut PgConnection, name: &str, key: i64, version: i64) -> Result<()> {
    sqlx::query(
        "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, headers, occurred_at)
        VALUES (gen_random_uuid(), $1, $2::text, $3, $1 || '.changed',
            (rpad('{\"note\":\"', 298, 'an event of three hundred bytes, ') || '\"}')::json,
            '{\"traceparent\": \"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\"}',
            clock_timestamp())",
    )
    .bind(name)
    .bind(key.to_string())
    .bind(version)
    .execute(connection)
    .await
    .context("an event is inserted")?;
    Ok(())
}

/// A consumer that notes the greatest age of an event at its arrival.
struct Watched {
    done: Arc<AtomicBool>,
    oldest_micros: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Result<()>>,
}

async fn watch(ground: &Ground, scene: &Scene) -> Result<Watched> {
    let topic = Topic::create(&ground.brokers, &format!("{}s", scene.name)).await?;
    let (done, oldest_micros) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let task = {
        let (done, oldest_micros) = (Arc::clone(&done), Arc::clone(&oldest_micros));
        tokio::task::spawn_blocking(move || {
            topic.read(|message| {
                let time = message.and_then(|message| header(message, shared::event::CE_TIME));
                if let Some(age) = time.and_then(age_micros) {
                    oldest_micros.fetch_max(age, Ordering::Relaxed);
                }
                !done.load(Ordering::Relaxed)
            })
        })
    };
    Ok(Watched { done, oldest_micros, task })
}

impl Watched {
    async fn finish(self) -> Result<f64> {
        self.done.store(true, Ordering::Relaxed);
        self.task.await??;
        Ok(Duration::from_micros(self.oldest_micros.load(Ordering::Relaxed)).as_secs_f64())
    }
}

/// How long ago this was, by the clock that Postgres on this machine has too.
fn age_micros(time: &str) -> Option<u64> {
    let time = chrono::DateTime::parse_from_rfc3339(time).ok()?;
    let age = chrono::Utc::now().signed_duration_since(time);
    u64::try_from(age.num_microseconds()?).ok()
}
