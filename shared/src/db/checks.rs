//! Whether a database will do: its encoding, its schema, and that nothing of it is hidden from us.

use sqlx::postgres::PgConnectOptions;
use sqlx::{PgConnection, PgExecutor};

use super::{ConnectError, MIGRATOR, objects, settings, sql_state};
use crate::findings::Finding;

/// What is said of a connection that others can read.
pub(super) const PLAIN: &str = "the connection to Postgres is not encrypted";

/// What to do about it.
pub(super) const ENCRYPT: &str =
    "set sslmode=verify-full in DATABASE_URL, or DB_SSLMODE, if the network is not yours alone";

/// Checks that the database of a new connection will do: its encoding, its schema, and that no policy hides rows of it. Says in the log what else
/// a service should know of it, in the words of `outrider doctor`.
pub(super) async fn check(connection: &mut PgConnection, server: &PgConnectOptions) -> Result<(), ConnectError> {
    refuse_encoding(&mut *connection).await?;
    check_schema(&mut *connection).await?;
    refuse_row_security(&mut *connection).await?;
    refuse_unknown_cluster(&mut *connection).await?;
    if !is_local(server) && !is_encrypted(connection).await? {
        tracing::warn!(db.host = server.get_host(), "{PLAIN}: {ENCRYPT}");
    }
    let mut findings = settings::check(connection).await?;
    findings.extend(objects::missing(connection).await?);
    // `outrider-relay` has the rights of `outrider_relay`.
    let role = server.get_application_name().unwrap_or_default().replace('-', "_");
    findings.extend(objects::missing_to_us(connection, &role).await?);
    findings.iter().for_each(Finding::log);
    Ok(())
}

/// Whether nothing of what is said to a server leaves this machine.
pub(super) fn is_local(server: &PgConnectOptions) -> bool {
    let host = server.get_host();
    server.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

pub(super) async fn is_encrypted(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false)")
        .fetch_one(connection)
        .await
}

/// Checks that row-level security hides nothing of our tables from us: neither from our role, nor, forced, from their owner's functions.
pub(super) async fn refuse_row_security(connection: &mut PgConnection) -> Result<(), ConnectError> {
    // Those of others, in the same schema, are others' business. Not checked at build time: it is about any table of the schema.
    let found = sqlx::query_scalar::<_, String>(
        "SELECT c.relname::text FROM pg_class c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY ($1) AND c.relrowsecurity
            AND (row_security_active(c.oid) OR c.relforcerowsecurity)
        ORDER BY 1 LIMIT 1",
    )
    .bind(objects::tables())
    .fetch_optional(&mut *connection)
    .await?;
    let Some(table) = found else { return Ok(()) };
    let role = sqlx::query_scalar("SELECT current_user::text").fetch_one(connection).await?;
    Err(ConnectError::RowSecurity { table, role })
}

/// Checks that the cluster can be known, for a role that asks for it. The function that says it runs with its owner's rights.
pub(super) async fn refuse_unknown_cluster(connection: &mut PgConnection) -> Result<(), ConnectError> {
    // Not checked at build time: it is about rights, and reads no table of ours.
    let owner = sqlx::query_scalar::<_, String>(
        "SELECT p.proowner::regrole::text FROM pg_proc p
        WHERE p.oid = 'public.outrider_cluster()'::regprocedure AND has_function_privilege(p.oid, 'EXECUTE')
            AND NOT has_function_privilege(p.proowner, 'pg_catalog.pg_control_system()', 'EXECUTE')",
    )
    .fetch_optional(connection)
    .await?;
    owner.map_or(Ok(()), |role| Err(ConnectError::ClusterUnknown { role }))
}

/// Checks that the database is in UTF-8, as records and JSON are: of another one, Postgres converts each text for us, or, from `SQL_ASCII`, hands
/// out bytes whose meaning it does not know.
///
/// # Errors
/// When it is in another encoding.
pub async fn refuse_encoding<'e>(database: impl PgExecutor<'e>) -> Result<(), ConnectError> {
    let found =
        sqlx::query_scalar::<_, String>("SELECT current_setting('server_encoding')").fetch_one(database).await?;
    if found == "UTF8" { Ok(()) } else { Err(ConnectError::Encoding { found }) }
}

/// Checks that every migration of this build has been applied. A newer schema is fine: migrations come before services.
///
/// # Errors
/// When one is missing.
pub async fn check_schema<'e>(database: impl PgExecutor<'e>) -> Result<(), ConnectError> {
    is_newer_schema(database).await.map(drop)
}

/// [`check_schema`]; returns whether a newer build's migrations have been applied too.
pub(super) async fn is_newer_schema<'e>(database: impl PgExecutor<'e>) -> Result<bool, ConnectError> {
    let (found, needed) = versions(database).await?;
    if found < needed { Err(ConnectError::SchemaTooOld { found, needed }) } else { Ok(found > needed) }
}

/// The newest migration of the database, and that of this build.
async fn versions<'e>(database: impl PgExecutor<'e>) -> Result<(i64, i64), sqlx::Error> {
    let needed = MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0);
    // Not checked at build time: the table belongs to sqlx.
    let found = sqlx::query_scalar::<_, Option<i64>>("SELECT max(version) FROM _sqlx_migrations WHERE success")
        .fetch_one(database)
        .await;
    match found {
        Ok(found) => Ok((found.unwrap_or(0), needed)),
        Err(error) if sql_state(&error).as_deref() == Some("42P01") => Ok((0, needed)),
        Err(error) => Err(error),
    }
}
