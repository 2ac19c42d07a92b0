//! Naming transactions that stay open.

use std::time::Duration;

use relay::outbox::holders::{OpenTransaction, open_transactions, sees_other_users};
use relay::outbox::slots::replication_slots;
use shared::testing::{TestDatabase, eventually, unique};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::{Fixture, all_settled};

/// A session that says `name` of itself, with a transaction that has done this.
async fn hold(url: &str, name: &str, begin: &str, sql: &'static str) -> PgConnection {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("SET application_name = '{name}'; {begin}")))
        .execute(&mut connection)
        .await
        .unwrap();
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    connection
}

/// What the relay's role is shown of the transactions of sessions called `name`.
async fn seen(relay: &mut PgConnection, name: &str) -> Vec<OpenTransaction> {
    let open = open_transactions(relay, Duration::ZERO).await.unwrap();
    open.into_iter().filter(|open| open.application.as_deref() == Some(name)).collect()
}

const INSERT: &str = "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
    VALUES (gen_random_uuid(), 'thing', 'a', 1, 'thing.made', '{}')";

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_held_transaction_is_seen_by_the_relays_role() {
    let database = TestDatabase::create("every_kind_of_held").await;
    let other = TestDatabase::create("another_database").await;
    let mut relay = database.config("outrider_relay").connector().connect().await.unwrap();
    let name = unique("holder");
    for (url, begin, sql, holds) in [
        (&database.url, "BEGIN", INSERT, "outbox rows"),
        (&database.url, "BEGIN", "SELECT pg_current_xact_id()", "a transaction id"),
        (&database.url, "BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT 1", "a snapshot"),
        (&database.url, "BEGIN", "SELECT 1", "nothing yet"),
        (&other.url, "BEGIN", "SELECT pg_current_xact_id()", "a transaction id"),
    ] {
        let mut holder = hold(url, &name, begin, sql).await;
        let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut holder).await.unwrap();
        let found = seen(&mut relay, &name).await;
        assert_eq!(found.len(), 1, "{sql}");
        let found = &found[0];
        let place = url.rsplit('/').next();
        assert_eq!((found.pid, found.holds.as_str(), found.database.as_deref()), (Some(pid), holds, place));
        assert_eq!(found.state.as_deref(), Some("idle in transaction"));
        assert!(found.user.is_some() && found.age_secs >= 0.0);
        sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.unwrap();
        assert_eq!(seen(&mut relay, &name).await, []);
        holder.close().await.unwrap();
    }
    assert!(sees_other_users(&mut relay).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_is_seen() {
    let database = TestDatabase::create("a_prepared_transaction").await;
    let gid = unique("gid");
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("BEGIN; {INSERT}; PREPARE TRANSACTION '{gid}'")))
        .execute(&mut connection)
        .await
        .unwrap();
    let mut relay = database.config("outrider_relay").connector().connect().await.unwrap();
    let open = open_transactions(&mut relay, Duration::ZERO).await.unwrap();
    // Ended before anything is asserted: a prepared transaction would outlive the test.
    sqlx::raw_sql(AssertSqlSafe(format!("ROLLBACK PREPARED '{gid}'"))).execute(&mut connection).await.unwrap();
    let found: Vec<_> = open.iter().filter(|open| open.gid.as_deref() == Some(gid.as_str())).collect();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].pid, found[0].holds.as_str(), found[0].state.as_deref()),
        (None, "outbox rows", Some("prepared"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_sees_only_its_own_sessions_says_so() {
    let database = TestDatabase::create("a_role_that_sees_only").await;
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    assert!(sees_other_users(&mut connection).await.unwrap());
    let role = unique("blind");
    sqlx::raw_sql(AssertSqlSafe(format!("BEGIN; CREATE ROLE \"{role}\"; SET LOCAL ROLE \"{role}\"")))
        .execute(&mut connection)
        .await
        .unwrap();
    assert!(!sees_other_users(&mut connection).await.unwrap());
    sqlx::raw_sql("ROLLBACK").execute(&mut connection).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_names_a_held_transaction_and_says_when_it_is_gone() {
    let fixture = Fixture::new("the_relay_names_a_held").await;
    let name = unique("forgotten");
    let mut holder = hold(&fixture.database.url, &name, "BEGIN", INSERT).await;
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut holder).await.unwrap();
    let relay = fixture.process(&[("RELAY_HOLDER_AGE", "1s"), ("LOG_FORMAT", "json")]);
    let line = |level: &str| {
        let log = relay.log();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.find(|line| line["db.session.application"] == name.as_str() && line["level"] == level)
    };
    let warning = eventually("the holder is named", async || line("WARN")).await;
    assert_eq!(warning["db.session.pid"], pid);
    assert_eq!(warning["db.session.state"], "idle in transaction");
    assert_eq!(warning["db.transaction.holds"], "outbox rows");
    assert!(warning["db.transaction.age_secs"].as_i64().is_some_and(|age| age >= 1), "{warning}");
    // Others' events are not delayed by it.
    fixture.insert_all("other", 1, 3).await;
    fixture.published(3).await;
    assert_eq!(line("INFO"), None);

    sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.unwrap();
    eventually("it is gone", async || line("INFO")).await;
    all_settled(&fixture).await;
    relay.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replication_slot_that_nobody_reads_is_seen_and_named() {
    let fixture = Fixture::new("a_replication_slot").await;
    let slot = unique("slot").replace('-', "_");
    let pool = &fixture.database.pool;
    sqlx::query("SELECT pg_create_physical_replication_slot($1, true)").bind(&slot).execute(pool).await.unwrap();
    let config = fixture.database.config("outrider_relay");
    let mut role = config.connector().connect().await.unwrap();
    let found = replication_slots(&mut role).await.unwrap().into_iter().find(|found| found.name == slot);
    let relay = fixture.process(&[("RELAY_HOLDER_AGE", "1s"), ("LOG_FORMAT", "json")]);
    // Enough of the server's log to matter.
    for _ in 0..70 {
        sqlx::query("SELECT pg_logical_emit_message(false, 'test', repeat('x', 1048576))").execute(pool).await.unwrap();
    }
    let line = |level: &str| {
        let log = relay.log();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.find(|line| line["db.slot.name"] == slot.as_str() && line["level"] == level)
    };
    let warning = eventually("the slot is named", async || line("WARN")).await;
    sqlx::query("SELECT pg_drop_replication_slot($1)").bind(&slot).execute(pool).await.unwrap();
    eventually("it is gone", async || line("INFO")).await;
    let found = found.unwrap();
    assert_eq!((found.kind.as_str(), found.active, found.pid, found.xmin_age), ("physical", false, None, None));
    assert!(found.wal_bytes.is_some_and(|bytes| bytes >= 0), "{found:?}");
    assert!(warning["db.slot.wal_bytes"].as_i64().is_some_and(|bytes| bytes >= 64 * 1024 * 1024), "{warning}");
    relay.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_relays_one_names_a_held_transaction() {
    let fixture = Fixture::new("of_several_relays_one").await;
    let settings = [("RELAY_HOLDER_AGE", "1s"), ("LOG_FORMAT", "json")];
    let relays = [fixture.process(&settings), fixture.process(&settings)];
    eventually("both relays hold lanes", async || {
        let lanes = fixture.lanes_by_owner().await;
        (lanes.len() == 2 && lanes.values().all(|count| *count == 8)).then_some(())
    })
    .await;
    let name = unique("forgotten");
    let mut holder = hold(&fixture.database.url, &name, "BEGIN", INSERT).await;
    let named = || relays.iter().filter(|relay| relay.log().contains(&name)).count();
    eventually("the holder is named", async || (named() == 1).then_some(())).await;
    // Both look once a second. The end is told by whoever told of the beginning, two looks of the other one later.
    for _ in 0..2 {
        let next = unique("next");
        let mut other = hold(&fixture.database.url, &next, "BEGIN", INSERT).await;
        let seen = || relays.iter().any(|relay| relay.log().contains(&next));
        eventually("a later one is named", async || seen().then_some(())).await;
        sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    }
    assert_eq!(named(), 1);
    sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.unwrap();
    for relay in relays {
        relay.kill();
    }
}
