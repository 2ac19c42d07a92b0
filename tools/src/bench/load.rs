//! Rows for the outbox: 300 bytes of payload, ten headers on the topic, ten versions of each key.

use anyhow::Result;
use sqlx::PgPool;

/// Versions of each key in a backlog.
const VERSIONS: i64 = 10;

/// Inserts `count` events of `aggregate_type` in one transaction, so that the relay sees all of them at one moment.
pub async fn backlog(pool: &PgPool, aggregate_type: &str, count: u64) -> Result<()> {
    sampled_backlog(pool, aggregate_type, count, 1).await
}

/// The same, with trace contexts that say of every `sampled_every`th key that it is recorded.
pub async fn sampled_backlog(pool: &PgPool, aggregate_type: &str, count: u64, sampled_every: i64) -> Result<()> {
    sqlx::query("SELECT outbox_make_partitions(4)").execute(pool).await?;
    let mut transaction = pool.begin().await?;
    let count = i64::try_from(count)?;
    // In slices, so that a version is far from its elder, as in life, and no statement is too long to be interrupted.
    let slice = (count + VERSIONS - 1) / VERSIONS;
    for version in 1..=VERSIONS {
        let keys = slice.min(count - slice * (version - 1));
        sqlx::query(
            "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, headers)
            SELECT gen_random_uuid(), $1, key::text, $2, $1 || '.changed',
                (rpad(format('{\"id\":%s,\"user_id\":%s,\"product_id\":%s,\"quantity\":%s,\"status\":\"Pending\",\"version\":%s,\"note\":\"%s%s', key,
                    key % 1000, key % 100, key % 10, $2, md5(key::text), md5((key * 7)::text)), 298, ' .') || '\"}')::json,
                jsonb_build_object('traceparent', '00-' || md5(key::text) || '-00f067aa0ba902b7-' ||
                    CASE WHEN key % $4 = 0 THEN '01' ELSE '00' END)
            FROM generate_series(1, $3::bigint) key",
        )
        .bind(aggregate_type)
        .bind(version)
        .bind(keys.max(0))
        .bind(sampled_every)
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await?;
    Ok(())
}
