//! Bulk transactions that commit late: they are published in parts, while fresh events of other keys flow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use shared::testing::eventually;
use sqlx::{Connection, PgConnection};
use tokio::task::JoinHandle;

use crate::support::{Fixture, Record, all_settled, assert_complete_and_in_order, assert_no_repeats};

/// Events a second that are written meanwhile.
const FRESH_INTERVAL: Duration = Duration::from_millis(4);

/// A transaction that is held open: `rows` events of `bytes` each, 20 of each key.
struct Bulk {
    connection: PgConnection,
}

impl Bulk {
    async fn begin(fixture: &Fixture, prefix: &str, rows: i64, bytes: i64) -> Self {
        let mut connection = PgConnection::connect(&fixture.database.url).await.unwrap();
        sqlx::query("BEGIN").execute(&mut connection).await.unwrap();
        // Not FROM generate_series, which makes a temporary file of its own.
        let insert = "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
            SELECT gen_random_uuid(), $1, $2 || (i % ($3 / 20)), i / ($3 / 20) + 1, 'thing.changed', to_json(repeat('x', $4::int))
            FROM (SELECT generate_series(0, $3 - 1) AS i) g";
        let insert = sqlx::query(insert).bind(&fixture.aggregate_type).bind(prefix).bind(rows).bind(bytes);
        insert.execute(&mut connection).await.unwrap();
        Self { connection }
    }

    async fn commit(mut self) {
        sqlx::query("COMMIT").execute(&mut self.connection).await.unwrap();
    }
}

/// Somebody who writes all the while: `fresh` keys, which no bulk has, and now and then a key that one has.
struct Writer {
    writing: Arc<AtomicBool>,
    task: JoinHandle<(i64, i64)>,
}

impl Writer {
    fn start(fixture: &Arc<Fixture>) -> Self {
        let writing = Arc::new(AtomicBool::new(true));
        let (fixture, go_on) = (Arc::clone(fixture), Arc::clone(&writing));
        let task = tokio::spawn(async move {
            let (mut fresh, mut behind) = (0, 20);
            let mut connection = PgConnection::connect(&fixture.database.url).await.unwrap();
            let mut ticks = tokio::time::interval(FRESH_INTERVAL);
            while go_on.load(Ordering::Relaxed) {
                ticks.tick().await;
                fixture.insert(&mut connection, &format!("fresh{}", fresh % 100), fresh / 100 + 1).await;
                fresh += 1;
                if fresh % 20 == 0 && behind > 20 {
                    fixture.insert(&mut connection, "b3", behind).await;
                    behind += 1;
                }
                // Once the bulk's rows are there: its keys are locked by it until then.
                let committed = behind == 20 && fresh % 20 == 0 && is_there(&fixture, &mut connection).await;
                behind += i64::from(committed);
            }
            (fresh, behind - 1)
        });
        Self { writing, task }
    }

    /// How many events it has written: of fresh keys, and the last version of `b3`.
    async fn stop(self) -> (i64, i64) {
        self.writing.store(false, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

async fn is_there(fixture: &Fixture, connection: &mut PgConnection) -> bool {
    let there = "SELECT EXISTS (SELECT FROM outbox WHERE aggregate_type = $1 AND aggregate_id = 'b3'
        AND lane = (hashtextextended($1 || '/b3', 0) & 15)::smallint)";
    sqlx::query_scalar(there).bind(&fixture.aggregate_type).fetch_one(connection).await.unwrap()
}

/// How long each fresh event took from its insertion to its producer, in milliseconds, in ascending order; and how many are from the
/// time while the bulk was published.
async fn latencies(fixture: &Fixture, records: &[Record]) -> (Vec<i64>, usize) {
    let occurred: Vec<(String, i64, i64)> = sqlx::query_as(
        "SELECT aggregate_id, aggregate_version, (extract(epoch FROM occurred_at) * 1000)::bigint
        FROM outbox WHERE aggregate_id LIKE 'fresh%'",
    )
    .fetch_all(&fixture.database.pool)
    .await
    .unwrap();
    let occurred: std::collections::HashMap<(String, i64), i64> =
        occurred.into_iter().map(|(key, version, at)| ((key, version), at)).collect();
    let bulk = || records.iter().filter(|record| record.key.starts_with('b')).map(|record| record.timestamp_ms);
    let (from, to) = (bulk().min().unwrap(), bulk().max().unwrap());
    let fresh = || records.iter().filter(|record| record.key.starts_with("fresh"));
    let meanwhile = fresh().filter(|record| (from..=to).contains(&record.timestamp_ms)).count();
    let mut latencies: Vec<i64> =
        fresh().map(|record| record.timestamp_ms - occurred[&(record.key.clone(), record.version)]).collect();
    latencies.sort_unstable();
    (latencies, meanwhile)
}

fn percentile(sorted: &[i64], percent: usize) -> i64 {
    sorted[(sorted.len() - 1) * percent / 100]
}

async fn temporary_bytes(fixture: &Fixture) -> i64 {
    sqlx::query_scalar("SELECT temp_bytes FROM pg_stat_database WHERE datname = current_database()")
        .fetch_one(&fixture.database.pool)
        .await
        .unwrap()
}

/// A bulk of `rows` events commits late, beside a writer of fresh ones.
async fn publish_a_bulk(test: &str, rows: i64, bytes: i64) {
    let fixture = Arc::new(Fixture::with_topic(test).await);
    let relay = fixture.process(&[("RELAY_LEASE_MS", "10000")]);
    // The first event waits until the relay has taken its lanes, which takes as long as the rest may.
    fixture.insert_all("first", 1, 1).await;
    fixture.published(1).await;
    let bulk = Bulk::begin(&fixture, "b", rows, bytes).await;
    let writer = Writer::start(&fixture);
    // Each lane has read beyond the bulk's rows.
    eventually("the lanes are beyond the bulk", async || {
        let behind: i64 = sqlx::query_scalar("SELECT count(*) FROM relay_lanes WHERE position <= $1")
            .bind(rows + 1)
            .fetch_one(&fixture.database.pool)
            .await
            .unwrap();
        (behind == 0).then_some(())
    })
    .await;
    bulk.commit().await;
    let bulk_records = usize::try_from(rows).unwrap();
    let begun = std::time::Instant::now();
    fixture.published(bulk_records).await;
    println!("the bulk was out after {:?} at most", begun.elapsed());
    let (fresh, behind) = writer.stop().await;
    let all = 1 + bulk_records + usize::try_from(fresh + behind - 20).unwrap();
    let records = fixture.published(all).await;
    let fresh_versions = |key: &str| {
        let number: i64 = key["fresh".len()..].parse().unwrap();
        (fresh - number + 99) / 100
    };
    let versions = |key: &str| match key {
        "first" => 1,
        "b3" => behind,
        key if key.starts_with("fresh") => fresh_versions(key),
        _ => 20,
    };
    assert_complete_and_in_order(&records, versions, usize::try_from(rows / 20).unwrap() + 101);
    assert!(behind > 20, "a key of the bulk got fresh events");
    let (latencies, meanwhile) = latencies(&fixture, &records).await;
    let (median, p99) = (percentile(&latencies, 50), percentile(&latencies, 99));
    println!("{meanwhile} of {} fresh events beside the bulk; p50 {median} ms, p99 {p99} ms", latencies.len());
    assert!(meanwhile >= 20, "only {meanwhile} fresh events were published while the bulk was");
    assert!(p99 < 1_000, "p99 {p99} ms");
    all_settled(&fixture).await;
    drop(relay);
    assert_no_repeats(&fixture.published(all).await);
    assert_eq!(temporary_bytes(&fixture).await, 0, "bytes of temporary files");
}

#[tokio::test(flavor = "multi_thread")]
async fn fresh_events_flow_while_a_late_bulk_of_large_events_is_published() {
    publish_a_bulk("late_bulk_of_large_events", 8_000, 100_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fresh_events_flow_while_a_late_bulk_of_many_events_is_published() {
    // While its keys are looked for, nothing is read: about a second for a million rows, and several on a machine that is busy with tests.
    let rows = std::env::var("LATE_BULK_ROWS").map_or(100_000, |rows| rows.parse().unwrap());
    publish_a_bulk("late_bulk_of_many_events", rows, 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_killed_amid_a_late_bulk_loses_and_reorders_nothing() {
    const ROWS: i64 = 60_000;
    let fixture = Arc::new(Fixture::new("a_relay_killed_amid_a_late_bulk").await);
    let (first, second) = (Bulk::begin(&fixture, "b", ROWS, 200).await, Bulk::begin(&fixture, "c", ROWS, 200).await);
    let few = [("RELAY_LATE_ROWS_MAX", "500")];
    let relay = fixture.process(&few);
    let writer = Writer::start(&fixture);
    eventually("the lanes are beyond the bulks", async || {
        let behind: i64 = sqlx::query_scalar("SELECT count(*) FROM relay_lanes WHERE position <= $1")
            .bind(2 * ROWS)
            .fetch_one(&fixture.database.pool)
            .await
            .unwrap();
        (behind == 0).then_some(())
    })
    .await;
    first.commit().await;
    fixture.published(3_000).await;
    second.commit().await;
    fixture.published(20_000).await;
    relay.kill();
    let relay = fixture.process(&few);
    let bulk = usize::try_from(2 * ROWS).unwrap();
    fixture.published(bulk).await;
    let (fresh, behind) = writer.stop().await;
    let records = fixture.published(bulk + usize::try_from(fresh + behind - 20).unwrap()).await;
    let versions = |key: &str| match key.strip_prefix("fresh") {
        _ if key == "b3" => behind,
        Some(number) => (fresh - number.parse::<i64>().unwrap() + 99) / 100,
        None => 20,
    };
    assert_complete_and_in_order(&records, versions, usize::try_from(2 * ROWS / 20).unwrap() + 100);
    all_settled(&fixture).await;
    relay.kill();
}
