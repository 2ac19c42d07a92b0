//! All SQL of `outrider producers`. What it grants is judged by `outbox_is_producer()`.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{Connection, PgConnection};

/// A grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProducerRow {
    /// The Postgres role.
    pub role: String,
    /// What it may append events of.
    pub aggregate_type: String,
    /// `good`; `cannot append` while the role lacks `outrider_writer`; `no such role`; `role replaced` when the role of that name is
    /// another one now, to which the grant does not apply.
    pub state: String,
    /// When it was granted.
    pub granted_at: DateTime<Utc>,
    /// Who granted it.
    pub granted_by: String,
}

/// What to grant or revoke, and who does it.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// The Postgres role.
    pub role: &'a str,
    /// Aggregate types.
    pub types: &'a [String],
    /// Who runs the command.
    pub os_user: &'a str,
    /// Why.
    pub why: Option<&'a str>,
}

/// What came of a grant.
#[derive(Debug)]
pub struct Granted {
    /// The types that the role did not have.
    pub new_types: Vec<String>,
    /// Whether the role can call `outbox_append`.
    pub calls_append: bool,
    /// The role's name as SQL has it.
    pub quoted_role: String,
}

/// Why nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such role.
    #[error("there is no role {0}: let an administrator make it, with CREATE ROLE, and grant it outrider_writer")]
    NoSuchRole(String),
    /// The type is written by Outrider itself.
    #[error("the aggregate type {RESERVED} is reserved for the api and the processor: choose another one")]
    Reserved,
    /// The role has no such grant.
    #[error("role {role} was not granted type {aggregate_type}: `outrider producers list` shows the grants")]
    NotGranted {
        /// The role.
        role: String,
        /// The type.
        aggregate_type: String,
    },
}

/// The aggregate type of orders; the table's CHECK names it as well.
const RESERVED: &str = "order";

/// Grants the types to the role, and writes that down.
pub async fn grant(
    connection: &mut PgConnection,
    change: &Change<'_>,
) -> Result<Result<Granted, Refusal>, sqlx::Error> {
    if change.types.iter().any(|aggregate_type| aggregate_type == RESERVED) {
        return Ok(Err(Refusal::Reserved));
    }
    let mut transaction = connection.begin().await?;
    let role = sqlx::query!(
        r#"-- producer_role
        SELECT r.oid AS "oid!", quote_ident(r.rolname) AS "quoted!",
            has_function_privilege(r.oid, p.oid, 'EXECUTE') AS "calls_append!", outrider_cluster() AS "system_identifier!"
        FROM pg_roles r, pg_proc p
        WHERE r.rolname = $1::text AND p.oid = 'outbox_append'::regproc"#,
        change.role,
    )
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(role) = role else {
        return Ok(Err(Refusal::NoSuchRole(change.role.to_owned())));
    };
    // A grant of an earlier role of that name, or from before a restore, is replaced.
    sqlx::query!(
        r#"-- drop_stale_grants
        DELETE FROM outbox_producers
        WHERE role_name = $1::text AND aggregate_type = ANY ($2) AND (role_oid, system_identifier) <> ($3, $4)"#,
        change.role,
        change.types,
        role.oid,
        role.system_identifier,
    )
    .execute(&mut *transaction)
    .await?;
    let new_types = sqlx::query_scalar!(
        r#"-- grant_types
        WITH granted AS (
            INSERT INTO outbox_producers (role_name, aggregate_type, role_oid, system_identifier, granted_by)
            SELECT DISTINCT $1::text::name, t, $3::oid, $4::bigint, session_user || ', ' || $5::text FROM unnest($2::text[]) t
            ON CONFLICT ON CONSTRAINT outbox_producers_pkey DO NOTHING
            RETURNING role_name, aggregate_type
        ), logged AS (
            INSERT INTO outbox_producer_log (action, role_name, aggregate_type, os_user, why)
            SELECT 'grant', role_name, aggregate_type, $5, $6 FROM granted
        )
        SELECT aggregate_type FROM granted"#,
        change.role,
        change.types,
        role.oid,
        role.system_identifier,
        change.os_user,
        change.why,
    )
    .fetch_all(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(Ok(Granted { new_types, calls_append: role.calls_append, quoted_role: role.quoted }))
}

/// Revokes the types from the role, and writes that down. A role that is gone can still have grants.
pub async fn revoke(connection: &mut PgConnection, change: &Change<'_>) -> Result<Result<(), Refusal>, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let revoked = sqlx::query_scalar!(
        r#"-- revoke_types
        WITH revoked AS (
            DELETE FROM outbox_producers WHERE role_name = $1::text AND aggregate_type = ANY ($2)
            RETURNING role_name, aggregate_type
        ), logged AS (
            INSERT INTO outbox_producer_log (action, role_name, aggregate_type, os_user, why)
            SELECT 'revoke', role_name, aggregate_type, $3, $4 FROM revoked
        )
        SELECT aggregate_type FROM revoked"#,
        change.role,
        change.types,
        change.os_user,
        change.why,
    )
    .fetch_all(&mut *transaction)
    .await?;
    if let Some(missing) = change.types.iter().find(|wanted| !revoked.contains(wanted)) {
        let (role, aggregate_type) = (change.role.to_owned(), missing.clone());
        return Ok(Err(Refusal::NotGranted { role, aggregate_type }));
    }
    transaction.commit().await?;
    Ok(Ok(()))
}

/// All grants, by type and role.
pub async fn list(connection: &mut PgConnection) -> Result<Vec<ProducerRow>, sqlx::Error> {
    sqlx::query_as!(
        ProducerRow,
        r#"-- list_producers
        SELECT p.role_name::text AS "role!", p.aggregate_type,
            CASE
                WHEN r.oid IS NULL THEN 'no such role'
                WHEN r.oid <> p.role_oid AND p.system_identifier = s.system_identifier THEN 'role replaced'
                WHEN has_function_privilege(r.oid, 'outbox_append'::regproc, 'EXECUTE') THEN 'good'
                ELSE 'cannot append'
            END AS "state!",
            p.granted_at, p.granted_by
        FROM (SELECT outrider_cluster() AS system_identifier) s, outbox_producers p LEFT JOIN pg_roles r ON r.rolname = p.role_name
        ORDER BY p.aggregate_type, p.role_name"#
    )
    .fetch_all(connection)
    .await
}
