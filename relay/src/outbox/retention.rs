//! SQL on the partitions of the outbox: making them ahead, and dropping those that nobody needs.

use std::time::Duration;

use sqlx::PgConnection;

/// Makes outbox partitions until `ahead` of them lie beyond the last id. Returns how many were made.
///
/// # Errors
/// What the database says, for example that a lock could not be had in time.
pub async fn make_partitions(connection: &mut PgConnection, ahead: i32) -> Result<i32, sqlx::Error> {
    sqlx::query_scalar!(
        r#"-- make_partitions
        SELECT outbox_make_partitions($1) AS "made!""#,
        ahead
    )
    .fetch_one(connection)
    .await
}

/// How far the partitions reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// How many partitions there are.
    pub partitions: i64,
    /// Ids that can still be given out before an insert finds no partition.
    pub ids_ahead: i64,
    /// Partitions ahead that no id has been given out of.
    pub whole_ahead: i64,
}

/// How far the partitions reach beyond the last id.
///
/// # Errors
/// What the database says.
pub async fn room(connection: &mut PgConnection) -> Result<Room, sqlx::Error> {
    // Looks at the catalogue and the sequence only.
    sqlx::query_as!(
        Room,
        r#"-- room
        SELECT count(*) AS "partitions!", greatest(coalesce(max(p.past_id), 1) - 1 - s.last_id, 0) AS "ids_ahead!",
            count(*) FILTER (WHERE p.first_id > s.last_id) AS "whole_ahead!"
        FROM (SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END AS last_id FROM outbox_id_seq) s
        LEFT JOIN outbox_partitions p ON true
        GROUP BY s.last_id"#
    )
    .fetch_one(connection)
    .await
}

/// What came of a try to drop the oldest partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The partition.
    pub partition: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// See [`Attempt`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is gone.
    Dropped,
    /// It must stay: some of it is not published, or it is within the retention. The word that the database has for it.
    Stays(String),
    /// It could go, but this transaction sits on the outbox, and waiting for it would hold up all writers.
    Held(Box<Culprit>),
    /// It could go, but a lock could not be had in the short time that writers may be held up.
    Busy,
}

/// The session that is in the way. All of it is empty for a prepared transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Culprit {
    /// Its process.
    pub pid: Option<i32>,
    /// `application_name`.
    pub application: Option<String>,
    /// Who is logged in.
    pub user: Option<String>,
}

/// Tries to drop the oldest partition. None when the sequence has not left any behind, or another relay is at it.
///
/// # Errors
/// What the database says.
pub async fn drop_oldest_partition(
    connection: &mut PgConnection,
    retention: Duration,
) -> Result<Option<Attempt>, sqlx::Error> {
    // In its own transaction, this statement: the locks end with it. See the function for which they are.
    let record = sqlx::query!(
        r#"-- drop_oldest_partition
        SELECT d.name AS "name!", d.outcome AS "outcome!", d.pid, a.application_name AS "application_name?", a.usename::text AS usename
        FROM outbox_drop_partitions(make_interval(secs => $1)) d
        LEFT JOIN pg_stat_activity a ON a.pid = d.pid"#,
        retention.as_secs_f64()
    )
    .fetch_optional(connection)
    .await?;
    Ok(record.map(|record| Attempt {
        partition: record.name,
        outcome: match record.outcome.as_str() {
            "dropped" => Outcome::Dropped,
            "held" => Outcome::Held(Box::new(Culprit {
                pid: record.pid,
                application: record.application_name,
                user: record.usename,
            })),
            "busy" => Outcome::Busy,
            _ => Outcome::Stays(record.outcome),
        },
    }))
}

/// A partition, for people to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its table.
    pub name: String,
    /// Lowest id that belongs into it.
    pub first_id: i64,
    /// Lowest id above it that does not.
    pub past_id: i64,
    /// About how many rows it has, from the statistics.
    pub rows: i64,
    /// Table and indexes on disk.
    pub bytes: i64,
}

/// All partitions, the oldest first.
///
/// # Errors
/// What the database says.
pub async fn partitions(connection: &mut PgConnection) -> Result<Vec<Partition>, sqlx::Error> {
    // The size takes ACCESS SHARE on each partition, for a moment. A table that was never analyzed has reltuples -1.
    sqlx::query_as!(
        Partition,
        r#"-- partitions
        SELECT p.name::text AS "name!", p.first_id AS "first_id!", p.past_id AS "past_id!",
            greatest(c.reltuples::bigint, pg_stat_get_live_tuples(p.oid), 0) AS "rows!",
            coalesce(pg_total_relation_size(p.oid), 0) AS "bytes!"
        FROM outbox_partitions p
        JOIN pg_class c ON c.oid = p.oid
        ORDER BY p.first_id"#
    )
    .fetch_all(connection)
    .await
}
