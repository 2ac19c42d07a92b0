//! SQL on transactions that are open for long, in this database or another one of the same server.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

/// A transaction that is open.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenTransaction {
    /// The process of its session; none for a prepared transaction.
    pub pid: Option<i32>,
    /// The name of a prepared transaction.
    pub gid: Option<String>,
    /// `application_name`; none for a prepared transaction.
    pub application: Option<String>,
    /// Who is logged in.
    pub user: Option<String>,
    /// The database that it works in.
    pub database: Option<String>,
    /// `pg_stat_activity.state`, or `prepared`.
    pub state: Option<String>,
    /// What it holds: `outbox rows`, `a transaction id`, `a snapshot`, or `nothing yet`.
    pub holds: String,
    /// When it began, by the database's clock.
    pub since: DateTime<Utc>,
    /// For how long it has been open, in seconds.
    pub age_secs: f64,
}

/// At most this many are looked at, the oldest first.
const TRANSACTIONS_MAX: i64 = 50;

/// Transactions that are older than `age`, the oldest first.
///
/// # Errors
/// What the database says.
pub async fn open_transactions(
    connection: &mut PgConnection,
    age: Duration,
) -> Result<Vec<OpenTransaction>, sqlx::Error> {
    // Views of shared memory; no table is read. Vacuum does not count: Postgres leaves it out when it computes the horizon. A parallel
    // worker is there with its leader. A prepared transaction is found among the locks by the one on its own id.
    sqlx::query_as!(
        OpenTransaction,
        r#"-- open_transactions
        WITH locks AS MATERIALIZED (
            SELECT l.pid, l.virtualtransaction, l.transactionid,
                d.datname = current_database() AND l.relation = 'outbox'::regclass AND l.mode = 'RowExclusiveLock' AND l.granted AS writes
            FROM pg_locks l
            LEFT JOIN pg_database d ON d.oid = l.database
        )
        SELECT a.pid, NULL::text AS gid, a.application_name AS application, a.usename::text AS "user", a.datname::text AS database,
            a.state, a.xact_start AS "since!",
            CASE
                WHEN EXISTS (SELECT FROM locks l WHERE l.pid = a.pid AND l.writes) THEN 'outbox rows'
                WHEN a.backend_xid IS NOT NULL THEN 'a transaction id'
                WHEN a.backend_xmin IS NOT NULL THEN 'a snapshot'
                ELSE 'nothing yet'
            END AS "holds!",
            extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS "age_secs!"
        FROM pg_stat_activity a
        WHERE a.xact_start < clock_timestamp() - make_interval(secs => $1) AND a.pid <> pg_backend_pid()
            AND a.backend_type NOT IN ('autovacuum worker', 'parallel worker')
            AND (a.backend_xid IS NOT NULL OR a.backend_xmin IS NOT NULL OR a.state LIKE 'idle in transaction%')
        UNION ALL
        SELECT NULL, p.gid, NULL, p.owner::text, p.database::text, 'prepared', p.prepared,
            CASE
                WHEN EXISTS (
                    SELECT FROM locks own JOIN locks l ON l.virtualtransaction = own.virtualtransaction
                    WHERE own.transactionid = p.transaction AND own.pid IS NULL AND l.pid IS NULL AND l.writes
                ) THEN 'outbox rows'
                ELSE 'a transaction id'
            END,
            extract(epoch FROM clock_timestamp() - p.prepared)::float8
        FROM pg_prepared_xacts p
        WHERE p.prepared < clock_timestamp() - make_interval(secs => $1)
        ORDER BY 7
        LIMIT $2"#,
        age.as_secs_f64(),
        TRANSACTIONS_MAX,
    )
    .fetch_all(connection)
    .await
}

/// Whether it is for this relay to name what is held: one of all relays does.
///
/// # Errors
/// What the database says.
pub async fn names_holders(connection: &mut PgConnection, relay: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"-- names_holders
        SELECT EXISTS (SELECT FROM relay_lanes WHERE lane = 0 AND owner = $1 AND expires_at > now()) AS "names!""#,
        relay
    )
    .fetch_one(connection)
    .await
}

/// Whether this role is shown since when the transactions of other users are open. If not, [`open_transactions`] leaves them out.
///
/// # Errors
/// What the database says.
pub async fn sees_other_users(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"-- sees_other_users
        SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS "sees!""#
    )
    .fetch_one(connection)
    .await
}
