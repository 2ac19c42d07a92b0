//! Odd rows in `relay_parked`, and their way back.

use relay::outbox::parked::{begin_retry, parked_keys, parked_rows, refuse_retry};
use shared::testing::{eventually, make_topic, unique};

use super::stage::Stage;
use crate::support::{assert_complete_and_in_order, assert_no_repeats, published};

/// Random text of 5,000 bytes, which no compression makes fit into an index.
const LONG_ID: &str = "(SELECT left(string_agg(md5(random()::text), ''), 5000) FROM generate_series(1, 157))";

/// JSON of 20 MiB and two bytes.
const HUGE: &str = "to_json(repeat('x', 20971520))";

/// Waits until a relay has answered each request, and says what the reasons are then.
async fn reasons_once_answered(stage: &Stage) -> Vec<(Option<String>,)> {
    eventually("all requests are answered", async || {
        let open: Vec<(i64,)> = stage.all("SELECT count(*) FROM relay_parked_requests").await;
        (open == [(0,)]).then_some(())
    })
    .await;
    stage.all("SELECT reason FROM relay_parked ORDER BY id").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_longer_than_an_index_entry_is_parked_and_published_when_it_may_go() {
    let stage = Stage::new("a_key_longer_than_an_index_entry").await;
    let (odd, topic) = (unique("no topic"), unique("routed"));
    make_topic(&topic).await;
    stage.plant(&odd, 1, &[("aggregate_id", LONG_ID)]).await;
    stage
        .run(
            "INSERT INTO outbox (aggregate_type, aggregate_id, aggregate_version, type, payload)
        SELECT aggregate_type, aggregate_id, 2, type, '{}' FROM outbox WHERE id = 1",
        )
        .await;
    let relay = stage.fixture.relay(&[]);
    stage.fixture.insert_all("neighbour", 1, 20).await;
    assert_complete_and_in_order(&stage.fixture.published(20).await, |_| 20, 1);
    eventually("both are parked, in order", async || {
        let parked: Vec<(i64, bool)> =
            stage.all("SELECT aggregate_version, reason IS NOT NULL FROM relay_parked ORDER BY id").await;
        (parked == [(1, true), (2, false)]).then_some(())
    })
    .await;
    // A relay that takes the lane knows the key.
    relay.stop().await;
    let relay = stage.fixture.relay(&[]);
    stage
        .run(
            "INSERT INTO outbox (aggregate_type, aggregate_id, aggregate_version, type, payload)
        SELECT aggregate_type, aggregate_id, 3, type, '{}' FROM outbox WHERE id = 1",
        )
        .await;
    eventually("the third one waits behind", async || {
        let parked: Vec<(i64,)> = stage.all("SELECT count(*) FROM relay_parked").await;
        (parked == [(3,)]).then_some(())
    })
    .await;
    stage.run(&format!("INSERT INTO relay_routes VALUES ('{odd}', '{topic}')")).await;
    stage.request_all().await;
    let records = published(&topic, 3).await;
    assert_complete_and_in_order(&records, |_| 3, 1);
    assert_no_repeats(&records);
    assert_eq!(reasons_once_answered(&stage).await, []);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_read_alike_are_told_apart() {
    let stage = Stage::new("keys_that_read_alike").await;
    let mut holder = stage.holder().await;
    for (kind, id) in [("a/b", "'c'"), ("a", "'b/c'"), ("1:a", "''"), ("1", "':a'")] {
        let row = stage.plant(kind, 1, &[("aggregate_id", id)]).await;
        holder.park(row, Some("a test")).await;
    }
    stage.request_all().await;
    let lanes: Vec<i16> = (0..16).collect();
    assert_eq!(parked_keys(&mut holder.connection, &lanes).await.unwrap().len(), 4);
    let hashes: Vec<(i64,)> = stage.all("SELECT count(DISTINCT key_hash) FROM relay_parked_requests").await;
    assert_eq!(hashes, [(4,)]);
    for (kind, id) in [("a/b", "c"), ("a", "b/c")] {
        let key = holder.key(kind, id).await;
        let rows = parked_rows(&mut holder.connection, &key, 10).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.aggregate_type.as_str()).collect::<Vec<_>>(), [kind]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_above_the_bound_is_parked_by_reference_without_being_read() {
    let stage = Stage::new("a_payload_above_the_bound").await;
    let huge = stage.plant("thing", 1, &[("payload", HUGE)]).await;
    let large = stage.plant("thing", 2, &[("payload", "to_json(repeat('x', 16777214))")]).await;
    let mut holder = stage.holder().await;
    let toast_blocks = async || -> i64 {
        // What the session of the relay has read is counted once its statement is over and has been reported.
        let sql = "SELECT coalesce(sum(toast_blks_read + toast_blks_hit), 0)::bigint FROM pg_statio_user_tables WHERE relname LIKE 'outbox_p%'";
        stage.all::<(i64,)>(sql).await[0].0
    };
    let flush = "SELECT pg_stat_force_next_flush()";
    sqlx::raw_sql(flush).execute(&mut *holder.connection).await.unwrap();
    stage.report_reads().await;
    let before = toast_blocks().await;
    sqlx::raw_sql(flush).execute(&mut *holder.connection).await.unwrap();
    holder.park(huge, Some("too large")).await;
    sqlx::raw_sql(flush).execute(&mut *holder.connection).await.unwrap();
    assert_eq!(toast_blocks().await, before, "of the payload above the bound, nothing was read");
    holder.park(large, None).await;
    sqlx::raw_sql(flush).execute(&mut *holder.connection).await.unwrap();
    assert!(toast_blocks().await > before, "reading would have been seen");
    let parked: Vec<(bool, i32, Option<String>)> =
        stage.all("SELECT payload IS NULL, payload_bytes, reason FROM relay_parked ORDER BY id").await;
    assert_eq!(parked, [(true, 20_971_522, Some("too large".to_owned())), (false, 16_777_216, None)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_above_the_bound_are_parked_by_reference() {
    let stage = Stage::new("headers_above_the_bound").await;
    let random = "jsonb_build_object('a', (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 5000)))";
    let row = stage.plant("thing", 1, &[("headers", random)]).await;
    // 30,000 bytes of text, and four times as much as they are stored.
    let dense = "jsonb_build_object('a', array_fill(1, ARRAY[9999]))";
    let legal = stage.plant("thing", 2, &[("headers", dense)]).await;
    let mut holder = stage.holder().await;
    holder.park(row, Some("a test")).await;
    holder.park(legal, None).await;
    let key = holder.key("thing", "k").await;
    let rows = parked_rows(&mut holder.connection, &key, 10).await.unwrap();
    assert_eq!(rows[0].unpublishable().as_deref(), Some("its headers are too large to be published"));
    assert_eq!(rows[1].unpublishable(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_of_a_row_that_cannot_be_published_is_refused_and_the_relay_goes_on() {
    let stage = Stage::new("a_retry_of_a_row_that_cannot").await;
    make_topic(&stage.fixture.topic()).await;
    let mut holder = stage.holder().await;
    let kind = stage.fixture.aggregate_type.clone();
    let odd = [
        ("'huge'", ("payload", HUGE), "its payload has 20971522 bytes; at most 16777216 can be published"),
        ("'ever'", ("occurred_at", "'infinity'"), "its time (occurred_at) is outside of the years 1 to 9999"),
        ("'never'", ("occurred_at", "'-infinity'"), "its time (occurred_at) is outside of the years 1 to 9999"),
        ("'far'", ("occurred_at", "'294276-12-31'"), "its time (occurred_at) is outside of the years 1 to 9999"),
        ("'bc'", ("occurred_at", "'0044-03-15 BC'"), "its time (occurred_at) is outside of the years 1 to 9999"),
    ];
    for (key, column, _) in odd {
        // One before it that can be published, and one behind it that waits.
        let before = stage.plant(&kind, 1, &[("aggregate_id", key)]).await;
        let row = stage.plant(&kind, 2, &[("aggregate_id", key), column]).await;
        let behind = stage.plant(&kind, 3, &[("aggregate_id", key)]).await;
        holder.park(before, Some("a test")).await;
        holder.park(row, None).await;
        holder.park(behind, None).await;
    }
    let stored: Vec<(bool,)> = stage
        .all("SELECT p.occurred_at = o.occurred_at FROM relay_parked p JOIN outbox o USING (lane, id) ORDER BY p.id")
        .await;
    assert!(stored.len() == 15 && stored.iter().all(|same| same.0), "times are stored as they are");
    stage.settle().await;
    stage.request_all().await;
    let relay = stage.fixture.relay(&[]);
    let reasons = reasons_once_answered(&stage).await;
    let expected: Vec<(Option<String>,)> =
        odd.iter().flat_map(|(.., reason)| [(Some((*reason).to_owned()),), (None,)]).collect();
    assert_eq!(reasons, expected);
    stage.fixture.insert_all("neighbour", 1, 3).await;
    let records = stage.fixture.published(8).await;
    assert_complete_and_in_order(&records, |key| if key == "neighbour" { 3 } else { 1 }, 6);
    assert_no_repeats(&records);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_reads_no_more_payload_at_once_than_it_has_room_for() {
    let stage = Stage::new("a_retry_reads_no_more").await;
    let mut holder = stage.holder().await;
    for version in 1..=5 {
        // 12 MiB each.
        let row = stage.plant("thing", version, &[("payload", "to_json(repeat('x', 12582910))")]).await;
        holder.park(row, None).await;
    }
    let key = holder.key("thing", "k").await;
    let rows = parked_rows(&mut holder.connection, &key, 500).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.aggregate_version).collect::<Vec<_>>(), [1, 2, 3]);
    let rows = parked_rows(&mut holder.connection, &key, 2).await.unwrap();
    assert_eq!(rows.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reason_is_cut_to_a_thousand_characters() {
    let stage = Stage::new("a_reason_is_cut").await;
    let mut holder = stage.holder().await;
    let row = stage.plant("thing", 1, &[]).await;
    let long = "é".repeat(5_000);
    holder.park(row, Some(&long)).await;
    let lengths = "SELECT char_length(reason) FROM relay_parked";
    assert_eq!(stage.all::<(i32,)>(lengths).await, [(1_000,)]);
    stage.run("UPDATE relay_parked SET reason = 'short'").await;
    stage.request_all().await;
    let key = holder.key("thing", "k").await;
    begin_retry(&mut holder.connection, &key).await.unwrap();
    assert!(refuse_retry(&mut holder.connection, &key, row, &long).await.unwrap());
    assert_eq!(stage.all::<(i32,)>(lengths).await, [(1_000,)]);
}
