//! The processor dies between any two steps of a batch with failures, and of the work on keys that wait: nothing is lost, and nothing
//! happens twice.

use crate::keeper::QUICK;
use crate::order_life::{break_orders, mend_orders};
use crate::support::World;

/// A batch in which one order is refused for good, and one for now, dies at `failpoint`.
async fn batch(failpoint: &str) {
    let world = World::new("killed_batch", 1).await;
    let orders = world.orders(6).await;
    break_orders(&world, &[&orders[1], &orders[3]], "P0001").await;
    sqlx::query("UPDATE bad_orders SET sql_state = '55P03' WHERE id = $1")
        .bind(orders[3].id)
        .execute(&world.database.pool)
        .await
        .expect("one may pass");
    world.produce(orders.iter().map(|order| order.created(1)));
    world.die_at(failpoint).await;
    let running = world.start(&QUICK);
    world.eventually_processed(4).await;
    world.eventually_state(&orders[1].id.to_string(), Some("parked")).await;
    mend_orders(&world).await;
    world.eventually_processed(5).await;
    world.replay(&orders[1].id.to_string(), 0, false).await;
    running.stop().await;
    for (place, order) in orders.iter().enumerate() {
        let life: &[&str] = if place == 1 { &["Pending", "Failed", "Processed"] } else { &["Pending", "Processed"] };
        assert_eq!(world.life(order).await, life, "{failpoint}");
    }
    world.assert_nothing_waits().await;
    assert_eq!(world.count("SELECT count(*) FROM inbox").await, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_killed_between_any_two_steps_of_a_batch_with_failures_loses_and_repeats_nothing() {
    for failpoint in
        ["after-inbox", "after-handlers", "after-blocking", "after-burying", "before-db-commit", "after-db-commit"]
    {
        batch(failpoint).await;
    }
}

/// Three orders wait: one is retried, one is parked and asked for, and one fails again and is given up. The processor dies at
/// `failpoint`.
async fn keys(failpoint: &str) {
    let world = World::new("killed_keys", 1).await;
    let orders = world.orders(3).await;
    break_orders(&world, &[&orders[0], &orders[1], &orders[2]], "P0001").await;
    let retried = "UPDATE bad_orders SET sql_state = '55P03' WHERE id <> (SELECT max(id) FROM bad_orders)";
    sqlx::query(retried).execute(&world.database.pool).await.expect("two may pass");
    world.produce(orders.iter().map(|order| order.created(1)));
    let slow = [("PROCESSOR_RETRY_FIRST_MS", "60000"), ("PROCESSOR_KEY_RETRY_MAX_MS", "60000")];
    let running = world.start(&slow);
    world.eventually_at(0, 3).await;
    running.stop().await;
    // One has just one attempt left; all are due now.
    sqlx::raw_sql(
        "UPDATE blocked_keys SET next_attempt_at = now(), attempts = 9 WHERE state = 'retrying';
        DELETE FROM bad_orders WHERE id <> (SELECT min(id) + 1 FROM bad_orders);
        INSERT INTO dead_letter_requests (group_id, topic, partition, record_key, dry_run, requested_by)
        SELECT group_id, topic, partition, record_key, false, 'test' FROM blocked_keys WHERE state = 'parked'",
    )
    .execute(&world.database.pool)
    .await
    .expect("due");
    world.die_at(failpoint).await;
    let running = world.start(&slow);
    let answer = world.answer(1).await;
    world.eventually_processed(2).await;
    world.eventually_state(&orders[1].id.to_string(), Some("parked")).await;
    running.stop().await;
    assert_eq!(answer, (1, 0, None), "{failpoint}");
    let lives: [&[&str]; 3] = [&["Pending", "Processed"], &["Pending", "Failed"], &["Pending", "Failed", "Processed"]];
    for (order, life) in orders.iter().zip(lives) {
        assert_eq!(world.life(order).await, life, "{failpoint}");
    }
    assert_eq!(world.count("SELECT count(*) FROM blocked_keys").await, 1);
    assert_eq!(world.count("SELECT count(*) FROM dead_letters").await, 1);
    assert_eq!(world.count("SELECT count(*) FROM inbox").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_killed_between_any_two_steps_of_its_work_on_keys_loses_and_repeats_nothing() {
    for failpoint in [
        "keys-locked",
        "after-inbox",
        "after-handlers",
        "keys-applied",
        "keys-changed",
        "keys-before-commit",
        "keys-after-commit",
    ] {
        keys(failpoint).await;
    }
}
