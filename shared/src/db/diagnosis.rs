//! A look at a database and the way to it: everything that keeps a service from working, or will.

use chrono::Utc;
use sqlx::PgConnection;

use super::checks::{self, is_encrypted, is_local};
use super::{ConnectError, DatabaseConfig, SERVER_VERSION_MIN, objects, settings};
use crate::clock;
use crate::findings::{Finding, fine_if_none};

impl DatabaseConfig {
    /// Looks at the way to the database and at what every service needs of it. Returns a connection too, unless there can be none.
    pub async fn diagnose(&self) -> (Vec<Finding>, Option<PgConnection>) {
        let connector = self.connector();
        if let Err(error) = connector.refuse_poolers().await {
            return (vec![self.no_connection(&error)], None);
        }
        let connected = self.watch.bound(connector.connect()).await;
        let mut connection = match connected {
            Ok(connection) => connection,
            Err(error) => return (vec![self.no_connection(&error)], None),
        };
        let mut findings = vec![Finding::fine("database.pooler", "each connection is a session of the server")];
        match self.watch.bound(self.look(&mut connection)).await {
            Ok(found) => findings.extend(found),
            Err(error) => findings.push(refusal(&error)),
        }
        (findings, Some(connection))
    }

    fn no_connection(&self, error: &ConnectError) -> Finding {
        let ConnectError::Refused(_) = error else { return refusal(error) };
        let (host, port) = (self.server().get_host(), self.server().get_port());
        Finding::wrong(
            "database.connection",
            format!("no connection to {host}:{port} ({error})"),
            "check DATABASE_URL, that the server runs, and that its pg_hba.conf lets us in",
        )
    }

    async fn look(&self, connection: &mut PgConnection) -> Result<Vec<Finding>, ConnectError> {
        let mut findings = vec![version(connection).await?];
        findings.push(fine_unless("database.encoding", "UTF8", checks::refuse_encoding(&mut *connection).await)?);
        let schema = checks::is_newer_schema(&mut *connection).await;
        let is_newer = schema.as_ref().ok().copied();
        findings.push(fine_unless("database.schema", "all migrations of this build are applied", schema)?);
        findings.push(fine_unless(
            "database.row_security",
            "hides no row from us",
            checks::refuse_row_security(connection).await,
        )?);
        if let Some(is_newer) = is_newer {
            let cluster = checks::refuse_unknown_cluster(connection).await;
            findings.push(fine_unless("database.cluster", "which cluster this is can be known", cluster)?);
            findings.extend(fine_if_none(
                "database.objects",
                "all that the migrations made",
                objects::missing(connection).await?,
            ));
            let mut grants = objects::missing_grants(connection).await?;
            if !is_newer {
                grants.extend(objects::surplus_grants(connection).await?);
            }
            findings.extend(fine_if_none("database.grants", "each role has what it needs, and no more", grants));
        }
        findings.extend(fine_if_none("database.settings", "no setting harms", settings::check(connection).await?));
        findings.extend(strangers(connection).await?);
        findings.push(self.encryption(connection).await?);
        findings.extend(fine_if_none("database.connections", "there is room", self.connections(connection).await?));
        findings.push(clock(connection).await?);
        findings.extend(fine_if_none(
            "database.locks",
            "no service waits for a lock of others",
            locks(connection).await?,
        ));
        Ok(findings)
    }

    /// Whether others can read what is said on the way.
    async fn encryption(&self, connection: &mut PgConnection) -> Result<Finding, sqlx::Error> {
        const CHECK: &str = "database.tls";
        // Each of several servers is as far as the others.
        Ok(if is_local(self.server()) {
            Finding::fine(CHECK, "the connection does not leave this machine")
        } else if is_encrypted(connection).await? {
            Finding::fine(CHECK, "the connection is encrypted")
        } else {
            Finding::warning(CHECK, checks::PLAIN, checks::ENCRYPT)
        })
    }

    /// Whether the server will have a pool's connections.
    async fn connections(&self, connection: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
        const CHECK: &str = "database.connections";
        let (places, used): (i64, i64) = sqlx::query_as(
            "SELECT (SELECT sum(CASE name WHEN 'max_connections' THEN 1 ELSE -1 END * setting::bigint) FROM pg_settings
                WHERE name IN ('max_connections', 'superuser_reserved_connections', 'reserved_connections'))::bigint,
                (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')",
        )
        .fetch_one(&mut *connection)
        .await?;
        let pool = i64::from(self.connections_max);
        let mut findings = Vec::new();
        if places - used < pool {
            findings.push(Finding::warning(
                CHECK,
                format!("{used} of the server's {places} connections are taken, and a service may want {pool} (DB_CONNECTIONS_MAX)"),
                "raise max_connections, lower DB_CONNECTIONS_MAX, or end what is not needed (pg_stat_activity)",
            ));
        }
        let limits: Vec<(String, i32)> = sqlx::query_as(
            "SELECT 'ROLE ' || quote_ident(r.rolname), r.rolconnlimit FROM pg_roles r
            WHERE r.rolconnlimit >= 0 AND (r.rolname = session_user OR EXISTS (
                SELECT FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
                WHERE m.member = r.oid AND g.rolname IN ('outrider_api', 'outrider_relay', 'outrider_processor')))
            UNION ALL
            SELECT 'DATABASE ' || quote_ident(datname), datconnlimit FROM pg_database
            WHERE datname = current_database() AND datconnlimit >= 0
            ORDER BY 1",
        )
        .fetch_all(connection)
        .await?;
        findings.extend(limits.into_iter().filter(|(_, limit)| i64::from(*limit) < pool).map(|(place, limit)| {
            Finding::warning(
                CHECK,
                format!("{place} has CONNECTION LIMIT {limit}, and a service may want {pool} (DB_CONNECTIONS_MAX)"),
                format!("run `ALTER {place} CONNECTION LIMIT -1`, or lower DB_CONNECTIONS_MAX"),
            )
        }));
        Ok(findings)
    }
}

/// What a refusal says. The database's own errors are not findings.
fn fine_unless<T>(check: &'static str, words: &str, checked: Result<T, ConnectError>) -> Result<Finding, ConnectError> {
    match checked {
        Ok(_) => Ok(Finding::fine(check, words)),
        Err(error @ ConnectError::Refused(_)) => Err(error),
        Err(error) => Ok(refusal(&error)),
    }
}

fn refusal(error: &ConnectError) -> Finding {
    let check = match error {
        ConnectError::SchemaTooOld { .. } => "database.schema",
        ConnectError::Standby => "database.primary",
        ConnectError::Encoding { .. } => "database.encoding",
        ConnectError::RowSecurity { .. } => "database.row_security",
        ConnectError::ClusterUnknown { .. } => "database.cluster",
        ConnectError::Pooler => "database.pooler",
        ConnectError::ServerTooOld { .. } => "database.version",
        ConnectError::Refused(_) | ConnectError::ShutDown => "database.connection",
    };
    Finding::error(check, error)
}

async fn version(connection: &mut PgConnection) -> Result<Finding, sqlx::Error> {
    let version: String = sqlx::query_scalar("SELECT current_setting('server_version')").fetch_one(connection).await?;
    let oldest = SERVER_VERSION_MIN / 10_000;
    Ok(Finding::fine("database.version", format!("Postgres {version}; {oldest} is the oldest that is supported")))
}

/// Whether everybody may create objects in the schema `public`.
///
/// # Errors
/// What the database says.
pub async fn strangers(connection: &mut PgConnection) -> Result<Option<Finding>, sqlx::Error> {
    let owner: Option<String> = sqlx::query_scalar(
        "SELECT nspowner::regrole::text FROM pg_namespace
        WHERE nspname = 'public' AND has_schema_privilege('public', oid, 'CREATE')",
    )
    .fetch_optional(connection)
    .await?;
    Ok(owner.map(|owner| {
        Finding::warning(
            "database.public",
            "every login may create objects in the schema public, and functions that run with their owner's rights may meet them",
            format!("have {owner} run `REVOKE CREATE ON SCHEMA public FROM PUBLIC`"),
        )
    }))
}

/// Who holds what our services wait for, at the head of all that wait.
async fn locks(connection: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let holders: Vec<(i32, String, f64)> = sqlx::query_as(
        "WITH RECURSIVE ahead (pid) AS (
            SELECT unnest(pg_blocking_pids(a.pid)) FROM pg_stat_activity a
            WHERE a.application_name LIKE 'outrider-%' AND a.datname = current_database() AND a.query_start < clock_timestamp() - interval '1 s'
            UNION
            SELECT unnest(pg_blocking_pids(pid)) FROM ahead
        )
        SELECT a.pid, concat_ws(' of ', nullif(a.application_name, ''), a.usename),
            coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8
        FROM ahead JOIN pg_stat_activity a USING (pid)
        WHERE cardinality(pg_blocking_pids(pid)) = 0
        ORDER BY 3 DESC",
    )
    .fetch_all(connection)
    .await?;
    Ok(holders
        .into_iter()
        .map(|(pid, who, secs)| {
            Finding::wrong(
                "database.locks",
                format!("a service waits for a lock that {who} (process {pid}) has held for {secs:.0} s"),
                format!("ask its owner, else run `SELECT pg_terminate_backend({pid})`"),
            )
        })
        .collect())
}

async fn clock(connection: &mut PgConnection) -> Result<Finding, sqlx::Error> {
    let before = Utc::now();
    let theirs = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(connection).await?;
    Ok(clock::judge("database.clock", "the database server", clock::distance(theirs, before, Utc::now())))
}
