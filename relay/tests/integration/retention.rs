//! Which partitions of the outbox are dropped, and what that costs its writers.

use std::time::{Duration, Instant};

use relay::metrics::upkeep::Upkeep;
use relay::outbox::retention::{Attempt, Outcome, drop_oldest_partition, room};
use relay::retention::keep_partitions_ahead;
use shared::shutdown::Shutdown;
use shared::testing::{PATIENCE, TestDatabase, eventually};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

use crate::support::{Fixture, all_settled, assert_complete_and_in_order};

/// A database whose outbox has partitions for ids 1 to 100, 101 to 200, and 201 to ten million, and lanes that are settled by hand.
struct Stage {
    database: TestDatabase,
    /// Connections as the relay has them.
    relay: PgPool,
}

impl Stage {
    async fn new(test: &str) -> Self {
        let database = TestDatabase::create(test).await;
        small_partitions(&database.pool).await;
        let options = database.config("outrider_relay").connect_options().clone();
        let relay = PgPoolOptions::new().connect_with(options).await.expect("the relay may connect");
        Self { database, relay }
    }

    async fn run(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&self.database.pool).await.expect("the owner may");
    }

    /// Inserts `count` rows of many keys, so that every lane has some.
    async fn fill(&self, count: i32) {
        sqlx::query(INSERT).bind(count).execute(&self.database.pool).await.expect("the rows are inserted");
    }

    /// All that is committed is published.
    async fn settle(&self) {
        self.run(
            "UPDATE relay_lanes SET position = (SELECT max(id) FROM outbox), seen = pg_current_snapshot(), settled_at = now(),
                system_identifier = (SELECT system_identifier FROM pg_control_system())",
        )
        .await;
    }

    async fn connection(&self) -> PgConnection {
        PgConnection::connect(&self.database.url).await.expect("a connection")
    }

    /// A try to drop with a retention of nothing.
    async fn try_to_drop(&self) -> Option<Outcome> {
        self.try_with(Duration::ZERO).await
    }

    async fn try_with(&self, retention: Duration) -> Option<Outcome> {
        attempt(&self.relay, retention).await.map(|attempt| attempt.outcome)
    }

    async fn partitions(&self) -> Vec<String> {
        sqlx::query_scalar("SELECT name::text FROM outbox_partitions ORDER BY first_id")
            .fetch_all(&self.database.pool)
            .await
            .expect("the partitions can be read")
    }

    /// Takes something out of one of the functions, as if somebody had forgotten it.
    async fn forget(&self, function: &str, what: &str, instead: &str) {
        let sql: String = sqlx::query_scalar("SELECT pg_get_functiondef($1::regproc)")
            .bind(function)
            .fetch_one(&self.database.pool)
            .await
            .expect("there is such a function");
        assert!(sql.contains(what), "{function} has no '{what}'");
        let sql = AssertSqlSafe(sql.replace(what, instead));
        sqlx::raw_sql(sql).execute(&self.database.pool).await.expect("the function is replaced");
    }
}

const INSERT: &str = "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
    SELECT gen_random_uuid(), 'thing', i::text, 1, 'thing.made', '{}' FROM generate_series(1, $1) i";

/// A row with an id that was drawn long ago.
const INSERT_5: &str =
    "INSERT INTO outbox (id, event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
    OVERRIDING SYSTEM VALUE VALUES (5, gen_random_uuid(), 'thing', 'late', 1, 'thing.made', '{}')";

async fn small_partitions(pool: &PgPool) {
    sqlx::raw_sql(
        "DROP TABLE outbox_p1, outbox_p5000001, outbox_p10000001;
        CREATE TABLE outbox_p1 PARTITION OF outbox FOR VALUES FROM (1) TO (101);
        CREATE TABLE outbox_p101 PARTITION OF outbox FOR VALUES FROM (101) TO (201);
        CREATE TABLE outbox_p201 PARTITION OF outbox FOR VALUES FROM (201) TO (10000001);",
    )
    .execute(pool)
    .await
    .expect("the owner may");
}

async fn attempt(pool: &PgPool, retention: Duration) -> Option<Attempt> {
    let attempt = tokio::time::timeout(PATIENCE, drop_oldest_partition(pool, retention)).await;
    attempt.expect("a try ends soon").expect("a try ends well")
}

fn stays(reason: &str) -> Outcome {
    Outcome::Stays(reason.to_owned())
}

/// Waits until the session that tries to drop waits for this: `PgSleep` between its two looks, `relation` for a lock.
async fn dropper_waits(connection: &mut PgConnection, wait_event: &str) {
    let start = Instant::now();
    loop {
        let waits: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = $1
                AND query LIKE '-- drop_oldest_partition%')",
        )
        .bind(wait_event)
        .fetch_one(&mut *connection)
        .await
        .expect("the sessions can be seen");
        if waits {
            return;
        }
        // No pause: a lock is waited for 150 ms only.
        assert!(start.elapsed() < PATIENCE, "nobody waits for {wait_event}");
    }
}

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

async fn a_cursor_is_of_another_cluster(stage: &Stage) -> Option<Outcome> {
    stage.fill(250).await;
    stage.settle().await;
    stage.run("UPDATE relay_lanes SET system_identifier = 1 WHERE lane = 7").await;
    stage.try_to_drop().await
}

async fn a_cursor_was_never_settled_since_a_restore(stage: &Stage) -> Option<Outcome> {
    stage.fill(250).await;
    stage.settle().await;
    stage.run("SELECT relay_reanchor()").await;
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
async fn a_partition_stays_while_cursors_speak_of_another_cluster() {
    for (stage, outcome) in [scene!(a_cursor_is_of_another_cluster), scene!(a_cursor_was_never_settled_since_a_restore)]
    {
        assert_eq!(outcome, Some(stays("foreign")));
        stage.settle().await;
        assert_eq!(stage.try_to_drop().await, Some(Outcome::Dropped));
    }
    proves!(a_cursor_is_of_another_cluster, "outbox_keep_reason", ") < 16", ") < 0");
    proves!(a_cursor_was_never_settled_since_a_restore, "outbox_keep_reason", ") < 16", ") < 0");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_would_not_see_late_commits_may_not_drop() {
    let stage = Stage::new("a_transaction_that_would_not_see").await;
    let mut connection = stage.connection().await;
    let mut transaction = connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    let error = sqlx::query("SELECT outbox_drop_partitions('0s')").execute(&mut *transaction).await.unwrap_err();
    assert!(error.to_string().contains("READ COMMITTED"), "{error}");
}

/// Inserts one row after the other until told to stop; returns how many, and the longest time that one took.
async fn write_until(url: String, mut stop: tokio::sync::oneshot::Receiver<()>) -> (u32, Duration) {
    let mut connection = PgConnection::connect(&url).await.expect("a connection");
    let (mut count, mut longest) = (0, Duration::ZERO);
    while stop.try_recv().is_err() {
        let start = Instant::now();
        sqlx::query(INSERT).bind(1).execute(&mut connection).await.expect("a row is inserted");
        longest = longest.max(start.elapsed());
        count += 1;
    }
    (count, longest)
}

/// More than a writer may wait, less than a holder would make it wait; the difference is for a busy machine.
const LONGEST_INSERT: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_held_open_is_named_and_not_waited_for() {
    let stage = Stage::new("a_transaction_held_open").await;
    stage.fill(250).await;
    stage.settle().await;
    let mut holder = stage.connection().await;
    let mut held = holder.begin().await.unwrap();
    sqlx::query("SET LOCAL application_name = 'forgotten'").execute(&mut *held).await.unwrap();
    sqlx::query("SELECT FROM outbox LIMIT 1").execute(&mut *held).await.unwrap();
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *held).await.unwrap();

    let (stop, stopped) = tokio::sync::oneshot::channel();
    let writer = tokio::spawn(write_until(stage.database.url.clone(), stopped));
    for _ in 0..5 {
        match stage.try_to_drop().await {
            Some(Outcome::Held(culprit)) => {
                assert_eq!((culprit.pid, culprit.application.as_deref()), (Some(pid), Some("forgotten")));
            }
            outcome => panic!("{outcome:?}"),
        }
    }
    stop.send(()).unwrap();
    let (count, longest) = writer.await.unwrap();
    assert!(count > 0 && longest < LONGEST_INSERT, "{longest:?}");
    held.rollback().await.unwrap();
    assert_eq!(stage.try_to_drop().await, Some(Outcome::Dropped));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_comes_between_holds_writers_up_no_longer_than_the_lock_timeout() {
    let stage = Stage::new("a_transaction_that_comes").await;
    stage.fill(250).await;
    stage.settle().await;
    let (mut one, mut two, mut watcher) =
        (stage.connection().await, stage.connection().await, stage.connection().await);
    let mut earlier = one.begin().await.unwrap();
    sqlx::query("SELECT FROM outbox LIMIT 1").execute(&mut *earlier).await.unwrap();
    let relay = stage.relay.clone();
    let drop = tokio::spawn(async move { attempt(&relay, Duration::ZERO).await });
    dropper_waits(&mut watcher, "PgSleep").await;
    let mut held = two.begin().await.unwrap();
    sqlx::query("SELECT FROM outbox LIMIT 1").execute(&mut *held).await.unwrap();
    earlier.rollback().await.unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let writer = tokio::spawn(write_until(stage.database.url.clone(), stopped));
    assert_eq!(drop.await.unwrap().map(|attempt| attempt.outcome), Some(Outcome::Busy));
    stop.send(()).unwrap();
    let (count, longest) = writer.await.unwrap();
    assert!(count > 0 && longest < LONGEST_INSERT, "{longest:?}");
    assert_eq!(stage.partitions().await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_room_ahead_is_counted_in_ids_and_whole_partitions() {
    let stage = Stage::new("the_room_ahead").await;
    let ahead = async || {
        let room = room(&stage.relay).await.unwrap();
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
        lines.find(|line| line["level"] == "ERROR")
    })
    .await;
    assert_eq!(alarm["outbox.ids_ahead"], 999, "{alarm}");
    fixture.insert_all("a", 2, 3).await;
    fixture.published(3).await;
    relay.kill();

    // The gauges, of the same task within this process.
    let (gauges, shutdown) = (Upkeep::default(), Shutdown::new());
    let task = keep_partitions_ahead(fixture.database.pool.clone(), gauges.clone(), shutdown.clone());
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
