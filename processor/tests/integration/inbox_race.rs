//! A batch that is on its way into the default partition of the inbox when its day gets one of its own.

use shared::testing::eventually;
use sqlx::AssertSqlSafe;
use uuid::{NoContext, Timestamp, Uuid};

use crate::support::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_a_new_partition_of_its_day_refuses_is_tried_again_and_applied_once() {
    let world = World::new("late_day", 1).await;
    let running = world.start(&[]);
    world.created_orders(1).await;
    world.eventually_processed(1).await;

    // Beyond the days that are made ahead.
    let secs: i64 =
        world.count("SELECT EXTRACT(EPOCH FROM date_trunc('day', now()) + interval '9 days 1 hour')::bigint").await;
    let event_id = Uuid::new_v7(Timestamp::from_unix(NoContext, secs.cast_unsigned(), 0));
    let order = world.orders(1).await.remove(0);
    let mut maker = world.database.pool.begin().await.expect("a transaction");
    let sql = format!(
        "LOCK TABLE ONLY inbox_default IN ACCESS EXCLUSIVE MODE;
        CREATE TABLE inbox_late (LIKE inbox INCLUDING DEFAULTS INCLUDING CONSTRAINTS);
        GRANT ALL ON inbox_late TO outrider_processor;
        DO $$ DECLARE day date := (to_timestamp({secs}) AT TIME ZONE 'UTC')::date; BEGIN
            ASSERT NOT EXISTS (SELECT FROM inbox_partitions WHERE occurred_on = day);
        END $$"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *maker).await.expect("locked");
    world.produce([order.event(event_id, 0)]);
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
        AND query LIKE '-- take_in%'";
    eventually("the batch waits", async || (world.count(waits).await == 1).then_some(())).await;
    let sql = format!(
        "DO $$ DECLARE day date := (to_timestamp({secs}) AT TIME ZONE 'UTC')::date; BEGIN
            EXECUTE format('ALTER TABLE inbox ATTACH PARTITION inbox_late FOR VALUES FROM (%L) TO (%L)', day, day + 1);
        END $$"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *maker).await.expect("attached");
    maker.commit().await.expect("committed");
    world.eventually_processed(2).await;
    assert!(running.metrics.retries() >= 1, "it was refused");
    assert_eq!(world.count("SELECT count(*) FROM inbox_late").await, 1);
    running.stop().await;
    world.assert_processed_once(2).await;
    assert_eq!(world.count("SELECT count(*) FROM dead_letters").await, 0);
}
