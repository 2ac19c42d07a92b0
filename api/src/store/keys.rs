//! SQL of idempotency keys: what they were answered with, and the partitions they are in.

use std::collections::HashMap;

use sqlx::PgConnection;
use sqlx::types::chrono::NaiveDate;
use uuid::Uuid;

use super::{KeyConflict, Written};

/// What a key was answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    fingerprint: i64,
    written: Written,
}

/// What is known of `keys` on that day.
pub(super) async fn read_keys(
    connection: &mut PgConnection,
    day: NaiveDate,
    keys: &[Uuid],
) -> Result<HashMap<Uuid, Known>, sqlx::Error> {
    // One look-up of the primary key a key, in the one partition of the day, whatever the planner thinks: `key = ANY ($1)` may become a walk
    // over the whole index by a plan from when it was small. A statement of its own, because the one that found the keys taken cannot see
    // rows that were committed after it began; this one sees them, since that one has waited for the commit.
    let rows = sqlx::query!(
        r#"-- read_keys
        SELECT found.key AS "key!", found.fingerprint AS "fingerprint!", found.order_id AS "order_id!", found.document AS "document!"
        FROM UNNEST($1::uuid[]) AS given (key)
        CROSS JOIN LATERAL (
            SELECT k.key, k.fingerprint, k.order_id, k.document FROM idempotency_keys k
            WHERE k.key = given.key AND k.day = $2 LIMIT 1
        ) AS found"#,
        keys,
        day,
    )
    .fetch_all(connection)
    .await?;
    let known = |document: String, id| Written { id, document: document.into(), replayed: true };
    let rows = rows
        .into_iter()
        .map(|row| (row.key, Known { fingerprint: row.fingerprint, written: known(row.document, row.order_id) }));
    Ok(rows.collect())
}

/// The answer to an order whose key was taken.
pub(super) fn answer(
    known: &HashMap<Uuid, Known>,
    key: Option<Uuid>,
    fingerprint: Option<i64>,
) -> Result<Written, KeyConflict> {
    match key.and_then(|key| known.get(&key)) {
        Some(known) if Some(known.fingerprint) == fingerprint => Ok(known.written.clone()),
        Some(_) => Err(KeyConflict::Reused),
        // Its day has been dropped in between: whoever comes again finds what there is then.
        None => Err(KeyConflict::Running),
    }
}

/// What came of doing away with a partition.
#[derive(Debug)]
pub struct DropAttempt {
    /// The partition.
    pub name: String,
    /// `dropped`, `emptied` or `busy`.
    pub outcome: String,
}

/// Makes a missing partition of today and the days ahead. Returns its name, or nothing if none is missing or could be made now.
///
/// # Errors
/// When Postgres does not do it.
pub async fn make_partition(connection: &mut PgConnection, days_ahead: i32) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"-- make_partition
        SELECT idempotency_make_partition($1)"#,
        days_ahead
    )
    .fetch_one(connection)
    .await
}

/// Does away with a partition whose day is over, if there is one.
///
/// # Errors
/// When Postgres does not do it.
pub async fn drop_partition(connection: &mut PgConnection) -> Result<Option<DropAttempt>, sqlx::Error> {
    sqlx::query_as!(
        DropAttempt,
        r#"-- drop_partition
        SELECT name AS "name!", outcome AS "outcome!" FROM idempotency_drop_partition()"#
    )
    .fetch_optional(connection)
    .await
}

/// How many partitions there are.
///
/// # Errors
/// When Postgres does not say.
pub async fn partitions(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        r#"-- partitions
        SELECT count(*) AS "count!" FROM idempotency_partitions"#
    )
    .fetch_one(connection)
    .await
}
