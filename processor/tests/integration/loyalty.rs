//! The example `loyalty`: its handler in the test kit, and its executable on real servers.

use std::process::{Command, Stdio};
use std::time::Duration;

use processor::testing::{TestEvent, TestKit, WaitingState};
use serde_json::json;
use shared::testing::{TestDatabase, eventually, eventually_within};
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use crate::support::{Process, Produced, World, event};

#[path = "../../examples/loyalty/points.rs"]
pub mod points;

use points::{ORDER_PROCESSED, Points, create_tables};

/// A kit, and members 1 to 3, of which the third is closed.
async fn kit(test: &str) -> (TestKit, PgPool) {
    let database = TestDatabase::create(&format!("processor_{test}")).await;
    create_tables(&database.pool).await.expect("tables");
    enroll(&database.pool, "(1, false), (2, false), (3, true)").await;
    let kit = TestKit::new(database.pool.clone()).await.expect("a kit");
    (kit.handler(ORDER_PROCESSED, Points), database.pool)
}

async fn enroll(pool: &PgPool, members: &str) {
    let sql = format!("INSERT INTO loyalty_members (user_id, closed) VALUES {members}");
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.expect("members");
}

/// The points of the users who have some, in the order of their ids.
async fn points_of(pool: &PgPool) -> Vec<(i64, i64)> {
    let sql = "SELECT user_id, points FROM loyalty_members WHERE points > 0 ORDER BY user_id";
    sqlx::query_as(sql).fetch_all(pool).await.expect("points")
}

fn processed(order: &str, version: i64, user_id: i64, quantity: i64) -> TestEvent {
    TestEvent::new(ORDER_PROCESSED, order, version).json(&json!({"user_id": user_id, "quantity": quantity}))
}

#[tokio::test]
async fn events_are_applied_once_however_often_they_are_delivered() {
    let (mut kit, pool) = kit("kit_once").await;
    let events = [processed("a", 2, 1, 1), processed("b", 2, 1, 2), processed("c", 2, 2, 3)];
    let applied = kit.apply(&events).await.expect("applied");
    assert_eq!((applied.applied, applied.repeated, applied.set_aside), (3, 0, 0));
    for _ in 0..2 {
        let again = kit.redeliver().await.expect("applied");
        assert_eq!((again.applied, again.set_aside), (0, 0), "{again:?}");
        assert!(again.repeated >= 3, "{again:?}");
    }
    let other = kit.apply(&[TestEvent::new("order.cancelled", "a", 3)]).await.expect("applied");
    assert_eq!(other.passed_over, 1);
    assert_eq!(points_of(&pool).await, [(1, 30), (2, 30)]);
}

#[tokio::test]
async fn nothing_is_left_of_a_batch_whose_commit_fails() {
    let (mut kit, pool) = kit("kit_commit").await;
    kit.apply(&[processed("a", 2, 1, 1)]).await.expect("applied");
    kit.apply_failing_at_commit(&[processed("b", 2, 1, 2), processed("x", 2, 3, 1)]).await.expect("it fails");
    assert_eq!(points_of(&pool).await, [(1, 10)]);
    assert_eq!(kit.waiting().await.expect("keys"), []);
    let again = kit.redeliver().await.expect("applied");
    assert_eq!((again.applied, again.repeated, again.set_aside), (1, 1, 1));
    assert_eq!(points_of(&pool).await, [(1, 30)]);
}

#[tokio::test]
async fn a_user_who_becomes_a_member_gets_their_points_in_the_order_of_the_events() {
    let (mut kit, pool) = kit("kit_retry").await;
    // A later event of the order waits behind it, though it could be applied.
    let events = [processed("a", 2, 7, 1), processed("a", 3, 1, 1), processed("b", 2, 1, 5)];
    let applied = kit.apply(&events).await.expect("applied");
    assert_eq!((applied.applied, applied.set_aside), (1, 2));
    let waiting = kit.waiting().await.expect("keys");
    assert_eq!(waiting.len(), 1);
    assert_eq!((waiting[0].key.as_str(), waiting[0].state, waiting[0].events), ("a", WaitingState::Retrying, 2));
    assert_eq!(waiting[0].reason, "the user is no member yet");
    let retried = kit.retry_now().await.expect("tried");
    assert_eq!((retried.applied, retried.unblocked), (0, 0));
    assert_eq!(kit.waiting().await.expect("keys")[0].attempts, 2);
    enroll(&pool, "(7, false)").await;
    let retried = kit.retry_now().await.expect("tried");
    assert_eq!((retried.applied, retried.unblocked), (2, 1));
    assert_eq!(points_of(&pool).await, [(1, 60), (7, 10)]);
    assert_eq!(kit.waiting().await.expect("keys"), []);
}

#[tokio::test]
async fn a_closed_membership_parks_its_order_until_a_replay() {
    let (kit, pool) = kit("kit_parked").await;
    let mut kit = kit.attempts_max(2);
    kit.apply(&[processed("a", 2, 3, 1), processed("b", 2, 9, 1), processed("c", 2, 1, 1)]).await.expect("applied");
    assert_eq!(kit.retry_now().await.expect("tried").applied, 0);
    let waiting = kit.waiting().await.expect("keys");
    let parked: Vec<(&str, WaitingState, &str)> =
        waiting.iter().map(|key| (key.key.as_str(), key.state, key.reason.as_str())).collect();
    let (closed, never) = ("the membership is closed", "the user is no member yet");
    // One refused for good, the other tried as often as it may.
    assert_eq!(parked, [("a", WaitingState::Parked, closed), ("b", WaitingState::Parked, never)]);
    sqlx::query("UPDATE loyalty_members SET closed = false").execute(&pool).await.expect("opened");
    assert_eq!(kit.retry_now().await.expect("tried").applied, 0, "only an operator has it tried");
    let replayed = kit.replay("a").await.expect("replayed");
    assert_eq!((replayed.applied, replayed.unblocked), (1, 1));
    assert_eq!(points_of(&pool).await, [(1, 10), (3, 10)]);
}

#[tokio::test]
async fn payloads_and_headers_that_cannot_be_read_wait_for_an_operator() {
    let (mut kit, pool) = kit("kit_broken").await;
    let events = [
        TestEvent::new(ORDER_PROCESSED, "a", 2).payload("no json"),
        TestEvent::new(ORDER_PROCESSED, "b", 2),
        processed("c", 2, 1, 1).header("id", "no uuid"),
        processed("d", 2, 1, 1).id(Uuid::now_v7()),
    ];
    let applied = kit.apply(&events).await.expect("applied");
    assert_eq!((applied.applied, applied.set_aside), (1, 3));
    let waiting = kit.waiting().await.expect("keys");
    assert!(waiting.iter().all(|key| key.state == WaitingState::Parked), "{waiting:?}");
    assert!(waiting[2].reason.contains("UUID"), "{waiting:?}");
    assert_eq!(points_of(&pool).await, [(1, 10)]);
}

/// Builds the example and starts it beside `world`.
fn start(world: &World) -> Process {
    // As this test was built, and so without building anything else anew: its folder is one above ours.
    let test = std::env::current_exe().expect("a path");
    let folder = test.parent().and_then(|deps| deps.parent()).expect("a target folder");
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--quiet", "--workspace", "--no-default-features", "--example", "loyalty"])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let built = cargo.env_remove("DATABASE_URL").status().expect("cargo runs");
    assert!(built.success(), "the example builds");
    let child = Command::new(folder.join("examples").join("loyalty"))
        .env_clear()
        .envs(world.variables())
        // It makes its own table.
        .env_remove("DB_ROLE")
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the example starts");
    Process::of(child)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_gives_points_beside_other_processors() {
    let world = World::new("loyalty", 2).await;
    let mut example = start(&world);
    let pool = &world.database.pool;
    eventually_within(Duration::from_mins(2), "the example has its table", async || {
        let sql = "SELECT to_regclass('loyalty_members') IS NOT NULL";
        sqlx::query_scalar::<_, bool>(sql).fetch_one(pool).await.expect("the database answers").then_some(())
    })
    .await;
    enroll(pool, "(1, false), (3, true)").await;
    let order = |key: &str, user_id: i64, partition| {
        let payload = json!({"user_id": user_id, "quantity": 2}).to_string();
        Produced { partition, ..event(ORDER_PROCESSED, Uuid::now_v7(), key, &payload) }
    };
    world.produce([order("10", 1, 0), order("11", 3, 0), order("12", 7, 1), order("13", 1, 1)]);
    eventually("the member has both points", async || (points_of(pool).await == [(1, 40)]).then_some(())).await;
    assert_eq!(world.count("SELECT count(*) FROM blocked_keys").await, 2);
    assert_eq!(world.count("SELECT count(*) FROM blocked_keys WHERE state = 'parked'").await, 1);
    // No operator is needed for who enrolls.
    enroll(pool, "(7, false)").await;
    eventually("the new member has theirs", async || (points_of(pool).await == [(1, 40), (7, 20)]).then_some(())).await;
    assert_eq!(world.count("SELECT count(*) FROM blocked_keys").await, 1);
    example.kill();
}
