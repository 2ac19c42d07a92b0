//! An outbox that has come into another Postgres cluster: by `pg_upgrade`, whose transaction ids go on, or by a dump and restore. Here
//! both are made by hand; `tools/tests/e2e/clusters.rs` does them with Postgres's own programs.

use std::collections::BTreeSet;

use shared::testing::eventually;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgExecutor};

use crate::support::{
    Fixture, all_settled, assert_complete_and_in_order, assert_no_repeats, first_appearances, forget, refused,
};

const ROWS: i64 = 3_000;

/// Fills the outbox as a restore into a younger cluster leaves it. The rows' transaction ids begin a little below the next one of this
/// cluster, so some of them are ids that this cluster gives out while it reanchors. Each lane has late rows: above the snapshot's xmax,
/// and two transactions in the middle.
async fn restore(fixture: &Fixture) {
    let sql = [
        format!(
            "INSERT INTO outbox (aggregate_type, aggregate_id, aggregate_version, type, payload)
             SELECT '{}', 'k' || i % 40, i / 40 + 1, 'thing.changed', '{{}}' FROM generate_series(0, {}) i",
            fixture.aggregate_type,
            ROWS - 1
        ),
        "UPDATE outbox SET txid = pg_current_xact_id()::text::bigint - 30 + id / 3".to_owned(),
        "UPDATE relay_lanes SET system_identifier = 1, position = 1800 + 10 * lane,
            seen = (SELECT format('%s:%s:%s,%s', t + 100, t + 590, t + 100, t + 200)::pg_snapshot FROM (SELECT min(txid) AS t FROM outbox) o)"
            .to_owned(),
    ];
    for sql in sql {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&fixture.database.pool).await.unwrap();
    }
}

/// The events that are yet to be published, by the cursors as they are now.
async fn unpublished(fixture: &Fixture) -> BTreeSet<String> {
    let ids: Vec<String> = sqlx::query_scalar(
        "SELECT o.event_id::text FROM outbox o JOIN relay_lanes l USING (lane)
         WHERE o.id > l.position OR NOT pg_visible_in_snapshot(o.txid::text::xid8, l.seen)",
    )
    .fetch_all(&fixture.database.pool)
    .await
    .unwrap();
    ids.into_iter().collect()
}

async fn events_of(database: impl PgExecutor<'_>, key: &str) -> Vec<String> {
    let ids = sqlx::query_scalar("SELECT event_id::text FROM outbox WHERE aggregate_id = $1").bind(key);
    ids.fetch_all(database).await.unwrap()
}

async fn step(fixture: &Fixture) -> bool {
    sqlx::query_scalar("SELECT relay_reanchor_step(100)").fetch_one(&fixture.database.pool).await.unwrap()
}

async fn run(fixture: &Fixture, sql: &'static str) {
    sqlx::raw_sql(sql).execute(&fixture.database.pool).await.unwrap();
}

/// Publishes what is to be published, and these events and no others must have come out, once, each key's in order.
async fn assert_published(fixture: &Fixture, expected: &BTreeSet<String>) {
    let relay = fixture.relay(&[]);
    let records = fixture.published(expected.len()).await;
    all_settled(fixture).await;
    relay.stop().await;
    let records_after = fixture.published(expected.len()).await;
    assert_no_repeats(&records_after);
    assert_eq!(&records_after.iter().map(|record| record.event_id.clone()).collect::<BTreeSet<_>>(), expected);
    for (key, versions) in first_appearances(&records) {
        assert!(versions.is_sorted(), "{key}: {versions:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_pg_upgrade_a_relay_goes_on_by_itself() {
    let fixture = Fixture::with_topic("after_pg_upgrade_a_relay").await;
    let [k, late_key] = <[String; 2]>::try_from(fixture.keys_of_one_lane(2).await).unwrap();
    let relay = fixture.relay(&[]);
    let mut late = PgConnection::connect(&fixture.database.url).await.unwrap();
    let mut late = late.begin().await.unwrap();
    fixture.insert(&mut late, &late_key, 1).await;
    fixture.insert_all(&k, 1, 5).await;
    fixture.published(5).await;
    relay.stop().await;
    late.commit().await.unwrap();

    run(&fixture, "UPDATE relay_lanes SET system_identifier = 1").await;
    let relay = fixture.relay(&[]);
    fixture.insert_all(&k, 6, 7).await;
    let records = fixture.published(8).await;
    assert_complete_and_in_order(&records, |key| if key == k { 7 } else { 1 }, 2);
    all_settled(&fixture).await;
    relay.stop().await;
    assert_no_repeats(&fixture.published(8).await);
    let adopted: bool = sqlx::query_scalar(
        "SELECT bool_and(l.system_identifier = s.system_identifier) FROM relay_lanes l, pg_control_system() s",
    )
    .fetch_one(&fixture.database.pool)
    .await
    .unwrap();
    assert!(adopted, "the cursors are of this cluster now");
}

/// Cursors of another cluster, far ahead, and no row that could tell: new rows are above the positions, so nothing can be lost.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_outbox_needs_no_reanchoring_in_whatever_cluster() {
    let fixture = Fixture::with_topic("an_empty_outbox_needs_no").await;
    run(
        &fixture,
        "UPDATE relay_lanes SET system_identifier = 1, position = 500, seen = '1000000000:1000000000:';
        SELECT setval('outbox_id_seq', 500)",
    )
    .await;
    fixture.insert_all("k", 1, 3).await;
    let relay = fixture.relay(&[]);
    fixture.insert_all("k", 4, 6).await;
    assert_complete_and_in_order(&fixture.published(6).await, |_| 6, 1);
    all_settled(&fixture).await;
    relay.stop().await;
    assert_no_repeats(&fixture.published(6).await);
}

/// Before any relay has settled there is no identifier that could differ, and yet its rows would be published without end.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_restored_before_a_relay_has_run_is_refused_too() {
    let fixture = Fixture::with_topic("a_database_that_was_restored").await;
    fixture.insert_all("k", 1, 3).await;
    run(&fixture, "UPDATE outbox SET txid = txid + 1000000000").await;
    let error = fixture.relay(&[]).task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("restored from a dump") && error.contains("CALL relay_reanchor()"), "{error}");
    run(&fixture, "CALL relay_reanchor()").await;
    assert_published(&fixture, &unpublished(&fixture).await).await;
}

/// Some who run Postgres for others make each cluster as a copy of one, whose identifier all of them have.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_restored_into_a_cluster_of_the_same_identifier_is_refused_too() {
    let fixture = Fixture::with_topic("a_database_of_the_same_identifier").await;
    let relay = fixture.relay(&[]);
    fixture.insert_all("k", 1, 3).await;
    fixture.published(3).await;
    all_settled(&fixture).await;
    relay.stop().await;
    // Rows and cursors are in the numbers of the cluster that they were dumped from, which is well ahead of this one.
    run(
        &fixture,
        "UPDATE outbox SET txid = txid + 1000000000; UPDATE relay_lanes SET seen = '2000000000:2000000000:' WHERE seen IS NOT NULL",
    )
    .await;
    let reason = "SELECT outbox_keep_reason(oid::regclass, '1 day') = 'foreign' FROM outbox_partitions ORDER BY first_id LIMIT 1";
    let kept: bool = sqlx::query_scalar(reason).fetch_one(&fixture.database.pool).await.unwrap();
    assert!(kept, "no partition is dropped either");
    let error = fixture.relay(&[]).task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("restored from a dump") && error.contains("CALL relay_reanchor()"), "{error}");
    run(&fixture, "CALL relay_reanchor()").await;
    let relay = fixture.relay(&[]);
    fixture.insert_all("k", 4, 6).await;
    assert_complete_and_in_order(&fixture.published(6).await, |_| 6, 1);
    all_settled(&fixture).await;
    relay.stop().await;
    assert_no_repeats(&fixture.published(6).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn reanchoring_publishes_what_was_late_or_new_and_nothing_twice() {
    let fixture = Fixture::with_topic("reanchoring_publishes_what_was").await;
    restore(&fixture).await;
    let expected = unpublished(&fixture).await;
    assert!(expected.len() > 1_000 && expected.len() < 1_600, "{}: some are late, many are done with", expected.len());
    run(&fixture, "CALL relay_reanchor(100)").await;
    assert_eq!(unpublished(&fixture).await, expected);
    assert_published(&fixture, &expected).await;
    // Again, where there is nothing to do.
    run(&fixture, "CALL relay_reanchor()").await;
    assert_eq!(unpublished(&fixture).await, BTreeSet::new());
}

/// The first step's own transaction, in which a row has the number of that very transaction though it was published before.
const STEP_WITH_A_ROW_OF_ITS_NUMBER: &str = "BEGIN;
    UPDATE relay_lanes SET seen = format('%s:%s:', x, x)::pg_snapshot FROM (SELECT pg_current_xact_id()::text::bigint + 1000 AS x) o;
    UPDATE outbox SET txid = pg_current_xact_id()::text::bigint WHERE id = 1;
    UPDATE outbox SET txid = pg_current_xact_id()::text::bigint + 1000000 WHERE id = (SELECT max(id) FROM outbox);
    SELECT relay_reanchor_step(100);
    COMMIT";

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_has_the_number_of_the_reanchoring_by_chance_is_not_taken_for_a_late_one() {
    for wrong in [false, true] {
        let fixture = Fixture::new("a_row_that_has_the_number").await;
        if wrong {
            forget(&fixture.database.pool, "relay_reanchor_begin", "AND (o.txid = own OR (", "AND ((").await;
        }
        restore(&fixture).await;
        run(&fixture, STEP_WITH_A_ROW_OF_ITS_NUMBER).await;
        run(&fixture, "CALL relay_reanchor(100)").await;
        let late: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM outbox o JOIN relay_lanes l USING (lane)
             WHERE o.id <= l.position AND NOT pg_visible_in_snapshot(o.txid::text::xid8, l.seen)",
        )
        .fetch_one(&fixture.database.pool)
        .await
        .unwrap();
        assert_eq!(late > 0, wrong, "{late} rows are taken for late ones");
    }
}

/// Rows that came before a check and break it can be published, and so they can be reanchored: the first step changes some, and so do pieces.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_break_a_younger_check_are_reanchored_and_the_check_stays() {
    let fixture = Fixture::with_topic("rows_that_break_a_younger").await;
    restore(&fixture).await;
    run(&fixture, "ALTER TABLE outbox ADD CONSTRAINT younger CHECK (aggregate_id <> 'k7') NOT VALID").await;
    let expected = unpublished(&fixture).await;
    run(&fixture, "CALL relay_reanchor(100)").await;
    assert_eq!(unpublished(&fixture).await, expected);
    let mut connection = fixture.database.pool.acquire().await.unwrap();
    let (state, _) = refused(&mut connection, "SELECT outbox_append('thing', 'k7', 't', '1')").await;
    assert_eq!(state, "23514", "the check is there as it was");
    assert_published(&fixture, &expected).await;
}

/// Writers write all the time: before, between the steps, and over all of them in one transaction. The connection that reanchors is lost
/// in the middle of a step.
#[tokio::test(flavor = "multi_thread")]
async fn reanchoring_goes_on_after_an_interruption_and_stops_no_writer() {
    let fixture = Fixture::with_topic("reanchoring_goes_on_after").await;
    restore(&fixture).await;
    let mut expected = unpublished(&fixture).await;
    let mut held = PgConnection::connect(&fixture.database.url).await.unwrap();
    let mut held = held.begin().await.unwrap();
    fixture.insert(&mut held, "held", 1).await;
    fixture.insert_all("new", 1, 2).await;
    let mut version = 2;
    for _ in 0..8 {
        assert!(!step(&fixture).await, "there is more to do");
        let mut lost = PgConnection::connect(&fixture.database.url).await.unwrap();
        let mut transaction = lost.begin().await.unwrap();
        sqlx::query("SELECT relay_reanchor_step(100)").execute(&mut *transaction).await.unwrap();
        // While the step is open, a writer that waits for it would fail.
        let mut writer = PgConnection::connect(&fixture.database.url).await.unwrap();
        sqlx::query("SET lock_timeout = '2s'").execute(&mut writer).await.unwrap();
        version += 1;
        fixture.insert(&mut writer, "new", version).await;
        sqlx::query("SELECT outbox_append('other', 'k', 't', '1')").execute(&mut writer).await.unwrap();
        drop(transaction);
    }
    run(&fixture, "DELETE FROM outbox WHERE aggregate_type = 'other'").await;

    let relay = fixture.process(&[]);
    eventually("the relay waits, and says for what", async || {
        relay.log().contains("relay_reanchor() is not finished").then_some(())
    })
    .await;
    relay.kill();
    // Two callers at once.
    let pool = fixture.database.pool.clone();
    let other = tokio::spawn(async move { sqlx::raw_sql("CALL relay_reanchor(100)").execute(&pool).await.unwrap() });
    run(&fixture, "CALL relay_reanchor(100)").await;
    other.await.unwrap();

    expected.extend(events_of(&fixture.database.pool, "new").await);
    assert_eq!(unpublished(&fixture).await, expected);
    expected.extend(events_of(&mut *held, "held").await);
    held.commit().await.unwrap();
    assert_published(&fixture, &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_was_made_in_the_middle_of_reanchoring_is_reanchored_as_well() {
    let fixture = Fixture::with_topic("a_dump_that_was_made_in").await;
    restore(&fixture).await;
    let mut expected = unpublished(&fixture).await;
    for _ in 0..6 {
        assert!(!step(&fixture).await);
    }
    fixture.insert_all("new", 1, 2).await;
    expected.extend(events_of(&fixture.database.pool, "new").await);
    // Into a third cluster: the numbers stay, and its own are lower.
    run(
        &fixture,
        "UPDATE outbox SET txid = txid + 40 WHERE txid > 0;
        UPDATE relay_lanes SET seen = (SELECT format('%s:%s:', x + 40, x + 40)::pg_snapshot FROM (SELECT pg_snapshot_xmax(seen)::text::bigint AS x) s);
        UPDATE relay_reanchoring SET system_identifier = 2, late_txid = late_txid + 40, from_txid = from_txid + 40, below_txid = below_txid + 40",
    )
    .await;
    run(&fixture, "CALL relay_reanchor(100)").await;
    assert_eq!(unpublished(&fixture).await, expected);
    assert_published(&fixture, &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reanchoring_refuses_a_sequence_that_is_behind_the_cursors() {
    let fixture = Fixture::new("reanchoring_refuses_a_sequence").await;
    restore(&fixture).await;
    run(&fixture, "SELECT setval('outbox_id_seq', 100)").await;
    let error = sqlx::raw_sql("CALL relay_reanchor()").execute(&fixture.database.pool).await.unwrap_err().to_string();
    assert!(error.contains("is behind the relays"), "{error}");
    let begun: i64 =
        sqlx::query_scalar("SELECT count(*) FROM relay_reanchoring").fetch_one(&fixture.database.pool).await.unwrap();
    assert_eq!(begun, 0);
}
