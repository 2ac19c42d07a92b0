//! Events of orders that somebody else has written, with times that no writer can insert any more.

use shared::testing::TestDatabase;

use crate::service::{Api, ORDER, execute};
use crate::watcher::Watcher;

#[tokio::test]
async fn an_event_at_an_odd_time_does_not_end_the_streams_of_others() {
    let database = TestDatabase::create("an_event_at_an_odd_time").await;
    execute(&database, "ALTER TABLE outbox DROP CONSTRAINT outbox_bounds").await;
    let api = Api::start(&database).await;
    let mut watcher = Watcher::open(api.address, "/orders/events", None).await;
    execute(
        &database,
        "INSERT INTO outbox (aggregate_type, aggregate_id, aggregate_version, type, payload, occurred_at)
        SELECT 'order', '99', 1, 'order.created', '{}', time
        FROM UNNEST(ARRAY['infinity', '-infinity', '294276-12-31', '4713-01-01 BC']::timestamptz[]) odd (time)",
    )
    .await;
    for order in 1..=3 {
        assert_eq!(api.post(ORDER).await.status, 201);
        assert_eq!(watcher.change().await.change(), Some((order, 1)));
    }
    api.stop().await;
}
