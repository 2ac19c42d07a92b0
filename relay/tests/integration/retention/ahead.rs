//! Partitions are made ahead, and a missing one is an alarm.

use relay::metrics::Upkeep;
use relay::outbox::retention::room;
use relay::retention::keep_partitions_ahead;
use shared::shutdown::Shutdown;
use shared::testing::eventually;
use sqlx::{Connection, PgConnection};

use super::stage::Stage;
use crate::support::Fixture;

#[tokio::test(flavor = "multi_thread")]
async fn the_room_ahead_is_counted_in_ids_and_whole_partitions() {
    let stage = Stage::new("the_room_ahead").await;
    let ahead = async || {
        let room = stage.relay.with(room).await.unwrap();
        (room.partitions, room.ids_ahead, room.whole_ahead)
    };
    assert_eq!(ahead().await, (3, 10_000_000, 3));
    stage.fill(101).await;
    assert_eq!(ahead().await, (3, 9_999_899, 1));
    stage.fill(100).await;
    assert_eq!(ahead().await, (3, 9_999_799, 0));
    stage.run("SELECT outbox_make_partitions(2)").await;
    assert_eq!(ahead().await, (4, 14_999_799, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_partition_is_an_alarm_before_inserts_fail() {
    let fixture = Fixture::new("a_missing_partition_is").await;
    sqlx::raw_sql(
        "DROP TABLE outbox_p1, outbox_p5000001, outbox_p10000001;
        CREATE TABLE outbox_p1 PARTITION OF outbox FOR VALUES FROM (1) TO (1001);",
    )
    .execute(&fixture.database.pool)
    .await
    .unwrap();
    fixture.insert_all("a", 1, 1).await;
    // What keeps a partition from being attached, and no writer from writing.
    let mut holder = PgConnection::connect(&fixture.database.url).await.unwrap();
    let mut held = holder.begin().await.unwrap();
    sqlx::query("LOCK TABLE outbox IN SHARE UPDATE EXCLUSIVE MODE").execute(&mut *held).await.unwrap();
    let relay = fixture.process(&[("LOG_FORMAT", "json")]);
    let alarm = eventually("the alarm", async || {
        let log = relay.log();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.find(|line| line["level"] == "ERROR" && !line["outbox.ids_ahead"].is_null())
    })
    .await;
    assert_eq!(alarm["outbox.ids_ahead"], 999, "{alarm}");
    fixture.insert_all("a", 2, 3).await;
    fixture.published(3).await;
    relay.kill();

    // The gauges, of the same task within this process.
    let (gauges, shutdown) = (Upkeep::default(), Shutdown::new());
    let database = fixture.database.database();
    let task = keep_partitions_ahead(database, gauges.clone(), shutdown.clone());
    let task = tokio::spawn(task);
    let shows = async |partitions: i64, ids_ahead: i64| {
        eventually(&format!("{partitions} partitions, {ids_ahead} ids ahead"), async || {
            (gauges.partitions.get() == partitions && gauges.ids_ahead.get() == ids_ahead).then_some(())
        })
        .await;
    };
    shows(1, 997).await;
    held.rollback().await.unwrap();
    shows(3, 10_000_997).await;
    shutdown.request();
    task.await.unwrap();
}
