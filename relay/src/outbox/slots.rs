//! SQL on replication slots. Like an open transaction, one that nobody reads keeps Postgres from cleaning up; and from removing its log.

use sqlx::PgConnection;

/// A replication slot that holds something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicationSlot {
    /// Its name.
    pub name: String,
    /// `physical` or `logical`.
    pub kind: String,
    /// The database of a logical one.
    pub database: Option<String>,
    /// Whether somebody reads it.
    pub active: bool,
    /// The process that sends to whoever reads it.
    pub pid: Option<i32>,
    /// Transactions begun since the oldest one that it needs rows of, in any table; none if it needs none.
    pub xmin_age: Option<i64>,
    /// The same for rows of the catalogs.
    pub catalog_xmin_age: Option<i64>,
    /// Bytes of the log that are kept for it; none when it lost its place.
    pub wal_bytes: Option<i64>,
    /// `xmin`, `catalog_xmin` and `restart_lsn`: the same in two looks if it stands still.
    pub place: String,
}

/// At most this many are looked at, those that hold the most transactions first.
const SLOTS_MAX: i64 = 50;

/// The server's replication slots that hold anything.
///
/// # Errors
/// What the database says.
pub async fn replication_slots(connection: &mut PgConnection) -> Result<Vec<ReplicationSlot>, sqlx::Error> {
    // A view of shared memory that every role may read; no table is read. A standby may have slots too, and writes no log of its own.
    sqlx::query_as!(
        ReplicationSlot,
        r#"-- replication_slots
        SELECT s.slot_name::text AS "name!", s.slot_type::text AS "kind!", s.database::text AS database, s.active AS "active!",
            s.active_pid AS pid, age(s.xmin)::bigint AS xmin_age, age(s.catalog_xmin)::bigint AS catalog_xmin_age,
            pg_wal_lsn_diff(
                CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, s.restart_lsn
            )::bigint AS wal_bytes,
            concat_ws(' ', coalesce(s.xmin::text, '-'), coalesce(s.catalog_xmin::text, '-'), coalesce(s.restart_lsn::text, '-')) AS "place!"
        FROM pg_replication_slots s
        WHERE s.xmin IS NOT NULL OR s.catalog_xmin IS NOT NULL OR s.restart_lsn IS NOT NULL
        ORDER BY greatest(age(s.xmin), age(s.catalog_xmin)) DESC NULLS LAST, s.restart_lsn
        LIMIT $1"#,
        SLOTS_MAX
    )
    .fetch_all(connection)
    .await
}
