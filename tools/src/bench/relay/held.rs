//! Whether transactions that others hold open slow the relay down.

use anyhow::{Context, Result};
use sqlx::{Connection, PgConnection};

use super::{Scale, drain_once};
use crate::bench::figure::{Bound, Figure, median};
use crate::bench::ground::{Ground, Scene};
use crate::stack::postgres;

/// What is held open during a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    Nothing,
    /// A transaction that has written to the outbox.
    Writer,
    /// A reader in REPEATABLE READ, whose snapshot keeps dead rows from being cleaned up.
    Reader,
}

/// Rounds with and without a held transaction, one after the other, so that a machine that gets slower meanwhile hits all alike.
pub async fn measure(ground: &mut Ground, scale: Scale) -> Result<Vec<Figure>> {
    let mut scene = ground.scene("held").await?;
    scene.start_relay(ground, &[]).await?;
    drain_once(&scene, scale.held_rows).await?;
    let (mut free, mut writer, mut reader) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..scale.rounds {
        free.push(round(&scene, Held::Nothing, scale).await?);
        writer.push(round(&scene, Held::Writer, scale).await?);
        reader.push(round(&scene, Held::Reader, scale).await?);
    }
    let (aged_free, aged) = aged(&scene, scale).await?;
    scene.close().await?;
    let share = |held: &[f64], free: &[f64]| median(held) / median(free) * 100.0;
    eprintln!(
        "  events/s: free {free:.0?}, writer {writer:.0?}, reader {reader:.0?}; aged: free {aged_free:.0?}, reader {aged:.0?}"
    );
    let bound = Bound::AtLeast(95.0);
    Ok(vec![
        Figure::new("rate with a writer's transaction held open", share(&writer, &free), "%", bound),
        Figure::new("rate with a REPEATABLE READ reader held open", share(&reader, &free), "%", bound),
        Figure::new("the same after 30 minutes' worth of settles", share(&aged, &aged_free), "%", bound),
    ])
}

async fn round(scene: &Scene, held: Held, scale: Scale) -> Result<f64> {
    let holder = hold(scene, held).await?;
    let rate = drain_once(scene, scale.held_rows).await?;
    if held == Held::Writer {
        // Its row is late now, and has to come too.
        let there = scene.topic.len()?;
        release(holder, "COMMIT").await?;
        scene.topic.reaches(there + 1).await?;
    } else {
        release(holder, "ROLLBACK").await?;
    }
    Ok(rate)
}

async fn hold(scene: &Scene, held: Held) -> Result<Option<PgConnection>> {
    if held == Held::Nothing {
        return Ok(None);
    }
    let mut holder = postgres::connect(scene.database_url()).await?;
    if held == Held::Writer {
        sqlx::query("BEGIN").execute(&mut holder).await?;
        sqlx::query(
            "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
            SELECT gen_random_uuid(), $1, 'held-' || gen_random_uuid(), 1, $1 || '.held', '{}'",
        )
        .bind(&scene.name)
        .execute(&mut holder)
        .await?;
    } else {
        sqlx::query("BEGIN ISOLATION LEVEL REPEATABLE READ").execute(&mut holder).await?;
        sqlx::query("SELECT count(*) FROM relay_lanes").execute(&mut holder).await?;
    }
    Ok(Some(holder))
}

async fn release(holder: Option<PgConnection>, how: &'static str) -> Result<()> {
    if let Some(mut holder) = holder {
        sqlx::query(how).execute(&mut holder).await?;
        holder.close().await?;
    }
    Ok(())
}

/// Rounds under a snapshot that is held for as many settles as a relay makes in half an hour, against rounds without.
async fn aged(scene: &Scene, scale: Scale) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut free, mut aged) = (Vec::new(), Vec::new());
    for _ in 0..scale.rounds.div_ceil(2) {
        free.push(round(scene, Held::Nothing, scale).await?);
        let holder = hold(scene, Held::Reader).await?;
        age(scene, scale.settles).await?;
        aged.push(drain_once(scene, scale.held_rows).await?);
        release(holder, "ROLLBACK").await?;
        // So that the next free round does not find what this one has left.
        sqlx::query("VACUUM relay_lanes").execute(&scene.pool).await.context("the table can be vacuumed")?;
    }
    Ok((free, aged))
}

/// Writes all lanes as a settle does, without moving them, as often as a relay under load does in half an hour. One lane at a time, since
/// the relay writes them too, and two statements that lock several in another order would wait for each other.
async fn age(scene: &Scene, settles: u32) -> Result<()> {
    let mut connection = scene.pool.acquire().await?;
    sqlx::query("SET synchronous_commit = off").execute(&mut *connection).await?;
    for _ in 0..settles {
        for lane in 0..16_i16 {
            let written = sqlx::query("UPDATE relay_lanes SET settled_at = clock_timestamp() WHERE lane = $1");
            written.bind(lane).execute(&mut *connection).await?;
        }
    }
    // The connection goes back to the pool.
    sqlx::query("RESET synchronous_commit").execute(&mut *connection).await?;
    Ok(())
}
