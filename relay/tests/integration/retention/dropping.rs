//! Partitions are dropped from the oldest on, once they are published.

use std::time::Duration;

use relay::outbox::retention::{Attempt, Outcome};
use shared::testing::eventually;
use sqlx::{Connection, PgConnection};

use super::stage::{Stage, attempt, small_partitions};
use crate::support::{Fixture, all_settled, assert_complete_and_in_order};

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_dropped_from_the_oldest_on_and_never_the_current_one() {
    let stage = Stage::new("partitions_are_dropped").await;
    stage.fill(250).await;
    stage.settle().await;
    let attempts = [attempt(&stage.relay, Duration::ZERO).await, attempt(&stage.relay, Duration::ZERO).await];
    let dropped = |name: &str| Some(Attempt { partition: name.to_owned(), outcome: Outcome::Dropped });
    assert_eq!(attempts, [dropped("outbox_p1"), dropped("outbox_p101")]);
    assert_eq!(stage.try_to_drop().await, None, "the current one stays");
    assert_eq!(stage.partitions().await, ["outbox_p201"]);
    // What is left has the right rows, and writing goes on.
    stage.fill(1).await;
    let ids: (i64, i64, i64) =
        sqlx::query_as("SELECT min(id), max(id), count(*) FROM outbox").fetch_one(&stage.database.pool).await.unwrap();
    assert_eq!(ids, (201, 251, 51));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_would_not_see_late_commits_may_not_drop() {
    let stage = Stage::new("a_transaction_that_would_not_see").await;
    let mut connection = stage.connection().await;
    let mut transaction = connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    let error = sqlx::query("SELECT outbox_drop_partitions('0s')").execute(&mut *transaction).await.unwrap_err();
    assert!(error.to_string().contains("READ COMMITTED"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_drops_what_it_has_published_and_loses_nothing() {
    let fixture = Fixture::new("a_relay_drops_what_it_has").await;
    small_partitions(&fixture.database.pool).await;
    let relay = fixture.relay(&[("RELAY_RETENTION", "0s")]);
    let [late, early] = <[String; 2]>::try_from(fixture.keys_of_one_lane(2).await).unwrap();
    let mut held = PgConnection::connect(&fixture.database.url).await.unwrap();
    let mut held = held.begin().await.unwrap();
    fixture.insert(&mut held, &late, 1).await;
    fixture.insert_all(&early, 1, 249).await;
    all_settled(&fixture).await;
    held.commit().await.unwrap();
    let records = fixture.published(250).await;
    assert_complete_and_in_order(&records, |key| if key == late { 1 } else { 249 }, 2);
    eventually("two partitions are dropped", async || {
        let left: Vec<String> =
            sqlx::query_scalar("SELECT name::text FROM outbox_partitions WHERE first_id < 5000001 ORDER BY first_id")
                .fetch_all(&fixture.database.pool)
                .await
                .unwrap();
        (left == ["outbox_p201"]).then_some(())
    })
    .await;
    relay.stop().await;
}
