//! A database with odd rows from before there were bounds.

use shared::db::MIGRATOR;
use shared::testing::TestDatabase;
use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// The migration that brings the bounds.
const BOUNDS: i64 = 20_261_129_000_011;

#[tokio::test(flavor = "multi_thread")]
async fn rows_from_before_the_bounds_neither_stop_the_upgrade_nor_go() {
    let database = TestDatabase::create("rows_from_before_the_bounds").await;
    let url = format!("{}_before", database.url);
    let (_, name) = url.rsplit_once('/').unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE \"{name}\""))).execute(&database.pool).await.unwrap();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let earlier = MIGRATOR.iter().filter(|migration| migration.version < BOUNDS).cloned().collect();
    Migrator::with_migrations(earlier).run(&mut connection).await.unwrap();
    sqlx::raw_sql(
        "INSERT INTO outbox (aggregate_type, aggregate_id, aggregate_version, type, payload, occurred_at) VALUES
            ('thing', (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 200) i), 1, 't', '{}', now()),
            (repeat('x', 300), '', 1, repeat('y', 300), '{}', 'infinity'),
            ('thing', 'k', 1, '', to_json(repeat('z', 17000000)), '-infinity');
        INSERT INTO relay_parked (id, lane, event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, headers, occurred_at)
            SELECT id, lane, event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, headers, occurred_at
            FROM outbox WHERE id = 2;
        INSERT INTO relay_parked_requests (lane, aggregate_type, aggregate_id, requested_by)
            SELECT lane, aggregate_type, aggregate_id, 'me' FROM relay_parked;",
    )
    .execute(&mut connection)
    .await
    .unwrap();
    MIGRATOR.run(&mut connection).await.unwrap();
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox").fetch_one(&mut connection).await.unwrap();
    assert_eq!(rows, 3);
    let known: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM relay_parked p JOIN relay_parked_requests r USING (lane, key_hash)
            WHERE p.key_hash = relay_key_hash(repeat('x', 300), '') AND p.payload IS NOT NULL AND p.payload_bytes IS NULL)",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert!(known, "a key that was parked, and asked for, has its hash");
}
