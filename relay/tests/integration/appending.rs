//! `outbox_append` and the view `outbox_debezium`, as writers use them: under the role `outrider_writer`.

use std::collections::HashMap;

use shared::testing::PATIENCE;
use sqlx::pool::PoolConnection;
use sqlx::{Acquire, PgConnection, Postgres};
use uuid::Uuid;

use crate::support::{Fixture, all_settled, assert_complete_and_in_order, refused};

/// A connection that may do what a writer may that was granted the fixture's type and "a".
async fn writer(fixture: &Fixture) -> PoolConnection<Postgres> {
    if sqlx::query("SELECT FROM outbox_producers").fetch_all(&fixture.database.pool).await.unwrap().is_empty() {
        fixture.grant("outrider_writer", &fixture.aggregate_type).await;
        fixture.grant("outrider_writer", "a").await;
    }
    let mut connection = fixture.database.pool.acquire().await.unwrap();
    connection.close_on_drop();
    sqlx::query("SET ROLE outrider_writer").execute(&mut *connection).await.unwrap();
    connection
}

/// Appends an event of `key`; its version and outbox id.
async fn append(connection: &mut PgConnection, fixture: &Fixture, key: &str) -> (i64, i64) {
    sqlx::query_as("SELECT aggregate_version, id FROM outbox_append($1, $2, 'thing.changed', '{\"a\":  1}')")
        .bind(&fixture.aggregate_type)
        .bind(key)
        .fetch_one(connection)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_appended_by_a_call_is_published_as_it_was_given() {
    let fixture = Fixture::new("an_event_appended_by_a_call").await;
    let mut connection = writer(&fixture).await;
    let given = Uuid::now_v7();
    let sql = "SELECT event_id, aggregate_version FROM outbox_append(
        aggregate_type => $1, aggregate_id => 'k', type => 'thing.made', payload => '{ \"b\": 1,\"a\":2 }',
        headers => '{\"traceparent\": \"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\"}', event_id => $2)";
    let mut written = Vec::new();
    for event_id in [None, Some(given)] {
        let row: (Uuid, i64) =
            sqlx::query_as(sql).bind(&fixture.aggregate_type).bind(event_id).fetch_one(&mut *connection).await.unwrap();
        written.push(row);
    }
    assert_eq!((written[0].1, written[1].1, written[1].0), (1, 2, given));
    let drawn = written[0].0;
    assert_eq!((drawn.get_version_num(), drawn.get_variant()), (7, uuid::Variant::RFC4122));
    let age = given.get_timestamp().unwrap().to_unix().0.abs_diff(drawn.get_timestamp().unwrap().to_unix().0);
    assert!(age < PATIENCE.as_secs(), "the time in the id is the present");
    let relay = fixture.relay(&[]);
    let records = fixture.published(2).await;
    assert_complete_and_in_order(&records, |_| 2, 1);
    assert_eq!(records[0].event_id, drawn.to_string());
    assert_eq!(records[0].payload, "{ \"b\": 1,\"a\":2 }", "byte for byte");
    assert_eq!(records[0].headers["traceparent"], "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert_eq!(records[0].headers["ce_type"], "thing.made");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_arguments_are_named() {
    let fixture = Fixture::new("bad_arguments_are_named").await;
    let mut connection = writer(&fixture).await;
    for (arguments, problem) in [
        ("NULL, 'k', 't', '1'", "aggregate_type must not be null or empty"),
        ("'', 'k', 't', '1'", "aggregate_type must not be null or empty"),
        ("'a', NULL, 't', '1'", "aggregate_id must not be null or empty"),
        ("'a', 'k', '', '1'", "type must not be null or empty"),
        ("'a', 'k', 't', NULL", "payload must not be null or empty"),
        ("'a', 'k', 't', '1', '[]'", "headers must be a JSON object"),
        ("'a', 'k', 't', '1', aggregate_version => 0", "aggregate_version must be 1 or more"),
    ] {
        let (state, message) = refused(&mut connection, &format!("SELECT outbox_append({arguments})")).await;
        assert_eq!(state, "22023", "{message}");
        assert!(message.contains(problem), "{arguments}: {message}");
    }
    let (state, _) = refused(&mut connection, "SELECT outbox_append('a', 'k', 't', 'no json')").await;
    assert_eq!(state, "22P02");
    // A null where there is a default means the default.
    sqlx::query("SELECT outbox_append('a', 'k', 't', '1', NULL, NULL, NULL)").execute(&mut *connection).await.unwrap();
    // What a writer may is to append, and no more.
    for sql in ["SELECT * FROM outbox", "INSERT INTO outbox_versions VALUES ('a', 'x', 9)", "SELECT * FROM relay_lanes"]
    {
        assert_eq!(refused(&mut connection, sql).await.0, "42501", "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_that_are_given_and_versions_that_are_drawn_follow_each_other() {
    let fixture = Fixture::new("versions_that_are_given").await;
    let mut connection = writer(&fixture).await;
    let mut versions = Vec::new();
    for given in [Some(1), None, None, Some(4), Some(5), None] {
        let version: i64 = sqlx::query_scalar(
            "SELECT aggregate_version FROM outbox_append('a', 'k', 't', '1', aggregate_version => $1)",
        )
        .bind(given)
        .fetch_one(&mut *connection)
        .await
        .unwrap();
        versions.push(version);
    }
    assert_eq!(versions, [1, 2, 3, 4, 5, 6]);
    for stale in [6, 3] {
        let sql = format!("SELECT outbox_append('a', 'k', 't', '1', aggregate_version => {stale})");
        let (state, message) = refused(&mut connection, &sql).await;
        assert_eq!(state, "22023");
        assert_eq!(message, format!("outbox_append: version {stale} was given, but a k has had version 6 already"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_that_are_given_never_leap() {
    let fixture = Fixture::new("versions_that_are_given_never_leap").await;
    let mut connection = writer(&fixture).await;
    for (last, leaps) in [(0, [2, i64::MAX]), (1, [3, i64::MAX])] {
        for leap in leaps {
            let sql = format!("SELECT outbox_append('a', 'k', 't', '1', aggregate_version => {leap})");
            let (state, message) = refused(&mut connection, &sql).await;
            assert_eq!(state, "22023");
            assert_eq!(
                message,
                format!("outbox_append: version {leap} was given, but the next one of a k is {}", last + 1)
            );
        }
        // A refused leap leaves no trace: the counter goes on where it was.
        let sql = "SELECT aggregate_version FROM outbox_append('a', 'k', 't', '1')";
        let drawn: i64 = sqlx::query_scalar(sql).fetch_one(&mut *connection).await.unwrap();
        assert_eq!(drawn, last + 1);
    }
}

/// The longest of each argument is taken; a byte more is refused before any index or constraint sees it.
#[tokio::test(flavor = "multi_thread")]
async fn arguments_are_bounded_in_bytes() {
    let fixture = Fixture::new("arguments_are_bounded_in_bytes").await;
    let longest = "é".repeat(100);
    fixture.grant("outrider_writer", &longest).await;
    let mut connection = writer(&fixture).await;
    let sql = "SELECT outbox_append($1, $2, $3, $4::json, $5::jsonb)";
    // Random, so that nothing of it is compressed away.
    let id: String = std::iter::repeat_with(|| char::from(rand::random_range(b'a'..=b'z'))).take(1_001).collect();
    let headers = |bytes: usize| format!("{{\"a\": \"{}\"}}", "x".repeat(bytes - 9));
    let payload = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
    let (most, kind) = (16_777_216, "t".repeat(250));
    let (fits, event) = (payload(most), headers(32_768));
    sqlx::query(sql)
        .bind(&longest)
        .bind(&id[..1_000])
        .bind(&kind)
        .bind(&fits)
        .bind(&event)
        .execute(&mut *connection)
        .await
        .unwrap();
    let long_type = format!("{longest}a");
    let long_kind = format!("{kind}t");
    for (arguments, column, found, allowed) in [
        ([long_type.as_str(), "k", "t", "1", "{}"], "aggregate_type", 201, 200),
        (["a", id.as_str(), "t", "1", "{}"], "aggregate_id", 1_001, 1_000),
        (["a", "k", long_kind.as_str(), "1", "{}"], "type", 251, 250),
        (["a", "k", "t", payload(most + 1).as_str(), "{}"], "payload", most + 1, most),
        (["a", "k", "t", "1", headers(32_769).as_str()], "headers", 32_769, 32_768),
    ] {
        let mut query = sqlx::query(sql);
        for argument in arguments {
            query = query.bind(argument.to_owned());
        }
        let error = query.execute(&mut *connection).await.unwrap_err();
        let error = error.as_database_error().unwrap().downcast_ref::<sqlx::postgres::PgDatabaseError>();
        assert_eq!((error.code(), error.column()), ("22023", Some(column)));
        assert_eq!(
            error.message(),
            format!("outbox_append: {column} has {found} bytes, and at most {allowed} are allowed")
        );
    }
}

/// Writers whose transactions are rolled back, in part or whole, or stay open a while, all on the same few aggregates, which nothing
/// else serialises.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn versions_are_contiguous_and_in_the_order_of_ids_whatever_the_writers_do() {
    const KEYS: usize = 3;
    let fixture = Fixture::new("versions_are_contiguous").await;
    fixture.grant("outrider_writer", &fixture.aggregate_type).await;
    let relay = fixture.relay(&[("RELAY_LANE_ROWS_MAX", "20"), ("RELAY_LATE_ROWS_MAX", "10")]);
    let mut writers = Vec::new();
    let (options, aggregate_type) = (fixture.database.pool.connect_options(), fixture.aggregate_type.clone());
    let start = std::sync::Arc::new(tokio::sync::Barrier::new(8));
    for _ in 0..8 {
        let (options, aggregate_type) = (std::sync::Arc::clone(&options), aggregate_type.clone());
        let start = std::sync::Arc::clone(&start);
        writers.push(tokio::spawn(async move {
            let mut connection = sqlx::ConnectOptions::connect(&*options).await.unwrap();
            sqlx::query("SET ROLE outrider_writer").execute(&mut connection).await.unwrap();
            start.wait().await;
            for _ in 0..40 {
                write_once(&mut connection, &aggregate_type, KEYS).await;
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let rows: Vec<(String, Vec<i64>)> = sqlx::query_as(
        "SELECT aggregate_id, array_agg(aggregate_version ORDER BY id) FROM outbox GROUP BY aggregate_id",
    )
    .fetch_all(&fixture.database.pool)
    .await
    .unwrap();
    let last: HashMap<String, i64> = rows
        .into_iter()
        .map(|(key, versions)| {
            let count = i64::try_from(versions.len()).unwrap();
            assert_eq!(versions, (1..=count).collect::<Vec<_>>(), "versions of {key} by id");
            (key, count)
        })
        .collect();
    let total: i64 = last.values().sum();
    assert!(total > 200, "{total} events were written");
    let records = fixture.published(usize::try_from(total).unwrap()).await;
    assert_complete_and_in_order(&records, |key| last[key], KEYS);
    all_settled(&fixture).await;
    relay.stop().await;
}

/// One transaction that appends to one to three aggregates, each under a savepoint that may be rolled back.
async fn write_once(connection: &mut PgConnection, aggregate_type: &str, keys: usize) {
    let mut transaction = connection.begin().await.unwrap();
    let mut chosen: Vec<usize> = (0..rand::random_range(1..=3)).map(|_| rand::random_range(0..keys)).collect();
    // In one order, or writers would deadlock. A key may come twice.
    chosen.sort_unstable();
    for key in chosen {
        let mut savepoint = transaction.begin().await.unwrap();
        sqlx::query("SELECT outbox_append($1, $2, 'thing.changed', '{}')")
            .bind(aggregate_type)
            .bind(format!("k{key}"))
            .execute(&mut *savepoint)
            .await
            .unwrap();
        if rand::random_bool(0.2) {
            savepoint.rollback().await.unwrap();
        } else {
            savepoint.commit().await.unwrap();
        }
    }
    if rand::random_bool(0.1) {
        tokio::time::sleep(std::time::Duration::from_millis(rand::random_range(1..30))).await;
    }
    if rand::random_bool(0.1) {
        transaction.rollback().await.unwrap();
    } else {
        transaction.commit().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_writer_of_an_aggregate_draws_its_id_after_the_first_has_committed() {
    let fixture = Fixture::new("a_second_writer_of_an_aggregate").await;
    let (mut first, mut second) = (writer(&fixture).await, writer(&fixture).await);
    let mut transaction = first.begin().await.unwrap();
    let one = append(&mut transaction, &fixture, "k").await;
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *second).await.unwrap();
    let waiting = async {
        shared::testing::eventually("the second writer waits for the first", async || {
            let waits: bool = sqlx::query_scalar("SELECT cardinality(pg_blocking_pids($1)) > 0")
                .bind(pid)
                .fetch_one(&fixture.database.pool)
                .await
                .unwrap();
            waits.then_some(())
        })
        .await;
        // An id that is drawn now is above whatever the second writer has drawn.
        let between = append(&mut transaction, &fixture, "k").await;
        transaction.commit().await.unwrap();
        between
    };
    let (between, two) = tokio::join!(waiting, append(&mut second, &fixture, "k"));
    assert_eq!([one.0, between.0, two.0], [1, 2, 3]);
    assert!(one.1 < between.1 && between.1 < two.1, "{one:?} {between:?} {two:?}");
}
