//! Arguments of partition and retention functions.

use sqlx::AssertSqlSafe;

use crate::support::Fixture;

/// Calls that are refused, each with the role that may call it and what the message says.
const ABSURD: [(&str, &str, &str); 17] = [
    ("outrider_relay", "outbox_make_partitions(1000)", "ahead must be from 1 to 10, and not 1000"),
    ("outrider_relay", "outbox_make_partitions(11)", "ahead must be from 1 to 10, and not 11"),
    ("outrider_relay", "outbox_make_partitions(0)", "ahead must be from 1 to 10, and not 0"),
    ("outrider_relay", "outbox_make_partitions(-1)", "ahead must be from 1 to 10, and not -1"),
    ("outrider_relay", "outbox_make_partitions(NULL)", "ahead must be from 1 to 10, and not null"),
    ("outrider_relay", "outbox_drop_partitions(NULL)", "retention must be from 0 to 100 years, and not null"),
    ("outrider_relay", "outbox_drop_partitions('-1s')", "retention must be from 0 to 100 years, and not -00:00:01"),
    ("outrider_relay", "outbox_drop_partitions('101 years')", "retention must be from 0 to 100 years"),
    ("outrider_relay", "outbox_drop_partitions('36525 days 1 second')", "retention must be from 0 to 100 years"),
    ("outrider_relay", "outbox_drop_partitions('178000000 years')", "retention must be from 0 to 100 years"),
    ("outrider_api", "idempotency_make_partition(NULL)", "days_ahead must be from 0 to 30, and not null"),
    ("outrider_api", "idempotency_make_partition(-1)", "days_ahead must be from 0 to 30, and not -1"),
    ("outrider_api", "idempotency_make_partition(31)", "days_ahead must be from 0 to 30, and not 31"),
    ("outrider_processor", "inbox_clean(NULL)", "rows_max must be from 1 to 1000000, and not null"),
    ("outrider_processor", "inbox_clean(0)", "rows_max must be from 1 to 1000000, and not 0"),
    ("outrider_processor", "inbox_clean(-5)", "rows_max must be from 1 to 1000000, and not -5"),
    ("outrider_processor", "inbox_clean(1000001)", "rows_max must be from 1 to 1000000, and not 1000001"),
];

/// Calls just inside of the bounds.
const SOUND: [(&str, &str); 7] = [
    ("outrider_relay", "outbox_make_partitions(1)"),
    ("outrider_relay", "outbox_make_partitions(10)"),
    ("outrider_relay", "outbox_drop_partitions('0s')"),
    ("outrider_relay", "outbox_drop_partitions('36525 days')"),
    ("outrider_api", "idempotency_make_partition(0)"),
    ("outrider_api", "idempotency_make_partition(30)"),
    ("outrider_processor", "inbox_clean(1000000)"),
];

#[tokio::test(flavor = "multi_thread")]
async fn partition_functions_refuse_absurd_arguments_and_say_what_is_allowed() {
    let fixture = Fixture::new("partition_functions_refuse").await;
    let mut connection = fixture.database.pool.acquire().await.unwrap();
    connection.close_on_drop();
    let tables = "SELECT count(*) FROM pg_class WHERE relkind = 'r'";
    let before: i64 = sqlx::query_scalar(tables).fetch_one(&mut *connection).await.unwrap();
    for (role, call, message) in ABSURD {
        let sql = format!("SET ROLE {role}; SELECT {call}");
        let error = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await.expect_err(call);
        let error = error.as_database_error().unwrap();
        assert_eq!(error.code().as_deref(), Some("22023"), "{call}: {error}");
        let function = call.split('(').next().unwrap();
        assert!(error.message().starts_with(&format!("{function}: {message}")), "{call}: {error}");
    }
    let after: i64 = sqlx::query_scalar(tables).fetch_one(&mut *connection).await.unwrap();
    assert_eq!(after, before, "no partition was made or dropped");
    for (role, call) in SOUND {
        let sql = format!("SET ROLE {role}; SELECT {call}");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await.expect(call);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_cannot_ask_for_a_retention_that_deletes_all_of_its_inbox() {
    let fixture = Fixture::new("a_group_cannot_ask_for").await;
    let register = async |retention: &str| {
        let sql = format!("INSERT INTO inbox_groups (group_id, retention) VALUES ('{retention}', '{retention}')");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&fixture.database.pool).await
    };
    for absurd in ["-1s", "36525 days 1s", "101 years", "178000000 years"] {
        let error = register(absurd).await.expect_err(absurd);
        let constraint = error.as_database_error().and_then(|error| error.constraint());
        assert_eq!(constraint, Some("inbox_groups_retention_check"), "{absurd}");
    }
    for sound in ["0s", "7 days", "36525 days", "100 years"] {
        register(sound).await.expect(sound);
    }
}
