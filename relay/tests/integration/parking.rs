//! Events that Kafka refuses for good.

use shared::testing::{eventually, unique};

use crate::support::{Fixture, all_settled, assert_complete_and_in_order, assert_no_repeats, insert, published};

#[tokio::test(flavor = "multi_thread")]
async fn an_event_too_large_parks_its_key_and_nothing_else() {
    let fixture = Fixture::with_topic("an_event_too_large_parks_its_key").await;
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

/// A type that makes no legal topic name, so that its keys are parked until it gets a route.
fn unroutable() -> String {
    unique("no topic")
}

async fn route(fixture: &Fixture, aggregate_type: &str, topic: &str) {
    sqlx::query("INSERT INTO relay_routes VALUES ($1, $2)")
        .bind(aggregate_type)
        .bind(topic)
        .execute(&fixture.database.pool)
        .await
        .unwrap();
}

/// As an operator asks.
async fn request(fixture: &Fixture, key: &str) {
    let asked = sqlx::query(
        "INSERT INTO relay_parked_requests (lane, aggregate_type, aggregate_id, requested_by)
        SELECT DISTINCT lane, aggregate_type, aggregate_id, 'test' FROM relay_parked WHERE aggregate_id = $1",
    );
    let asked = asked.bind(key).execute(&fixture.database.pool).await.unwrap();
    assert_eq!(asked.rows_affected(), 1);
}

/// Versions that are parked of a key, in order.
async fn parked(fixture: &Fixture, key: &str) -> Vec<i64> {
    sqlx::query_scalar("SELECT aggregate_version FROM relay_parked WHERE aggregate_id = $1 ORDER BY id")
        .bind(key)
        .fetch_all(&fixture.database.pool)
        .await
        .unwrap()
}

async fn eventually_parked(fixture: &Fixture, key: &str, versions: &[i64]) {
    eventually("these versions and no others are parked", async || {
        (parked(fixture, key).await == versions).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_key_that_is_retried_is_published_in_order_and_flows_again() {
    let fixture = Fixture::with_topic("a_parked_key_that_is_retried").await;
    let (aggregate_type, topic) = (unroutable(), unique("routed"));
    let relay = fixture.relay(&[]);
    let mut connection = fixture.database.pool.acquire().await.unwrap();
    for version in 1..=3 {
        insert(&mut connection, &aggregate_type, "again", version, "{}").await;
        insert(&mut connection, &aggregate_type, "other", version, "{}").await;
    }
    eventually_parked(&fixture, "again", &[1, 2, 3]).await;
    eventually_parked(&fixture, "other", &[1, 2, 3]).await;
    route(&fixture, &aggregate_type, &topic).await;
    request(&fixture, "again").await;
    eventually_parked(&fixture, "again", &[]).await;
    let requests: i64 = sqlx::query_scalar("SELECT count(*) FROM relay_parked_requests")
        .fetch_one(&fixture.database.pool)
        .await
        .unwrap();
    assert_eq!(requests, 0);
    insert(&mut connection, &aggregate_type, "again", 4, "{}").await;
    insert(&mut connection, &aggregate_type, "other", 4, "{}").await;
    let records = published(&topic, 4).await;
    assert_complete_and_in_order(&records, |_| 4, 1);
    assert_no_repeats(&records);
    // Nobody has asked for the other one.
    eventually_parked(&fixture, "other", &[1, 2, 3, 4]).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_many_parked_events_is_retried_in_order_while_it_goes_on_and_others_flow() {
    const PARKED: i64 = 1_200;
    const ALL: i64 = 1_500;
    let fixture = Fixture::with_topic("a_key_with_many_parked_events").await;
    let (aggregate_type, topic) = (unroutable(), unique("routed"));
    let relay = fixture.relay(&[]);
    let mut connection = fixture.database.pool.acquire().await.unwrap();
    for version in 1..=PARKED {
        insert(&mut connection, &aggregate_type, "many", version, "{}").await;
    }
    eventually_parked(&fixture, "many", &(1..=PARKED).collect::<Vec<_>>()).await;
    route(&fixture, &aggregate_type, &topic).await;
    request(&fixture, "many").await;
    for version in PARKED + 1..=ALL {
        insert(&mut connection, &aggregate_type, "many", version, "{}").await;
        fixture.insert(&mut connection, "small", version - PARKED).await;
    }
    let records = published(&topic, usize::try_from(ALL).unwrap()).await;
    assert_complete_and_in_order(&records, |_| ALL, 1);
    assert_no_repeats(&records);
    assert_complete_and_in_order(&fixture.published(300).await, |_| ALL - PARKED, 1);
    eventually_parked(&fixture, "many", &[]).await;
    all_settled(&fixture).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_is_refused_again_leaves_the_key_parked_with_the_new_reason() {
    let fixture = Fixture::new("a_retry_that_is_refused_again").await;
    let aggregate_type = unroutable();
    let relay = fixture.relay(&[]);
    let mut connection = fixture.database.pool.acquire().await.unwrap();
    insert(&mut connection, &aggregate_type, "k", 1, "{}").await;
    insert(&mut connection, &aggregate_type, "k", 2, "{}").await;
    eventually_parked(&fixture, "k", &[1, 2]).await;
    sqlx::query("UPDATE relay_parked SET reason = 'old' WHERE reason IS NOT NULL")
        .execute(&fixture.database.pool)
        .await
        .unwrap();
    request(&fixture, "k").await;
    eventually("the reason is the new one, and the request has ended", async || {
        let refused: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM relay_parked WHERE reason LIKE '%does not allow%')
                AND NOT EXISTS (SELECT FROM relay_parked_requests)",
        )
        .fetch_one(&fixture.database.pool)
        .await
        .unwrap();
        refused.then_some(())
    })
    .await;
    assert_eq!(parked(&fixture, "k").await, [1, 2]);
    relay.stop().await;
}
