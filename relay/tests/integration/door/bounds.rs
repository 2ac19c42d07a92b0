//! Bounds of what is inserted into the outbox, and into the table of routes.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::support::Fixture;

/// A column, a value that is just inside of its bound, one that is just outside, and the bound that says so. Values are SQL.
const BOUNDS: [(&str, &str, &str, &str); 18] = [
    ("aggregate_type", "'x'", "''", "outbox_aggregate_type_bytes"),
    ("aggregate_type", "repeat('x', 200)", "repeat('x', 201)", "outbox_aggregate_type_bytes"),
    // Bytes, not characters.
    ("aggregate_type", "repeat('é', 100)", "repeat('é', 100) || 'x'", "outbox_aggregate_type_bytes"),
    ("aggregate_id", "'x'", "''", "outbox_aggregate_id_bytes"),
    ("aggregate_id", "repeat('x', 1000)", "repeat('x', 1001)", "outbox_aggregate_id_bytes"),
    ("type", "'x'", "''", "outbox_type_bytes"),
    ("type", "repeat('x', 250)", "repeat('x', 251)", "outbox_type_bytes"),
    ("payload", "to_json(repeat('x', 16777214))", "to_json(repeat('x', 16777215))", "outbox_payload_bytes"),
    (
        "headers",
        "jsonb_build_object('a', repeat('x', 32759))",
        "jsonb_build_object('a', repeat('x', 32760))",
        "outbox_headers_bytes",
    ),
    // A sixth of the text as it is stored: each character is escaped.
    (
        "headers",
        "jsonb_build_object('a', repeat(chr(1), 5459))",
        "jsonb_build_object('a', repeat(chr(1), 5460))",
        "outbox_headers_bytes",
    ),
    // Short as it is stored, and long as text.
    (
        "headers",
        "jsonb_build_object('a', 1e30000, 'b', repeat('x', 250))",
        "jsonb_build_object('a', 1e30000, 'b', repeat('x', 250), 'c', 1e3000)",
        "outbox_headers_bytes",
    ),
    ("headers", "'{}'", "'[]'", "outbox_headers_check"),
    ("aggregate_version", "1", "0", "outbox_aggregate_version_check"),
    ("occurred_at", "'0001-01-01 00:00:00+00'", "'0001-12-31 23:59:59.999999+00 BC'", "outbox_occurred_at_years"),
    ("occurred_at", "'9999-12-31 23:59:59.999999+00'", "'10000-01-01 00:00:00+00'", "outbox_occurred_at_years"),
    ("occurred_at", "now()", "'infinity'", "outbox_occurred_at_years"),
    ("occurred_at", "now()", "'-infinity'", "outbox_occurred_at_years"),
    ("occurred_at", "now()", "'294276-12-31 23:59:59+00'", "outbox_occurred_at_years"),
];

/// Inserts a row with one column as given. The bound that it violates, if any.
async fn violated(connection: &mut PgConnection, column: &str, value: &str) -> Option<String> {
    let columns = [
        ("aggregate_version", "1"),
        ("aggregate_type", "'thing'"),
        ("aggregate_id", "'k'"),
        ("type", "'thing.changed'"),
        ("payload", "'{}'"),
    ];
    let others = columns.into_iter().filter(|(name, _)| *name != column);
    let (names, values): (Vec<&str>, Vec<&str>) = others.chain([(column, value)]).unzip();
    let (names, values) = (names.join(", "), values.join(", "));
    let sql = format!("INSERT INTO outbox ({names}) VALUES ({values})");
    let error = sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.err()?;
    let error = error.as_database_error().expect("Postgres refuses");
    assert_eq!(error.code().as_deref(), Some("23514"), "{error}");
    assert!(error.message().starts_with(&format!("outbox: {column} must ")), "{error}");
    Some(error.constraint().expect("a named constraint").to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bound_takes_what_is_just_inside_and_names_itself_for_what_is_just_outside() {
    let fixture = Fixture::new("each_bound_takes").await;
    let mut connection = fixture.database.pool.acquire().await.unwrap();
    for (column, inside, outside, bound) in BOUNDS {
        assert_eq!(violated(&mut connection, column, inside).await, None, "{column} {inside}");
        assert_eq!(violated(&mut connection, column, outside).await.as_deref(), Some(bound), "{column} {outside}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_made_later_has_the_same_bounds() {
    let fixture = Fixture::new("a_partition_that_is_made_later").await;
    let mut connection = fixture.database.pool.acquire().await.unwrap();
    sqlx::raw_sql("SELECT outbox_make_partitions(4), setval('outbox_id_seq', 15000000)")
        .execute(&mut *connection)
        .await
        .unwrap();
    for (column, inside, outside, bound) in BOUNDS {
        assert_eq!(violated(&mut connection, column, inside).await, None, "{column} {inside}");
        assert_eq!(violated(&mut connection, column, outside).await.as_deref(), Some(bound), "{column} {outside}");
    }
    let lowest: i64 = sqlx::query_scalar("SELECT min(id) FROM outbox").fetch_one(&mut *connection).await.unwrap();
    assert!(lowest > 15_000_000, "{lowest} is in a partition that was there before");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_owner_may_update_a_row_that_is_out_of_bounds_and_only_on_purpose() {
    let fixture = Fixture::new("only_the_owner_may_update").await;
    let mut connection = fixture.database.pool.acquire().await.unwrap();
    connection.close_on_drop();
    sqlx::raw_sql(
        "SET outrider.odd_rows = 'keep';
        INSERT INTO outbox (aggregate_type, aggregate_id, aggregate_version, type, payload) VALUES ('', 'k', 1, 't', '{}');
        RESET outrider.odd_rows; GRANT UPDATE ON outbox TO outrider_api",
    )
    .execute(&mut *connection)
    .await
    .unwrap();
    let update = "UPDATE outbox SET txid = 0";
    let refused = async |connection: &mut PgConnection| {
        let error = sqlx::raw_sql(update).execute(connection).await.expect_err("it is out of bounds");
        assert_eq!(error.as_database_error().unwrap().constraint(), Some("outbox_aggregate_type_bytes"), "{error}");
    };
    refused(&mut connection).await;
    sqlx::raw_sql("SET outrider.odd_rows = 'keep'").execute(&mut *connection).await.unwrap();
    sqlx::raw_sql(update).execute(&mut *connection).await.unwrap();
    sqlx::raw_sql("SET ROLE outrider_api").execute(&mut *connection).await.unwrap();
    refused(&mut connection).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_is_for_a_type_that_the_outbox_takes() {
    let fixture = Fixture::new("a_route_is_for_a_type").await;
    let insert = async |bytes: i32| {
        sqlx::query("INSERT INTO relay_routes VALUES (repeat('x', $1), 'topic')")
            .bind(bytes)
            .execute(&fixture.database.pool)
            .await
    };
    for bytes in [0, 201] {
        let error = insert(bytes).await.unwrap_err();
        let constraint = error.as_database_error().and_then(|error| error.constraint());
        assert_eq!(constraint, Some("relay_routes_aggregate_type_bytes"), "{bytes}");
    }
    insert(200).await.unwrap();
}
