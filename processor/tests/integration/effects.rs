//! Effects are exactly once.

use crate::support::{World, event};

#[tokio::test(flavor = "multi_thread")]
async fn an_order_goes_from_pending_to_processed_with_one_transition_and_one_event() {
    let world = World::new("straight", 3).await;
    let orders = world.created_orders(20).await;
    let running = world.start(&[]);
    world.eventually_processed(20).await;
    running.stop().await;
    world.assert_processed_once(20).await;

    let (payload, version): (String, i64) = sqlx::query_as(
        "SELECT payload::text, aggregate_version FROM outbox WHERE aggregate_id = $1 AND type = 'order.processed'",
    )
    .bind(orders[0].id.to_string())
    .fetch_one(&world.database.pool)
    .await
    .expect("its event");
    assert_eq!(version, 2);
    let document: serde_json::Value = serde_json::from_str(&payload).expect("JSON");
    assert_eq!((&document["status"], &document["version"]), (&"Processed".into(), &2.into()));
    assert_eq!(document["id"], orders[0].id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_published_again_has_no_second_effect() {
    let world = World::new("repeated", 2).await;
    let orders = world.orders(30).await;
    world.produce(orders.iter().map(|order| order.created(2)));
    let running = world.start(&[]);
    world.eventually_processed(30).await;
    // At other offsets, in the other partition too, and twice in one batch.
    world.produce(orders.iter().map(|order| order.event(order.event_id, 0)));
    world.produce(orders.iter().chain(&orders).map(|order| order.event(order.event_id, 1)));
    world.eventually_at(0, 15 + 30).await;
    world.eventually_at(1, 15 + 60).await;
    running.stop().await;
    world.assert_processed_once(30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_past_the_event_is_left_as_it_is() {
    let world = World::new("superseded", 1).await;
    let orders = world.orders(2).await;
    sqlx::query("UPDATE orders SET status = 'Cancelled', version = 2 WHERE id = $1")
        .bind(orders[0].id)
        .execute(&world.database.pool)
        .await
        .unwrap();
    world.produce(orders.iter().map(|order| order.created(1)));
    let running = world.start(&[]);
    world.eventually_at(0, 2).await;
    running.stop().await;
    world.assert_processed_once(1).await;
    assert_eq!(world.count("SELECT count(*) FROM orders WHERE status = 'Cancelled' AND version = 2").await, 1);
    assert_eq!(world.count("SELECT count(*) FROM dead_letters").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_type_without_a_handler_are_counted_and_passed_over() {
    let world = World::new("passed_over", 1).await;
    let foreign = (0..5).map(|number| event("account.opened", uuid::Uuid::now_v7(), &number.to_string(), "{}"));
    world.produce(foreign);
    world.created_orders(3).await;
    let running = world.start(&[]);
    world.eventually_processed(3).await;
    world.eventually_at(0, 8).await;
    let passed_over = running.metrics.tally().passed_over;
    running.stop().await;
    assert_eq!(passed_over, 5);
    world.assert_processed_once(3).await;
    assert_eq!(world.count("SELECT count(*) FROM dead_letters").await, 0);
}
