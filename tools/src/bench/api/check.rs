//! Whether Postgres holds what the answers say: each accepted order, its transition and its event, and nothing else.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use sqlx::PgPool;
use sqlx::pool::PoolConnection;

/// Checks that there are `count` orders, each with its first transition and its first event, and no other rows.
pub async fn whole(pool: &PgPool, count: u64) -> Result<()> {
    let (orders, transitions, events, wrong): (i64, i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM order_transitions), (SELECT count(*) FROM outbox),
            (SELECT count(*) FROM orders o
                LEFT JOIN order_transitions t ON t.order_id = o.id AND t.version = 1
                LEFT JOIN outbox e ON e.aggregate_type = 'order' AND e.aggregate_id = o.id::text AND e.aggregate_version = 1
                    AND e.event_id = t.event_id
                WHERE t.order_id IS NULL OR e.id IS NULL)",
    )
    .fetch_one(pool)
    .await?;
    let count = i64::try_from(count)?;
    ensure!(
        [orders, transitions, events] == [count; 3] && wrong == 0,
        "there are {orders} orders, {transitions} transitions and {events} events and not {count} of each; {wrong} orders lack one of theirs"
    );
    Ok(())
}

/// How many of the orders whose numbers are in `files`, one a line, are not there. A number that was answered twice is an error.
pub async fn lost(pool: &PgPool, files: &[PathBuf]) -> Result<u64> {
    let mut connection: PoolConnection<sqlx::Postgres> = pool.acquire().await?;
    sqlx::query("CREATE TEMPORARY TABLE accepted (id bigint NOT NULL)").execute(&mut *connection).await?;
    for file in files {
        let mut copy = connection.copy_in_raw("COPY accepted FROM STDIN").await?;
        copy.read_from(tokio::fs::File::open(file).await?).await?;
        copy.finish().await?;
    }
    let (lost, twice): (i64, i64) = sqlx::query_as(
        "SELECT count(*) FILTER (WHERE o.id IS NULL), count(*) - count(DISTINCT a.id)
        FROM accepted a LEFT JOIN orders o USING (id)",
    )
    .fetch_one(&mut *connection)
    .await?;
    sqlx::query("DROP TABLE accepted").execute(&mut *connection).await?;
    ensure!(twice == 0, "{twice} answers name an order that another one names too");
    Ok(u64::try_from(lost)?)
}
