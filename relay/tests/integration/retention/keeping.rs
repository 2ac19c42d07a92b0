//! What keeps a partition from being dropped.

use std::time::Duration;

use relay::outbox::retention::Outcome;
use sqlx::Connection;

use super::stage::{INSERT, INSERT_5, Stage, attempt, dropper_waits, stays};

// What keeps a partition, each as a scene that ends in a try to drop it.

async fn the_sequence_has_reached_its_end(stage: &Stage) -> Option<Outcome> {
    stage.fill(100).await;
    stage.settle().await;
    stage.try_to_drop().await
}

async fn a_lane_is_behind(stage: &Stage) -> Option<Outcome> {
    stage.fill(250).await;
    stage.settle().await;
    stage
        .run("UPDATE relay_lanes SET position = (SELECT max(id) - 1 FROM outbox_p1 WHERE lane = 3) WHERE lane = 3")
        .await;
    stage.try_to_drop().await
}

async fn a_lane_was_never_read(stage: &Stage) -> Option<Outcome> {
    stage.fill(250).await;
    stage.settle().await;
    stage.run("UPDATE relay_lanes SET position = 0, seen = NULL WHERE lane = 3").await;
    stage.try_to_drop().await
}

/// Its transaction ran when the lane was read.
async fn a_late_row_of_a_running_transaction(stage: &Stage) -> Option<Outcome> {
    let mut writer = stage.connection().await;
    let mut late = writer.begin().await.unwrap();
    sqlx::query(INSERT).bind(1).execute(&mut *late).await.unwrap();
    stage.fill(250).await;
    stage.settle().await;
    late.commit().await.unwrap();
    stage.try_to_drop().await
}

/// Its transaction got its number after the lane was read.
async fn a_late_row_of_a_new_transaction(stage: &Stage) -> Option<Outcome> {
    stage.run("SELECT nextval('outbox_id_seq') FROM generate_series(1, 5)").await;
    stage.fill(250).await;
    stage.settle().await;
    stage.run(INSERT_5).await;
    stage.try_to_drop().await
}

async fn a_row_is_within_the_retention(stage: &Stage) -> Option<Outcome> {
    stage.fill(99).await;
    stage.run("UPDATE outbox SET occurred_at = now() - interval '25 hours'").await;
    stage.fill(151).await;
    stage.settle().await;
    stage.try_with(Duration::from_hours(24)).await
}

/// Its payload is in the partition only.
async fn a_row_is_parked_by_reference(stage: &Stage) -> Option<Outcome> {
    stage.fill(250).await;
    stage.settle().await;
    stage
        .run(
            "INSERT INTO relay_parked (id, lane, event_id, aggregate_type, aggregate_id, aggregate_version, type, payload_bytes, headers,
                occurred_at, reason)
            SELECT id, lane, event_id, aggregate_type, aggregate_id, aggregate_version, type, payload_bytes, headers, occurred_at, 'too large'
            FROM outbox WHERE id = 7",
        )
        .await;
    stage.try_to_drop().await
}

async fn a_cursor_is_of_another_cluster(stage: &Stage) -> Option<Outcome> {
    stage.fill(250).await;
    stage.settle().await;
    stage.run("UPDATE relay_lanes SET system_identifier = 1 WHERE lane = 7").await;
    stage.try_to_drop().await
}

async fn a_cursor_was_never_settled(stage: &Stage) -> Option<Outcome> {
    stage.fill(250).await;
    stage.settle().await;
    stage.run("UPDATE relay_lanes SET system_identifier = NULL WHERE lane = 7").await;
    stage.try_to_drop().await
}

/// A writer with a row in the partition commits just when it is to be dropped, after it was found to be free. Whoever has had a lock for
/// a while is not waited for, so this one comes between the two looks.
async fn a_writer_commits_at_the_last_moment(stage: &Stage) -> Option<Outcome> {
    stage.run("SELECT nextval('outbox_id_seq') FROM generate_series(1, 5)").await;
    stage.fill(250).await;
    stage.settle().await;
    let (mut reader, mut writer, mut watcher) =
        (stage.connection().await, stage.connection().await, stage.connection().await);
    loop {
        let mut earlier = reader.begin().await.unwrap();
        sqlx::query("SELECT FROM outbox LIMIT 1").execute(&mut *earlier).await.unwrap();
        let relay = stage.relay.clone();
        let drop = tokio::spawn(async move { attempt(&relay, Duration::ZERO).await });
        dropper_waits(&mut watcher, "PgSleep").await;
        let mut late = writer.begin().await.unwrap();
        sqlx::query(INSERT_5).execute(&mut *late).await.unwrap();
        earlier.rollback().await.unwrap();
        dropper_waits(&mut watcher, "relation").await;
        late.commit().await.unwrap();
        match drop.await.unwrap().map(|attempt| attempt.outcome) {
            // The machine was too slow for 150 ms. It is a late row now, so make it one that is published.
            Some(Outcome::Busy) => {
                stage.run("DELETE FROM outbox WHERE aggregate_id = 'late'").await;
                stage.settle().await;
            }
            outcome => return outcome,
        }
    }
}

/// The scene, as an outcome.
macro_rules! scene {
    ($scene:ident) => {{
        let stage = Stage::new(stringify!($scene)).await;
        let outcome = $scene(&stage).await;
        (stage, outcome)
    }};
}

/// The scene, in a database whose function has forgotten something: it must end in a dropped partition, else it proves nothing.
macro_rules! proves {
    ($scene:ident, $function:literal, $what:literal, $instead:literal) => {{
        let stage = Stage::new(stringify!($scene)).await;
        stage.forget($function, $what, $instead).await;
        assert_eq!($scene(&stage).await, Some(Outcome::Dropped), "{} without '{}'", stringify!($scene), $what);
    }};
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_stays_until_the_sequence_has_left_it() {
    let (stage, outcome) = scene!(the_sequence_has_reached_its_end);
    assert_eq!(outcome, None);
    stage.fill(1).await;
    assert_eq!(stage.try_to_drop().await, Some(Outcome::Dropped));
    proves!(the_sequence_has_reached_its_end, "outbox_drop_partitions", "p.past_id <= last_id", "true");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_stays_while_a_lane_is_behind() {
    for (stage, outcome) in [scene!(a_lane_is_behind), scene!(a_lane_was_never_read)] {
        assert_eq!(outcome, Some(stays("unpublished")));
        stage.settle().await;
        assert_eq!(stage.try_to_drop().await, Some(Outcome::Dropped));
    }
    proves!(a_lane_is_behind, "outbox_keep_reason", "o.id > l.position", "false");
    proves!(a_lane_was_never_read, "outbox_keep_reason", "o.id > l.position", "false");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_stays_while_a_late_row_of_it_is_unread() {
    for (stage, outcome) in [scene!(a_late_row_of_a_running_transaction), scene!(a_late_row_of_a_new_transaction)] {
        assert_eq!(outcome, Some(stays("late")));
        stage.settle().await;
        assert_eq!(stage.try_to_drop().await, Some(Outcome::Dropped));
    }
    proves!(a_late_row_of_a_running_transaction, "outbox_keep_reason", "b.txid = ANY ($2)", "false");
    proves!(a_late_row_of_a_new_transaction, "outbox_keep_reason", "a.txid >= $1", "false");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_stays_as_long_as_the_retention_says() {
    let (stage, outcome) = scene!(a_row_is_within_the_retention);
    assert_eq!(outcome, Some(stays("recent")));
    stage.run("UPDATE outbox SET occurred_at = now() - interval '25 hours'; ").await;
    stage.settle().await;
    assert_eq!(stage.try_with(Duration::from_hours(24)).await, Some(Outcome::Dropped));
    proves!(a_row_is_within_the_retention, "outbox_keep_reason", "newest.occurred_at > now() - $1", "false");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_stays_while_a_row_of_it_is_parked_by_reference() {
    let (stage, outcome) = scene!(a_row_is_parked_by_reference);
    assert_eq!(outcome, Some(stays("parked")));
    // Discarded, or parked whole in another partition, it keeps nothing.
    stage.run("UPDATE relay_parked SET id = 150").await;
    assert_eq!(stage.try_to_drop().await, Some(Outcome::Dropped));
    proves!(a_row_is_parked_by_reference, "outbox_keep_reason", "p.payload IS NULL", "false");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_says_it_is_of_the_future_does_not_keep_its_partition_until_then() {
    for time in ["9999-12-31", "infinity"] {
        let stage = Stage::new("a_row_that_says_it_is").await;
        stage.fill(99).await;
        stage.run("UPDATE outbox SET occurred_at = now() - interval '25 hours'").await;
        stage.run("ALTER TABLE outbox DROP CONSTRAINT outbox_bounds").await;
        let sql = "UPDATE outbox SET occurred_at = $1::timestamptz WHERE id > 90";
        sqlx::query(sql).bind(time).execute(&stage.database.pool).await.unwrap();
        stage.fill(151).await;
        stage.settle().await;
        stage.run("DELETE FROM outbox WHERE id = 100").await;
        assert_eq!(stage.try_with(Duration::from_hours(24)).await, Some(Outcome::Dropped), "{time}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_stays_while_cursors_speak_of_another_cluster() {
    for (stage, outcome) in [scene!(a_cursor_is_of_another_cluster), scene!(a_cursor_was_never_settled)] {
        assert_eq!(outcome, Some(stays("foreign")));
        stage.settle().await;
        assert_eq!(stage.try_to_drop().await, Some(Outcome::Dropped));
    }
    proves!(a_cursor_is_of_another_cluster, "outbox_keep_reason", ") < 16", ") < 0");
    proves!(a_cursor_was_never_settled, "outbox_keep_reason", ") < 16", ") < 0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_committed_at_the_last_moment_is_not_dropped() {
    let (_, outcome) = scene!(a_writer_commits_at_the_last_moment);
    assert_eq!(outcome, Some(stays("late")));
    proves!(
        a_writer_commits_at_the_last_moment,
        "outbox_drop_partitions",
        "EXECUTE format('LOCK TABLE ONLY %s IN SHARE MODE', target.relation);",
        ""
    );
}
