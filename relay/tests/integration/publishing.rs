//! What is published, and what a relay refuses to start on.

use shared::testing::{eventually, kafka_brokers, partitions_of};
use sqlx::Connection;

use crate::support::{Fixture, all_settled, assert_complete_and_in_order, assert_no_repeats};

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_published_as_it_was_written() {
    let fixture = Fixture::new("an_event_is_published_as_it_was_written").await;
    let mut connection = fixture.database.pool.acquire().await.unwrap();
    let sql = "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, headers)
        VALUES ('01890a5d-ac96-774b-bcce-b302099a8057', $1, 'k', 1, 'thing.made', '{ \"b\": 1,\"a\":2 }',
            '{\"traceparent\": \"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\"}')";
    sqlx::query(sql).bind(&fixture.aggregate_type).execute(&mut *connection).await.unwrap();
    let relay = fixture.relay(&[]);
    let records = fixture.published(1).await;
    assert_eq!(records.len(), 1);
    let record = &records[0];
    assert_eq!((record.key.as_str(), record.version), ("k", 1));
    assert_eq!(record.payload, "{ \"b\": 1,\"a\":2 }", "byte for byte");
    let source = format!("/outrider/{}", fixture.aggregate_type);
    for (name, value) in [
        ("id", "01890a5d-ac96-774b-bcce-b302099a8057"),
        ("ce_id", "01890a5d-ac96-774b-bcce-b302099a8057"),
        ("ce_type", "thing.made"),
        ("ce_source", source.as_str()),
        ("ce_subject", "k"),
        ("ce_specversion", "1.0"),
        ("content-type", "application/json"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ] {
        assert_eq!(record.headers.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(record.headers["ce_time"].ends_with('Z'));
    relay.stop().await;
    // Brokers would have made it with one partition, and a question after it is enough for that.
    assert_eq!(
        partitions_of(&kafka_brokers(), &fixture.topic()).await,
        12,
        "partitions of a topic that the relay made"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_larger_than_one_read_is_published_in_order_and_once() {
    let fixture = Fixture::with_topic("a_backlog_larger_than_one_read").await;
    let sql = "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
        SELECT gen_random_uuid(), $1, 'k' || key, version, 'thing.changed', '{}'
        FROM generate_series(1, 50) version, generate_series(1, 40) key ORDER BY version, key";
    sqlx::query(sql).bind(&fixture.aggregate_type).execute(&fixture.database.pool).await.unwrap();
    let relay = fixture.relay(&[("RELAY_LANE_ROWS_MAX", "7"), ("RELAY_IN_FLIGHT_MAX", "100")]);
    let records = fixture.published(2_000).await;
    assert_complete_and_in_order(&records, |_| 50, 40);
    all_settled(&fixture).await;
    relay.stop().await;
    assert_no_repeats(&fixture.published(2_000).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_stopped_and_started_repeats_nothing() {
    let fixture = Fixture::with_topic("a_relay_that_is_stopped_and_started").await;
    for round in 0..4 {
        let relay = fixture.relay(&[]);
        fixture.insert_all("k", round * 10 + 1, round * 10 + 10).await;
        fixture.published(usize::try_from(round * 10 + 10).unwrap()).await;
        relay.stop().await;
    }
    let records = fixture.published(40).await;
    assert_complete_and_in_order(&records, |_| 40, 1);
    assert_no_repeats(&records);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_schema_is_refused() {
    let fixture = Fixture::new("an_older_schema_is_refused").await;
    sqlx::query("DELETE FROM _sqlx_migrations WHERE version = (SELECT max(version) FROM _sqlx_migrations)")
        .execute(&fixture.database.pool)
        .await
        .unwrap();
    let error = fixture.relay(&[]).task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("run `outrider migrate`"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_database_is_refused_until_it_is_reanchored() {
    let fixture = Fixture::with_topic("a_restored_database_is_refused").await;
    let [k, late_key] = <[String; 2]>::try_from(fixture.keys_of_one_lane(2).await).unwrap();
    let relay = fixture.relay(&[]);
    fixture.insert_all(&k, 1, 5).await;
    fixture.published(5).await;
    // A transaction that is still open when the relay stops, and in the dump: its rows are late, and yet to come.
    let mut late = fixture.database.pool.acquire().await.unwrap();
    let mut late = late.begin().await.unwrap();
    fixture.insert(&mut late, &late_key, 1).await;
    fixture.insert_all(&k, 6, 7).await;
    fixture.published(7).await;
    all_settled_but_late(&fixture).await;
    relay.stop().await;
    late.commit().await.unwrap();

    // What a dump and restore into a younger cluster does: another identifier, and transaction ids far above the cluster's own.
    for sql in [
        "UPDATE outbox SET txid = txid + 1000000000",
        "UPDATE relay_lanes SET system_identifier = 1, seen = (SELECT (xmin + 1000000000 || ':' || xmax + 1000000000 || ':' ||
            coalesce((SELECT string_agg((id::text::bigint + 1000000000)::text, ',' ORDER BY id) FROM pg_snapshot_xip(seen) id), ''))::pg_snapshot
            FROM (SELECT pg_snapshot_xmin(seen)::text::bigint AS xmin, pg_snapshot_xmax(seen)::text::bigint AS xmax) s)",
    ] {
        sqlx::query(sql).execute(&fixture.database.pool).await.unwrap();
    }
    let error = fixture.relay(&[]).task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("CALL relay_reanchor()"), "{error}");

    sqlx::query("CALL relay_reanchor()").execute(&fixture.database.pool).await.unwrap();
    let relay = fixture.relay(&[]);
    fixture.insert_all(&k, 8, 9).await;
    let records = fixture.published(10).await;
    assert_complete_and_in_order(&records, |key| if key == k { 9 } else { 1 }, 2);
    all_settled(&fixture).await;
    relay.stop().await;
    assert_no_repeats(&fixture.published(10).await);
}

async fn all_settled_but_late(fixture: &Fixture) {
    eventually("the visible rows are settled", async || {
        let open: i64 =
            sqlx::query_scalar("SELECT count(*) FROM outbox o JOIN relay_lanes l USING (lane) WHERE o.id > l.position")
                .fetch_one(&fixture.database.pool)
                .await
                .unwrap();
        (open == 0).then_some(())
    })
    .await;
}
