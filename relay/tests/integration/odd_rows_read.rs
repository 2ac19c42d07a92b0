//! Rows that no record can be made of, or that are hard to read: each is set aside with its reason, and everything else flows.

use shared::testing::eventually;

use crate::support::{Fixture, all_settled, assert_no_repeats};

/// What the database would refuse by now may have been there before it did.
async fn without_checks(fixture: &Fixture) {
    let checks: Vec<String> = sqlx::query_scalar(
        "SELECT conname::text FROM pg_constraint WHERE conrelid = 'outbox'::regclass AND contype = 'c'",
    )
    .fetch_all(&fixture.database.pool)
    .await
    .unwrap();
    for check in checks {
        let drop = format!("ALTER TABLE outbox DROP CONSTRAINT {check}");
        sqlx::query(sqlx::AssertSqlSafe(drop)).execute(&fixture.database.pool).await.unwrap();
    }
}

/// Plants a row of `key`; `column` has the value of `expression`.
async fn plant(fixture: &Fixture, key: &str, column: &str, expression: &str) {
    let value = |name: &str, usual: &str| if name == column { expression.to_owned() } else { usual.to_owned() };
    let insert = format!(
        "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, headers, occurred_at)
         VALUES ({}, {}, {}, {}, {}, {}, {}, {})",
        value("event_id", "gen_random_uuid()"),
        value("aggregate_type", "$1"),
        value("aggregate_id", "$2"),
        value("aggregate_version", "1"),
        value("type", "'thing.changed'"),
        value("payload", "'{}'"),
        value("headers", "'{}'"),
        value("occurred_at", "now()"),
    );
    let planted = sqlx::query(sqlx::AssertSqlSafe(insert)).bind(&fixture.aggregate_type).bind(key);
    planted.execute(&fixture.database.pool).await.unwrap();
}

/// Rows that are parked: what is odd about them, and how the reason begins.
const PARKED: [(&str, &str, &str); 13] = [
    ("occurred_at", "'infinity'", "its occurred_at is infinity"),
    ("occurred_at", "'-infinity'", "its occurred_at is -infinity"),
    ("occurred_at", "'294276-12-31 23:59:59Z'", "its occurred_at is after year 9999"),
    ("occurred_at", "'10000-01-01 00:00:00Z'", "its occurred_at is after year 9999"),
    ("occurred_at", "'0001-12-31 23:59:59Z BC'", "its occurred_at is before year 1"),
    ("occurred_at", "'4713-01-01 00:00:00Z BC'", "its occurred_at is before year 1"),
    ("aggregate_id", "$2 || repeat('x', 50000)", "its aggregate_id has more than 1000 bytes"),
    ("aggregate_type", "$1 || repeat('\u{e4}', 50000)", "its aggregate_type has more than 200 bytes"),
    ("type", "repeat('x', 10000000)", "its type has more than 250 bytes"),
    ("payload", "to_json(repeat('x', 16777215))", "its payload has 16777217 bytes; at most 16777216 can be published"),
    ("payload", "to_json(repeat('x', 100000000))", "its payload has 100000002 bytes"),
    ("headers", "jsonb_build_object('a', repeat('x', 32768))", "its headers have more than 32768 bytes"),
    ("headers", "'{\"a\": 1e131000}'", "its headers have more than 32768 bytes"),
];

/// Rows that are odd and are published.
const PUBLISHED: [(&str, &str); 14] = [
    ("occurred_at", "'0001-01-01 00:00:00Z'"),
    ("occurred_at", "'9999-12-31 23:59:59.999999Z'"),
    ("event_id", "'ffffffff-ffff-ffff-ffff-ffffffffffff'"),
    ("aggregate_version", "-9223372036854775808"),
    ("aggregate_id", "$2 || repeat('\u{e4}', 400)"),
    ("type", "repeat('x', 250)"),
    ("payload", "to_json(repeat('\u{e4}', 300000))"),
    ("payload", "to_json(repeat('x', 4094))"),
    ("payload", "to_json(repeat('x', 4095))"),
    ("payload", "'\"\\u0000\"'"),
    ("headers", "'[1, 2]'"),
    ("headers", "'{\"\": \"\", \"n\": 12.50, \"o\": {\"deep\": [null]}}'"),
    ("headers", "jsonb_build_object(repeat('k', 20000), 'v', 'w', repeat('x', 10000))"),
    ("headers", "jsonb_build_object('random', (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 900) i))"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_any_content_is_published_or_parked_with_its_reason_and_stops_nobody() {
    let fixture = Fixture::with_topic("a_row_of_any_content").await;
    without_checks(&fixture).await;
    for (number, (column, expression, _)) in PARKED.iter().enumerate() {
        fixture.insert_all(&format!("before{number}"), 1, 1).await;
        plant(&fixture, &format!("parked{number}"), column, expression).await;
    }
    for (number, (column, expression)) in PUBLISHED.iter().enumerate() {
        plant(&fixture, &format!("odd{number}"), column, expression).await;
    }
    let relay = fixture.relay(&[]);
    fixture.insert_all("after", 1, 5).await;
    let expected = PARKED.len() + PUBLISHED.len() + 5;
    let records = fixture.published(expected).await;
    assert_eq!(records.iter().filter(|record| record.key.starts_with("odd")).count(), PUBLISHED.len());
    all_settled(&fixture).await;
    let reasons: Vec<String> = eventually("all are parked", async || {
        let reasons: Vec<String> = sqlx::query_scalar("SELECT reason FROM relay_parked ORDER BY id")
            .fetch_all(&fixture.database.pool)
            .await
            .unwrap();
        (reasons.len() >= PARKED.len()).then_some(reasons)
    })
    .await;
    for (reason, (column, _, expected)) in reasons.iter().zip(PARKED) {
        assert!(reason.starts_with(expected), "{column}: {reason}");
    }
    assert_eq!(reasons.len(), PARKED.len());
    // The process is well, whatever it counts of such times.
    fixture.insert_all("after", 6, 6).await;
    assert_no_repeats(&fixture.published(expected + 1).await);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_payloads_and_headers_come_whole_and_in_order() {
    let fixture = Fixture::with_topic("large_payloads_and_headers").await;
    let mut connection = fixture.database.pool.acquire().await.unwrap();
    // Larger together than two reads, and mixed with small ones.
    let insert =
        "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, headers)
        SELECT gen_random_uuid(), $1, 'k' || (i % 10), i / 10 + 1, 'thing.changed',
            to_json(CASE WHEN i % 3 = 0 THEN i::text ELSE i || repeat('x', 120000) END),
            jsonb_build_object('number', CASE WHEN i % 7 = 0 THEN i || repeat('y', 20000) ELSE i::text END)
        FROM generate_series(0, 499) i";
    sqlx::query(insert).bind(&fixture.aggregate_type).execute(&mut *connection).await.unwrap();
    let relay = fixture.relay(&[]);
    let records = fixture.published(500).await;
    crate::support::assert_complete_and_in_order(&records, |_| 50, 10);
    for record in &records {
        let number = (record.version - 1) * 10 + record.key[1..].parse::<i64>().unwrap();
        let payload =
            if number % 3 == 0 { format!("\"{number}\"") } else { format!("\"{number}{}\"", "x".repeat(120_000)) };
        assert!(record.payload == payload, "payload of {number}");
        let header = if number % 7 == 0 { format!("{number}{}", "y".repeat(20_000)) } else { number.to_string() };
        assert!(record.headers["number"] == header, "headers of {number}");
    }
    all_settled(&fixture).await;
    relay.stop().await;
    assert_no_repeats(&fixture.published(500).await);
}

/// Only the owner of the outbox can write such rows, or who has the right to insert from an older version. They commit after rows with higher
/// ids were published, so that the relay finds them by their transaction alone.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_name_another_transaction_than_their_own_are_published_once() {
    let fixture = Fixture::with_topic("rows_that_name_another").await;
    let relay = fixture.relay(&[]);
    // More of the future than late rows are read at once, and some of long ago.
    let insert = "INSERT INTO outbox (txid, event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
        SELECT CASE WHEN i < 3000 THEN 9000000000000000000 + i ELSE 3 END, gen_random_uuid(), $1, 'odd' || i, 1, 'thing.changed', '{}'
        FROM generate_series(0, 3099) i";
    let mut late = fixture.database.pool.begin().await.unwrap();
    sqlx::query(insert).bind(&fixture.aggregate_type).execute(&mut *late).await.unwrap();
    // One of each lane, at least.
    for key in 0..100 {
        fixture.insert_all(&format!("k{key}"), 1, 1).await;
    }
    fixture.published(100).await;
    late.commit().await.unwrap();
    fixture.published(3_200).await;
    for version in 2..=20 {
        fixture.insert_all("k0", version, version).await;
        assert_no_repeats(&fixture.published(3_199 + usize::try_from(version).unwrap()).await);
    }
    relay.stop().await;
    assert_no_repeats(&fixture.published(3_219).await);
}
