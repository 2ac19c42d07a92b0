//! How long an event takes from the writer's commit to the broker.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rdkafka::message::Message;

use super::Scale;
use super::writers::insert_one;
use crate::bench::figure::{Bound, Figure};
use crate::bench::ground::Ground;
use crate::report::Latencies;
use crate::stack::postgres;

/// Events a second.
const RATE: u64 = 1_000;

/// Writers that share the rate, so that a slow commit does not hold up the next event.
const WRITERS: u64 = 4;

/// Commits one event at a time, at a fixed rate, while a consumer notes when each of them arrives. Arrival is after the broker's
/// acknowledgement, so the figures are an upper bound of commit -> acknowledgement.
pub async fn measure(ground: &Ground, scale: Scale) -> Result<Vec<Figure>> {
    let mut scene = ground.scene("latency").await?;
    scene.start_relay(ground, &[]).await?;
    let warm_up = RATE * 2;
    let total = RATE * scale.seconds + warm_up;
    // By the number of the event: when its commit had returned, as microseconds since the start.
    let start = Instant::now();
    let committed: Arc<Vec<AtomicU64>> = Arc::new((0..total).map(|_| AtomicU64::new(0)).collect());
    let arrived = Arc::new(Mutex::new(Vec::new()));

    let topic = crate::bench::topic::Topic::create(&ground.brokers, "latencys").await?;
    let reader = {
        let arrived = Arc::clone(&arrived);
        tokio::task::spawn_blocking(move || {
            let mut seen = 0;
            topic.read(|message| {
                let Some(message) = message else { return true };
                let key = message.key().and_then(|key| str::from_utf8(key).ok()?.parse::<usize>().ok());
                arrived.lock().unwrap_or_else(PoisonError::into_inner).push((key, start.elapsed()));
                seen += 1;
                seen < total
            })
        })
    };
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (committed, name) = (Arc::clone(&committed), scene.name.clone());
        let mut connection = postgres::connect(scene.database_url()).await?;
        writers.spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 * WRITERS / RATE));
            for number in (writer..total).step_by(WRITERS.try_into()?) {
                ticks.tick().await;
                insert_one(&mut connection, &name, i64::try_from(number)?, 1).await?;
                if let Some(slot) = committed.get(usize::try_from(number)?) {
                    slot.store(micros(start.elapsed()), Ordering::Relaxed);
                }
            }
            anyhow::Ok(())
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer??;
    }
    reader.await??;
    scene.close().await?;

    let mut latencies = Latencies::default();
    for (key, at) in arrived.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let key = key.context("every record's key is the number of its event")?;
        let commit = committed.get(key).map_or(0, |commit| commit.load(Ordering::Relaxed));
        if u64::try_from(key)? >= warm_up {
            // A record can arrive before the writer has heard of its own commit.
            latencies.record(Duration::from_micros(micros(*at).saturating_sub(commit)));
        }
    }
    let summary = latencies.summary().context("something has arrived")?;
    eprintln!("  {summary}");
    Ok(vec![
        Figure::new("commit -> acknowledgement at 1,000/s, p50", summary.p50, "ms", Bound::AtMost(5.0)),
        Figure::new("commit -> acknowledgement at 1,000/s, p99", summary.p99, "ms", Bound::AtMost(15.0)),
    ])
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
