//! Opening connections: to a primary, as the role that is meant, and with every setting that the code relies on, whatever an administrator has
//! set for the database or the login.
//!
//! By statements, and not as parameters of the connection's start: a pooler like PgBouncer refuses those, or drops them without a word.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection, Row};

use super::{ConnectError, Database, SERVER_VERSION_MIN, sql_state};
use crate::shutdown::Shutdown;

/// What every connection relies on.
const SETTINGS: [(&str, &str); 10] = [
    // First, as it says how the rest is read.
    ("standard_conforming_strings", "on"),
    ("default_transaction_isolation", "read committed"),
    // Rows that a policy hides would be passed over, as if they were not there. So this is an error.
    ("row_security", "off"),
    ("search_path", "public"),
    ("TimeZone", "UTC"),
    ("DateStyle", "ISO, MDY"),
    // So the server notices clients that have vanished, and gives up their locks.
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "2"),
    ("tcp_keepalives_count", "5"),
    ("tcp_user_timeout", "20000"),
];

/// Has a commit that was told survive a crash, also where an administrator has it otherwise; a stronger promise than that stays. And has the server
/// end a statement whose client has closed the connection: one that waits for a lock would otherwise go on waiting, with the locks that its
/// transaction has, and the next attempt would wait for those. No Postgres on Windows can do that.
const BY_WHAT_IS_SET: &str = "DO $$ BEGIN
    IF pg_catalog.current_setting('synchronous_commit') = 'off' THEN
        PERFORM pg_catalog.set_config('synchronous_commit', 'on', false);
    END IF;
    PERFORM pg_catalog.set_config('client_connection_check_interval', '2s', false);
EXCEPTION WHEN invalid_parameter_value THEN NULL; END $$; ";

/// How long it may take to tell a pooler from a server.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);

/// What is said when it takes longer.
const SILENT: &str =
    "two connections have not been answered within 5 s; a pooler that has no room for two does not answer either";

/// Opens connections to one database.
#[derive(Debug, Clone)]
pub struct Connector {
    /// At least one; which of them is the primary may change.
    servers: Arc<[PgConnectOptions]>,
    /// Statements that make a new connection what it is to be, and tell whether it leads to a standby.
    setup: Arc<str>,
}

impl Connector {
    /// Connects to the first of `servers` that is a primary, with `settings` beside what every connection relies on, and under `role`, if
    /// that is not the login's own.
    pub(super) fn new(servers: Vec<PgConnectOptions>, settings: &[(String, String)], role: Option<&str>) -> Self {
        let mut setup = String::new();
        let own = settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in SETTINGS.into_iter().chain(own) {
            let _ = write!(setup, "SET {name} TO '{}'; ", value.replace('\'', "''"));
        }
        setup.push_str(BY_WHAT_IS_SET);
        if let Some(role) = role {
            // Last: the others are the login's to set.
            let _ = write!(setup, "SET ROLE \"{}\"; ", role.replace('"', "\"\""));
        }
        setup.push_str("SELECT pg_is_in_recovery()");
        // A pooler may refuse it, and it is for other types than ours.
        let servers = servers.into_iter().map(|server| server.extra_float_digits(None));
        Self { servers: servers.collect(), setup: setup.into() }
    }

    /// Connects to the server of `options`, as its login.
    #[must_use]
    pub fn plain(options: PgConnectOptions) -> Self {
        Self::new(vec![options], &[], None)
    }

    /// The servers, in their order.
    pub(super) fn servers(&self) -> &[PgConnectOptions] {
        &self.servers
    }

    /// Opens a connection to the first server that is a primary.
    ///
    /// # Errors
    /// When none of them is, or takes us: that of the last one.
    pub async fn connect(&self) -> Result<PgConnection, ConnectError> {
        let mut error = ConnectError::Standby;
        for server in self.servers.iter() {
            match self.connect_to(server).await {
                Ok(connection) => return Ok(connection),
                Err(refused) => error = refused,
            }
        }
        Err(error)
    }

    /// Opens a connection to one server.
    pub(super) async fn connect_to(&self, server: &PgConnectOptions) -> Result<PgConnection, ConnectError> {
        let mut connection = server.connect().await?;
        self.set_up(&mut connection).await?;
        Ok(connection)
    }

    /// Makes a new connection what it is to be. One round trip.
    pub(super) async fn set_up(&self, connection: &mut PgConnection) -> Result<(), ConnectError> {
        if let Some(found) = connection.server_version_num().filter(|found| *found < SERVER_VERSION_MIN) {
            return Err(ConnectError::ServerTooOld { found: found / 10_000 });
        }
        let setup = sqlx::raw_sql(AssertSqlSafe(&*self.setup)).fetch_one(connection).await?;
        if setup.try_get::<bool, _>(0)? { Err(ConnectError::Standby) } else { Ok(()) }
    }

    /// [`Self::refuse_pooler`] for all servers; one that cannot be connected to has nothing to refuse.
    ///
    /// # Errors
    /// When a pooler gives each transaction another session, or what has taken our connection does not answer.
    pub async fn refuse_poolers(&self) -> Result<(), ConnectError> {
        for server in self.servers.iter() {
            match self.refuse_pooler(server).await {
                Err(ConnectError::Refused(error)) if !is_timed_out(&error) => {}
                checked => checked?,
            }
        }
        Ok(())
    }

    /// Checks that a connection is one session of the server, to which settings, role and locks belong. With a pooler that gives each
    /// transaction whatever session is free, they would be lost, or pass to others.
    pub(super) async fn refuse_pooler(&self, server: &PgConnectOptions) -> Result<(), ConnectError> {
        // No proof of a pooler: a busy machine is as slow.
        let late = || io::Error::new(io::ErrorKind::TimedOut, SILENT);
        let is_one = tokio::time::timeout(PROBE_PATIENCE, is_one_session(server)).await;
        let is_one = is_one.map_err(|_| ConnectError::Refused(late().into()))??;
        if is_one { Ok(()) } else { Err(ConnectError::Pooler) }
    }
}

fn is_timed_out(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut)
}

/// Whether a connection stays with its session while another one has a transaction open, which a pooler may have given that session.
async fn is_one_session(server: &PgConnectOptions) -> Result<bool, ConnectError> {
    let (mut ours, mut other) = (server.connect().await?, server.connect().await?);
    let mut sessions = Vec::new();
    for round in 0..3 {
        // Simple queries: statements that are prepared are another thing that would be lost.
        let mark = format!("SELECT pg_backend_pid(), set_config('outrider.session', '{round}', false)");
        let row = sqlx::raw_sql(AssertSqlSafe(mark)).fetch_one(&mut ours).await?;
        sessions.push(row.try_get::<i32, _>(0)?);
        match sqlx::raw_sql("BEGIN; SELECT 1").execute(&mut other).await {
            // A pooler that gives each statement another session takes no transactions.
            Err(error) if sql_state(&error).is_some_and(|state| state == "08P01") => return Ok(false),
            begun => begun?,
        };
        let look = "SELECT pg_backend_pid(), coalesce(current_setting('outrider.session', true), '')";
        let row = sqlx::raw_sql(look).fetch_one(&mut ours).await?;
        sessions.push(row.try_get::<i32, _>(0)?);
        let is_marked = row.try_get::<String, _>(1)? == round.to_string();
        sqlx::raw_sql("ROLLBACK").execute(&mut other).await?;
        if !is_marked {
            return Ok(false);
        }
    }
    sessions.dedup();
    Ok(sessions.len() == 1)
}

/// Has the pool of several servers open its connections to the one that is the primary, until the shutdown.
pub(super) async fn follow_primary(Database { pool, .. }: Database, connector: Connector, shutdown: Shutdown) {
    while shutdown.sleep(FOLLOW_INTERVAL).await {
        let current = pool.connect_options();
        let is_current = |server: &PgConnectOptions| {
            (server.get_host(), server.get_port()) == (current.get_host(), current.get_port())
        };
        let is_primary = async |server: &PgConnectOptions| {
            let connected = tokio::time::timeout(FOLLOW_PATIENCE, connector.connect_to(server)).await;
            matches!(connected, Ok(Ok(_)))
        };
        let (now, others): (Vec<_>, Vec<_>) = connector.servers().iter().partition(|server| is_current(server));
        let mut found = None;
        for server in now.into_iter().chain(others) {
            if is_primary(server).await {
                found = Some(server);
                break;
            }
        }
        if let Some(server) = found.filter(|server| !is_current(server)) {
            tracing::info!(
                db.host = server.get_host(),
                db.port = server.get_port(),
                "another server is the primary now"
            );
            pool.set_connect_options(server.clone());
        }
    }
}

/// Between two looks at which of several servers is the primary.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

/// How long a server may take to say so.
const FOLLOW_PATIENCE: Duration = Duration::from_secs(2);
