//! What a batch asks of the inbox and of the blocked keys costs the same however much is in them.

use std::time::Duration;

use processor::testing::{TestEvent, TestKit};
use serde_json::json;
use shared::testing::{TestDatabase, eventually_within};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};

use crate::loyalty::points::{ORDER_PROCESSED, Points, create_tables};

const APPLICATION: &str = "lookups";

/// Rows that the planner has never heard of.
const CROWD: i64 = 50_000;

/// The order of a user who is a member, and so is applied, or of one who is not, and so is tried again later.
fn event(order: &str, version: i64, user_id: i64) -> TestEvent {
    TestEvent::new(ORDER_PROCESSED, order, version).json(&json!({"user_id": user_id, "quantity": 1}))
}

/// Index entries that were read since the server started, of all indexes of these tables. Known of connections that have ended.
async fn entries_read(pool: &PgPool) -> i64 {
    let is_closed = async || {
        let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1";
        let open: i64 = sqlx::query_scalar(count).bind(APPLICATION).fetch_one(pool).await.expect("an answer");
        (open == 0).then_some(())
    };
    eventually_within(Duration::from_secs(20), "the connections have ended", is_closed).await;
    let read = "SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE relname LIKE 'inbox%' OR relname IN ('blocked_keys', 'dead_letters')";
    sqlx::query_scalar(read).fetch_one(pool).await.expect("an answer")
}

/// A plan is made once a connection, here while the tables are empty, when any plan is a good one. So a statement must leave the planner no
/// choice that reads a whole table or index.
#[tokio::test]
async fn a_batch_reads_no_more_of_what_was_taken_in_before_than_it_asks_for() {
    let database = TestDatabase::create("processor_lookups").await;
    let options: PgConnectOptions = database.url.parse().expect("a URL");
    // As the processor's own connections.
    let options = options.application_name(APPLICATION).options([("enable_seqscan", "off")]);
    let pool = PgPoolOptions::new().max_connections(1).connect_with(options).await.expect("a connection");
    create_tables(&database.pool).await.expect("tables");
    let mut kit = TestKit::new(pool.clone()).await.expect("a kit").handler(ORDER_PROCESSED, Points);
    sqlx::raw_sql("INSERT INTO loyalty_members (user_id, closed) VALUES (1, false)")
        .execute(&database.pool)
        .await
        .expect("a member");
    // From the sixth time on Postgres keeps the plan, for any parameters.
    for n in 0..8 {
        kit.apply(&[event(&format!("a{n}"), 1, 1), event(&format!("b{n}"), 1, 7), event("b", 2 + n, 1)])
            .await
            .expect("applied");
        kit.redeliver().await.expect("applied");
        kit.replay("b0").await.expect("tried");
    }

    let crowd = format!(
        "INSERT INTO inbox (group_id, event_id, occurred_on)
        SELECT group_id, gen_random_uuid(), occurred_on FROM (SELECT * FROM inbox LIMIT 1) one, generate_series(1, {CROWD});
        INSERT INTO blocked_keys (group_id, topic, record_key, partition, state, reason, fingerprint, attempts)
        SELECT group_id, topic, convert_to('crowd ' || n, 'UTF8'), partition, 'parked', reason, fingerprint, 1
        FROM (SELECT * FROM blocked_keys LIMIT 1) one, generate_series(1, {CROWD}) n;
        INSERT INTO dead_letters (group_id, topic, partition, record_offset, record_key, aggregate_version, headers)
        SELECT group_id, topic, partition, n, convert_to('crowd 1', 'UTF8'), n, '[]'
        FROM (SELECT * FROM blocked_keys LIMIT 1) one, generate_series(1, {CROWD}) n;
        ANALYZE dead_letters"
    );
    sqlx::raw_sql(AssertSqlSafe(crowd)).execute(&database.pool).await.expect("a crowd");
    kit.redeliver().await.expect("applied");
    // Several that fail: for one id alone, whatever the planner does is a look-up.
    let failing = ["d", "e", "f", "g"].map(|order| event(order, 1, 7));
    let applied = kit.apply(&[&failing[..], &[event("c", 1, 1), event("b0", 2, 1)]].concat()).await.expect("applied");
    assert_eq!((applied.applied, applied.set_aside), (1, 5));
    kit.replay("b0").await.expect("tried");
    sqlx::raw_sql("INSERT INTO loyalty_members (user_id, closed) VALUES (7, false)")
        .execute(&database.pool)
        .await
        .expect("a member");
    for key in ["b0", "d"] {
        assert_eq!(kit.replay(key).await.expect("tried").unblocked, 1);
    }
    drop(kit);
    pool.close().await;
    let read = entries_read(&database.pool).await;
    assert!(read < CROWD / 50, "{read} index entries read");
}
