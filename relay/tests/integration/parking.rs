//! Events that Kafka refuses for good.

use shared::testing::eventually;

use crate::support::{Fixture, all_settled, assert_complete_and_in_order, assert_no_repeats, insert};

#[tokio::test(flavor = "multi_thread")]
async fn an_event_too_large_parks_its_key_and_nothing_else() {
    let fixture = Fixture::new("an_event_too_large_parks_its_key").await;
    let relay = fixture.relay(&[]);
    let mut connection = fixture.database.pool.acquire().await.unwrap();
    fixture.insert(&mut connection, "big", 1).await;
    let huge = format!("\"{}\"", "x".repeat(2_000_000));
    insert(&mut connection, &fixture.aggregate_type, "big", 2, &huge).await;
    fixture.insert(&mut connection, "big", 3).await;
    fixture.insert_all("small", 1, 20).await;
    let records = fixture.published(21).await;
    assert_complete_and_in_order(&records, |key| if key == "big" { 1 } else { 20 }, 2);
    all_settled(&fixture).await;
    // The key stays parked over a restart, and its later events wait behind the first, in order.
    relay.stop().await;
    let relay = fixture.relay(&[]);
    fixture.insert_all("big", 4, 5).await;
    fixture.insert_all("small", 21, 22).await;
    fixture.published(23).await;
    all_settled(&fixture).await;
    let parked: Vec<(i64, bool)> =
        sqlx::query_as("SELECT aggregate_version, reason IS NOT NULL FROM relay_parked ORDER BY id")
            .fetch_all(&fixture.database.pool)
            .await
            .unwrap();
    assert_eq!(parked, [(2, true), (3, false), (4, false), (5, false)]);
    relay.stop().await;
    assert_no_repeats(&fixture.published(23).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregate_type_that_is_no_topic_name_parks_its_keys() {
    let fixture = Fixture::new("an_aggregate_type_that_is_no_topic_name").await;
    let relay = fixture.relay(&[]);
    let mut connection = fixture.database.pool.acquire().await.unwrap();
    insert(&mut connection, "no topic/name", "k", 1, "{}").await;
    fixture.insert_all("fine", 1, 3).await;
    fixture.published(3).await;
    let reason = eventually("the event is parked", async || {
        sqlx::query_scalar::<_, String>("SELECT reason FROM relay_parked")
            .fetch_optional(&fixture.database.pool)
            .await
            .unwrap()
    })
    .await;
    assert!(!reason.is_empty());
    all_settled(&fixture).await;
    relay.stop().await;
}
