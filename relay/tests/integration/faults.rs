//! Relays that are killed, frozen or cut off.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use shared::testing::eventually;
use sqlx::Acquire;

use crate::support::{Fixture, all_settled, assert_complete_and_in_order};

const FILL: &str = "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
    SELECT gen_random_uuid(), $1, 'k' || key, version, 'thing.changed', '{\"some\": \"payload\"}'
    FROM generate_series($2::bigint, $3::bigint) version, generate_series(1, 100) key ORDER BY version, key";

async fn fill(fixture: &Fixture, from: i64, to: i64) {
    sqlx::query(FILL).bind(&fixture.aggregate_type).bind(from).bind(to).execute(&fixture.database.pool).await.unwrap();
}

async fn some_but_not_all_is_settled(fixture: &Fixture) {
    eventually("the relay is amid its backlog", async || {
        let position: i64 = sqlx::query_scalar("SELECT max(position) FROM relay_lanes")
            .fetch_one(&fixture.database.pool)
            .await
            .unwrap();
        (position > 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_killed_amid_a_backlog_loses_nothing() {
    let fixture = Fixture::new("a_relay_killed_amid_a_backlog").await;
    fill(&fixture, 1, 300).await;
    // Small reads and settles keep the first relay busy long enough to be killed amid its work, three times over.
    for _ in 0..3 {
        let process =
            fixture.process(&[("RELAY_SETTLE_MS", "1"), ("RELAY_LANE_ROWS_MAX", "10"), ("RELAY_IN_FLIGHT_MAX", "300")]);
        let before: i64 = sqlx::query_scalar("SELECT sum(position)::bigint FROM relay_lanes")
            .fetch_one(&fixture.database.pool)
            .await
            .unwrap();
        eventually("the relay moves on", async || {
            let position: i64 = sqlx::query_scalar("SELECT sum(position)::bigint FROM relay_lanes")
                .fetch_one(&fixture.database.pool)
                .await
                .unwrap();
            (position > before).then_some(())
        })
        .await;
        process.kill();
    }
    let relay = fixture.relay(&[]);
    let records = fixture.published(30_000).await;
    assert_complete_and_in_order(&records, |_| 300, 100);
    all_settled(&fixture).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_relay_changes_no_state_of_its_successor() {
    let fixture = Fixture::new("a_frozen_relay").await;
    fill(&fixture, 1, 100).await;
    let frozen =
        fixture.process(&[("RELAY_SETTLE_MS", "1"), ("RELAY_LANE_ROWS_MAX", "10"), ("RELAY_IN_FLIGHT_MAX", "300")]);
    some_but_not_all_is_settled(&fixture).await;
    frozen.signal(Signal::STOP);

    let successor = fixture.relay(&[]);
    eventually("the successor has taken all lanes", async || {
        (fixture.lanes_by_owner().await.get(&successor.name) == Some(&16)).then_some(())
    })
    .await;
    fill(&fixture, 101, 110).await;
    let records = fixture.published(11_000).await;
    assert_complete_and_in_order(&records, |_| 110, 100);
    all_settled(&fixture).await;
    let settled = cursors(&fixture).await;

    frozen.signal(Signal::CONT);
    // What tells it first is its lost lane, or a record that was in its producer's queue and is now too old.
    eventually("the frozen relay has begun anew", async || frozen.log().contains("begins anew").then_some(())).await;
    // No cursor has gone back, whoever holds the lane now.
    let after = cursors(&fixture).await;
    assert!(
        settled.iter().zip(&after).all(|(before, after)| before.0 <= after.0 && before.1 <= after.1),
        "{settled:?} {after:?}"
    );
    fill(&fixture, 111, 112).await;
    let records = fixture.published(11_200).await;
    assert_complete_and_in_order(&records, |_| 112, 100);
    all_settled(&fixture).await;
    successor.stop().await;
}

async fn cursors(fixture: &Fixture) -> Vec<(i64, i64)> {
    sqlx::query_as("SELECT position, token FROM relay_lanes ORDER BY lane")
        .fetch_all(&fixture.database.pool)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_whose_connection_is_cut_goes_on_from_what_is_settled() {
    let fixture = Fixture::new("a_relay_whose_connection_is_cut").await;
    fill(&fixture, 1, 200).await;
    let relay = fixture.relay(&[("RELAY_LANE_ROWS_MAX", "10"), ("RELAY_IN_FLIGHT_MAX", "300")]);
    for _ in 0..5 {
        some_but_not_all_is_settled(&fixture).await;
        sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'outrider-relay'")
            .execute(&fixture.database.pool)
            .await
            .unwrap();
    }
    let records = fixture.published(20_000).await;
    assert_complete_and_in_order(&records, |_| 200, 100);
    all_settled(&fixture).await;
    relay.stop().await;
}

/// Writers with savepoints, rollbacks and transactions held open, while relays come, go and are killed.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_reordered_while_relays_come_and_go() {
    const KEYS: usize = 24;
    let fixture = Arc::new(Fixture::new("nothing_is_lost_or_reordered").await);
    sqlx::query("CREATE TABLE things (id text PRIMARY KEY, version bigint NOT NULL)")
        .execute(&fixture.database.pool)
        .await
        .unwrap();
    sqlx::query("INSERT INTO things SELECT 'k' || i, 0 FROM generate_series(0, 23) i")
        .execute(&fixture.database.pool)
        .await
        .unwrap();
    let writing = Arc::new(AtomicBool::new(true));
    let writers: Vec<_> = (0..5)
        .map(|_| {
            let (fixture, writing) = (Arc::clone(&fixture), Arc::clone(&writing));
            tokio::spawn(async move {
                while writing.load(Ordering::Relaxed) {
                    write_once(&fixture, KEYS).await;
                }
            })
        })
        .collect();

    let settings = [("RELAY_LANE_ROWS_MAX", "20"), ("RELAY_LATE_ROWS_MAX", "10"), ("RELAY_SETTLE_MS", "20")];
    let steady = fixture.relay(&settings);
    for round in 0..4 {
        let guest = fixture.process(&settings);
        let own = format!("{}-", guest.id());
        eventually("the guest holds lanes", async || {
            let lanes = fixture.lanes_by_owner().await;
            lanes.keys().any(|owner| owner.starts_with(&own)).then_some(())
        })
        .await;
        if round % 2 == 0 {
            guest.kill();
        } else {
            guest.signal(Signal::TERM);
            eventually("the guest has ended", async || guest.log().contains("has ended").then_some(())).await;
        }
    }
    writing.store(false, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let versions: std::collections::HashMap<String, i64> =
        sqlx::query_as::<_, (String, i64)>("SELECT id, version FROM things")
            .fetch_all(&fixture.database.pool)
            .await
            .unwrap()
            .into_iter()
            .collect();
    let total: i64 = versions.values().sum();
    let records = fixture.published(usize::try_from(total).unwrap()).await;
    assert_complete_and_in_order(&records, |key| versions[key], KEYS);
    all_settled(&fixture).await;
    steady.stop().await;
}

/// One transaction that changes one to three things, each under a savepoint that may be rolled back, and that may stay open a while.
async fn write_once(fixture: &Fixture, keys: usize) {
    let mut connection = fixture.database.pool.acquire().await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    let mut chosen: Vec<usize> = (0..rand::random_range(1..=3)).map(|_| rand::random_range(0..keys)).collect();
    // In one order, or writers would deadlock.
    chosen.sort_unstable();
    chosen.dedup();
    for key in chosen {
        let mut savepoint = transaction.begin().await.unwrap();
        let key = format!("k{key}");
        let version: i64 =
            sqlx::query_scalar("UPDATE things SET version = version + 1 WHERE id = $1 RETURNING version")
                .bind(&key)
                .fetch_one(&mut *savepoint)
                .await
                .unwrap();
        fixture.insert(&mut savepoint, &key, version).await;
        if rand::random_bool(0.2) {
            savepoint.rollback().await.unwrap();
        } else {
            savepoint.commit().await.unwrap();
        }
    }
    if rand::random_bool(0.1) {
        tokio::time::sleep(std::time::Duration::from_millis(rand::random_range(1..300))).await;
    }
    if rand::random_bool(0.1) {
        transaction.rollback().await.unwrap();
    } else {
        transaction.commit().await.unwrap();
    }
}
