//! Rows whose transaction commits after the relay has read beyond them.

use shared::testing::eventually;
use sqlx::Acquire;

use crate::support::{Fixture, all_settled, assert_complete_and_in_order, assert_no_repeats};

#[tokio::test(flavor = "multi_thread")]
async fn a_late_commit_is_published_once_and_in_order() {
    let fixture = Fixture::with_topic("a_late_commit_is_published").await;
    let [late, undone, early] = <[String; 3]>::try_from(fixture.keys_of_one_lane(3).await).unwrap();
    let relay = fixture.relay(&[]);
    let mut held = fixture.database.pool.acquire().await.unwrap();
    let mut held = held.begin().await.unwrap();
    fixture.insert(&mut held, &late, 1).await;
    // A row of a subtransaction carries the top-level transaction's id; a row that is rolled back never comes.
    let mut nested = held.begin().await.unwrap();
    fixture.insert(&mut nested, &late, 2).await;
    nested.commit().await.unwrap();
    let mut rolled_back = held.begin().await.unwrap();
    let last = fixture.insert(&mut rolled_back, &undone, 1).await;
    rolled_back.rollback().await.unwrap();

    fixture.insert_all(&early, 1, 20).await;
    let records = fixture.published(20).await;
    assert_complete_and_in_order(&records, |_| 20, 1);
    eventually("the cursor of the lane has passed the late rows", async || {
        let passed: bool = sqlx::query_scalar("SELECT position > $1 FROM relay_lanes WHERE lane = 3")
            .bind(last)
            .fetch_one(&fixture.database.pool)
            .await
            .unwrap();
        passed.then_some(())
    })
    .await;

    held.commit().await.unwrap();
    fixture.insert_all(&late, 3, 4).await;
    let records = fixture.published(24).await;
    assert_complete_and_in_order(&records, |key| if key == late { 4 } else { 20 }, 2);
    all_settled(&fixture).await;
    relay.stop().await;
    assert_no_repeats(&fixture.published(24).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn late_rows_are_not_lost_by_a_restart_before_they_commit() {
    let fixture = Fixture::with_topic("late_rows_are_not_lost_by_a_restart").await;
    let [late, early] = <[String; 2]>::try_from(fixture.keys_of_one_lane(2).await).unwrap();
    let relay = fixture.relay(&[]);
    let mut held = fixture.database.pool.acquire().await.unwrap();
    let mut held = held.begin().await.unwrap();
    fixture.insert(&mut held, &late, 1).await;
    fixture.insert_all(&early, 1, 5).await;
    fixture.published(5).await;
    relay.stop().await;
    held.commit().await.unwrap();
    let relay = fixture.relay(&[]);
    let records = fixture.published(6).await;
    assert_complete_and_in_order(&records, |key| if key == late { 1 } else { 5 }, 2);
    assert_no_repeats(&records);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_late_rows_than_one_read_may_bring_are_published_once_and_in_order() {
    let fixture = Fixture::with_topic("more_late_rows_than_one_read").await;
    let relay = fixture.relay(&[("RELAY_LATE_ROWS_MAX", "7"), ("RELAY_LANE_ROWS_MAX", "5")]);
    let mut one = fixture.database.pool.acquire().await.unwrap();
    let mut one = one.begin().await.unwrap();
    let mut other = fixture.database.pool.acquire().await.unwrap();
    let mut other = other.begin().await.unwrap();
    for version in 1..=30 {
        for key in ["a", "b", "c"] {
            fixture.insert(&mut one, key, version).await;
            fixture.insert(&mut other, &format!("{key}{key}"), version).await;
        }
    }
    fixture.insert_all("early", 1, 10).await;
    fixture.published(10).await;
    one.commit().await.unwrap();
    // While the first transaction's rows are read in many parts, the second one's become visible, and new rows arrive.
    fixture.insert_all("a", 31, 40).await;
    other.commit().await.unwrap();
    fixture.insert_all("aa", 31, 40).await;
    let records = fixture.published(210).await;
    let versions = |key: &str| match key {
        "a" | "aa" => 40,
        "early" => 10,
        _ => 30,
    };
    assert_complete_and_in_order(&records, versions, 7);
    all_settled(&fixture).await;
    relay.stop().await;
    assert_no_repeats(&fixture.published(210).await);
}

/// Amid late rows a settled cursor tells of none of them: a relay that gave its lanes back there would have them published again.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_stopped_amid_many_late_rows_repeats_none() {
    let fixture = Fixture::with_topic("a_relay_that_is_stopped_amid_many").await;
    let few = [("RELAY_LATE_ROWS_MAX", "7")];
    let relay = fixture.relay(&few);
    let mut held = fixture.database.pool.acquire().await.unwrap();
    let mut held = held.begin().await.unwrap();
    for version in 1..=100 {
        for key in 0..20 {
            fixture.insert(&mut held, &format!("k{key}"), version).await;
        }
    }
    // Each lane reads beyond the rows that are held back.
    for key in 0..200 {
        fixture.insert_all(&format!("early{key}"), 1, 1).await;
    }
    fixture.published(200).await;
    held.commit().await.unwrap();
    fixture.published(201).await;
    relay.stop().await;
    let relay = fixture.relay(&few);
    let records = fixture.published(2_200).await;
    assert_complete_and_in_order(&records, |key| if key.starts_with('k') { 100 } else { 1 }, 220);
    all_settled(&fixture).await;
    relay.stop().await;
    assert_no_repeats(&fixture.published(2_200).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_stays_open_delays_nobody_else() {
    let fixture = Fixture::new("a_transaction_that_stays_open").await;
    let [held, free] = <[String; 2]>::try_from(fixture.keys_of_one_lane(2).await).unwrap();
    let relay = fixture.relay(&[]);
    let mut writer = fixture.database.pool.acquire().await.unwrap();
    let mut writer = writer.begin().await.unwrap();
    fixture.insert(&mut writer, &held, 1).await;
    let mut reader = fixture.database.pool.acquire().await.unwrap();
    sqlx::query("BEGIN ISOLATION LEVEL REPEATABLE READ").execute(&mut *reader).await.unwrap();
    sqlx::query("SELECT count(*) FROM outbox").execute(&mut *reader).await.unwrap();
    fixture.insert_all(&free, 1, 100).await;
    assert_complete_and_in_order(&fixture.published(100).await, |_| 100, 1);
    writer.rollback().await.unwrap();
    sqlx::query("ROLLBACK").execute(&mut *reader).await.unwrap();
    relay.stop().await;
}
