//! The Postgres pool: where the database is, waiting for it, refusing an older schema, and which errors are worth another try.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::{ConnectOptions, PgPool};

use crate::backoff::Backoff;
use crate::config::{ConfigError, Env, Secret, check_file};
use crate::shutdown::Shutdown;
use checks::check;
use connector::follow_primary;

pub use checks::{check_schema, refuse_encoding};
pub use connector::Connector;
pub use diagnosis::strangers;
pub use objects::describe;
pub use pool::{Database, PooledConnection};
pub use watch::{MaybePostgres, READ_ONLY, ServerWatch, TAKES_WRITES};
pub use words::{chain, words};

mod checks;
mod connector;
mod diagnosis;
mod objects;
mod pool;
mod settings;
mod url;
mod watch;
mod words;

/// The migrations of this build.
pub static MIGRATOR: Migrator = sqlx::migrate!("../migrations");

/// The oldest Postgres that is supported, as a server says its version: what is tested, and the oldest that its makers keep up.
pub const SERVER_VERSION_MIN: u32 = 150_000;

/// A connection that rested this long is tried before it is used: the server may have gone meanwhile. One that was used since is known to
/// be good as of then, and a round trip before each transaction would buy no more.
pub const RESTED: Duration = Duration::from_secs(1);

/// Where the database is, and as whom to go there.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    /// At least one.
    servers: Vec<PgConnectOptions>,
    settings: Vec<(String, String)>,
    role: Option<String>,
    connections_max: u32,
    watch: ServerWatch,
}

#[derive(Deserialize)]
struct Parts {
    host: Option<String>,
    user: Option<String>,
    password: Option<Secret>,
    name: Option<String>,
    #[serde(default = "postgres_port")]
    port: u16,
    sslmode: Option<String>,
    sslrootcert: Option<PathBuf>,
    schema: Option<String>,
    role: Option<String>,
    #[serde(default = "ten")]
    connections_max: u32,
    #[serde(default = "ten_seconds")]
    silence_max_ms: u64,
}

const fn postgres_port() -> u16 {
    5432
}

const fn ten() -> u32 {
    10
}

const fn ten_seconds() -> u64 {
    10_000
}

impl DatabaseConfig {
    /// Reads `DATABASE_URL`, or `DB_HOST`, `DB_USER`, `DB_PASSWORD`, `DB_NAME` and `DB_PORT`; then `DB_ROLE`,
    /// `DB_CONNECTIONS_MAX` and `DB_SILENCE_MAX_MS`. `service` becomes the connections' `application_name`.
    ///
    /// # Errors
    /// When neither form is complete, or a part cannot be parsed.
    pub fn from_env(env: &Env, service: &str) -> Result<Self, ConfigError> {
        let parts: Parts = env.section("DB_")?;
        if parts.connections_max == 0 {
            return Err(ConfigError::new("DB_CONNECTIONS_MAX", "must be at least 1"));
        }
        if !(100..=3_600_000).contains(&parts.silence_max_ms) {
            return Err(ConfigError::new("DB_SILENCE_MAX_MS", "must be from 100 to 3600000"));
        }
        // Its functions and migrations name it, so another one would be half used.
        if let Some(schema) = parts.schema.as_deref().filter(|schema| *schema != "public") {
            return Err(ConfigError::new(
                "DB_SCHEMA",
                format!("is {schema:?}, but all tables are in the schema public"),
            ));
        }
        let servers = match env.var("DATABASE_URL") {
            // The error does not repeat the URL: it holds the password.
            Some(url) => url::parse(url).map_err(|error| ConfigError::new("DATABASE_URL", error))?,
            None => vec![parts.connect_options()?],
        };
        let server = |server: PgConnectOptions| {
            server.application_name(service).log_statements(tracing::log::LevelFilter::Trace)
        };
        Ok(Self {
            servers: servers.into_iter().map(server).collect(),
            settings: Vec::new(),
            role: parts.role,
            connections_max: parts.connections_max,
            watch: ServerWatch::new(Duration::from_millis(parts.silence_max_ms)),
        })
    }

    /// The same database with these server settings on every connection.
    #[must_use]
    pub fn with_settings<const N: usize>(mut self, settings: [(&str, &str); N]) -> Self {
        self.settings.extend(settings.map(|(name, value)| (name.to_owned(), value.to_owned())));
        self
    }

    /// The server, or the first of several.
    #[must_use]
    pub fn server(&self) -> &PgConnectOptions {
        &self.servers[0]
    }

    /// How to open one connection outside of the pool.
    #[must_use]
    pub fn connector(&self) -> Connector {
        Connector::new(self.servers.clone(), &self.settings, self.role.as_deref())
    }

    /// Opens the pool to the first server that is a primary, after [`check`]ing it. Tries each once.
    ///
    /// # Errors
    /// When no server answers, or the last one that did will not do.
    pub async fn open(&self) -> Result<Database, ConnectError> {
        let connector = self.connector();
        let mut error = ConnectError::Standby;
        for server in connector.servers() {
            match self.open_at(&connector, server).await {
                Ok(pool) => return Ok(Database::new(pool, self.watch.clone())),
                Err(refused) => error = refused,
            }
        }
        Err(error)
    }

    async fn open_at(&self, connector: &Connector, server: &PgConnectOptions) -> Result<PgPool, ConnectError> {
        self.watch.bound(connector.refuse_pooler(server)).await?;
        self.watch.bound(async { check(&mut connector.connect_to(server).await?, server).await }).await?;
        let pool = PgPoolOptions::new().max_connections(self.connections_max).acquire_timeout(Duration::from_secs(5));
        let (connector, watch) = (connector.clone(), self.watch.clone());
        let pool = pool.after_connect(move |connection, _| {
            let (connector, watch) = (connector.clone(), watch.clone());
            Box::pin(async move {
                let set_up = connector.set_up(connection).await;
                set_up.inspect_err(|error| watch.refuse(error)).map_err(ConnectError::into_sqlx)
            })
        });
        Ok(self.watch.watch(pool).connect_with(server.clone()).await?)
    }

    /// Opens the pool, waiting with backoff for a database that is not up yet, or is still a standby.
    ///
    /// # Errors
    /// When the schema is older than this build's, the database is not in UTF-8 or refuses us for good (wrong password, no such
    /// database), or the shutdown was asked for first.
    pub async fn connect(&self, shutdown: &Shutdown) -> Result<Database, ConnectError> {
        self.connect_telling(shutdown, |_| {}).await
    }

    /// Like [`Self::connect`]; `waiting` is told, at each try, what is waited for.
    ///
    /// # Errors
    /// Those of [`Self::connect`].
    pub async fn connect_telling(
        &self,
        shutdown: &Shutdown,
        waiting: impl Fn(&ConnectError),
    ) -> Result<Database, ConnectError> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            let error = match self.open().await {
                Err(error) if error.may_pass() => error,
                Err(error) => return Err(error),
                Ok(database) => {
                    if self.servers.len() > 1 {
                        tokio::spawn(follow_primary(database.clone(), self.connector(), shutdown.clone()));
                    }
                    return Ok(database);
                }
            };
            waiting(&error);
            let delay = backoff.random_delay();
            tracing::warn!(
                db.host = self.server().get_host(),
                db.port = self.server().get_port(),
                error = %error,
                retry_in_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
                "waiting for Postgres"
            );
            if !shutdown.sleep(delay).await {
                return Err(ConnectError::ShutDown);
            }
        }
    }
}

impl Parts {
    fn connect_options(&self) -> Result<PgConnectOptions, ConfigError> {
        let missing =
            |variable: &str| ConfigError::new(variable, "is not set; set it, or DATABASE_URL for all of DB_*");
        let Some(host) = &self.host else {
            return Err(ConfigError::new(
                "DATABASE_URL",
                "is not set; set it, or DB_HOST, DB_USER, DB_PASSWORD and DB_NAME",
            ));
        };
        let user = self.user.as_ref().ok_or_else(|| missing("DB_USER"))?;
        let name = self.name.as_ref().ok_or_else(|| missing("DB_NAME"))?;
        let mut options =
            PgConnectOptions::new_without_pgpass().host(host).port(self.port).username(user).database(name).ssl_mode(
                match &self.sslmode {
                    None => PgSslMode::Prefer,
                    Some(mode) => mode.parse().map_err(|_| {
                        ConfigError::new(
                            "DB_SSLMODE",
                            "is not one of disable, allow, prefer, require, verify-ca, verify-full",
                        )
                    })?,
                },
            );
        if let Some(path) = &self.sslrootcert {
            check_file("DB_SSLROOTCERT", Some(path))?;
            options = options.ssl_root_cert(path);
        }
        if let Some(password) = &self.password {
            options = options.password(password.expose());
        }
        Ok(options)
    }
}

/// What to do about a server that is a standby.
pub const ON_STANDBY: &str = "the Postgres server of DATABASE_URL is a standby (pg_is_in_recovery() is true), which takes no writes and may show commits in \
     another order than the primary: let DATABASE_URL name the primary, or an address that always leads to it, or promote this server";

/// What to do where `role`, which is to own our functions, may not ask which Postgres cluster it is in.
#[must_use]
pub fn how_to_know_cluster(role: &str) -> String {
    format!(
        "the role {role}, which owns the tables, may not call pg_control_system(), by which the database is told from a copy that was restored \
         elsewhere: have an administrator run `GRANT EXECUTE ON FUNCTION pg_control_system() TO {role}` in this database"
    )
}

/// Why there is no pool.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The database has not all of this build's migrations.
    #[error("the database schema is at version {found}, this build needs {needed}: run `outrider migrate`")]
    SchemaTooOld {
        /// Highest migration applied; 0 for none.
        found: i64,
        /// Highest migration of this build.
        needed: i64,
    },
    /// The server only follows another one. A fail-over may make it the primary.
    #[error("{}", ON_STANDBY)]
    Standby,
    /// The database is not in UTF-8. Nothing can change that of a database.
    #[error(
        "the encoding of the database is {found}, in which events with other characters cannot be written or read: create a database with \
         `CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0`, and let DATABASE_URL name that one"
    )]
    Encoding {
        /// Postgres's name of it.
        found: String,
    },
    /// A policy may hide rows from us.
    #[error(
        "row-level security is on for the table {table} and holds for the role {role}: rows that a policy hides would be passed over; turn it off \
         with `ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY` and `ALTER TABLE {table} DISABLE ROW LEVEL SECURITY`, or give the role BYPASSRLS"
    )]
    RowSecurity {
        /// One of the tables.
        table: String,
        /// Who we are to the server.
        role: String,
    },
    /// Nothing tells the database from a copy of it elsewhere.
    #[error("{}", how_to_know_cluster(.role))]
    ClusterUnknown {
        /// The owner of our functions.
        role: String,
    },
    /// What answers is no session of a server.
    #[error(
        "DATABASE_URL leads through a pooler that gives each transaction another session (PgBouncer: pool_mode=transaction or statement): role, settings and \
         locks of a connection would be lost, or pass to others; let it lead to the server, or to a pool with pool_mode=session"
    )]
    Pooler,
    /// The server lacks what we rely on.
    #[error("the Postgres server has version {found}, and the oldest that is supported is {}", SERVER_VERSION_MIN / 10_000)]
    ServerTooOld {
        /// Its major version.
        found: u32,
    },
    /// The server does not answer, or refuses.
    #[error("Postgres: {}", words(.0))]
    Refused(#[from] sqlx::Error),
    /// The shutdown was asked for while waiting.
    #[error("shut down while waiting for Postgres")]
    ShutDown,
}

impl ConnectError {
    /// Whether the next try may succeed, without anybody changing our settings.
    fn may_pass(&self) -> bool {
        match self {
            Self::Standby => true,
            Self::Refused(error) => !is_refused_for_good(error),
            Self::SchemaTooOld { .. }
            | Self::Encoding { .. }
            | Self::RowSecurity { .. }
            | Self::ClusterUnknown { .. }
            | Self::Pooler
            | Self::ServerTooOld { .. }
            | Self::ShutDown => false,
        }
    }

    /// As an error of a connection that was opened and will not do.
    #[must_use]
    pub fn into_sqlx(self) -> sqlx::Error {
        match self {
            Self::Refused(error) => error,
            other => std::io::Error::other(other.to_string()).into(),
        }
    }
}

impl MaybePostgres for ConnectError {
    fn postgres(&self) -> Option<&sqlx::Error> {
        match self {
            Self::Refused(error) => Some(error),
            _ => None,
        }
    }
}

/// The five characters by which Postgres classes an error, if it came from Postgres.
#[must_use]
pub fn sql_state(error: &sqlx::Error) -> Option<String> {
    error.as_database_error()?.code().map(std::borrow::Cow::into_owned)
}

/// Whether the same statement may succeed later: the connection broke or could not be had, the server is going down or coming
/// up, or the transaction lost to another one. Classes as in PostgreSQL's Appendix A.
#[must_use]
pub fn is_retryable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            // 08 connection, 53 resources, 55P03 lock not available, 57P0x shutting down or starting, 58 system, 25006 read-only after a
            // fail-over, 40 rollback (serialization failure, deadlock).
            ["08", "40", "53", "55P03", "57", "58", "25006"].iter().any(|class| code.starts_with(class))
        }),
        _ => false,
    }
}

/// Wrong password, unknown role or database, no right to connect: waiting will not help.
fn is_refused_for_good(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => {
            error.code().is_some_and(|code| ["28", "3D", "22", "42"].iter().any(|class| code.starts_with(class)))
        }
        sqlx::Error::Configuration(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<DatabaseConfig, ConfigError> {
        DatabaseConfig::from_env(&Env::from_pairs(pairs.iter().copied()), "outrider-test")
    }

    #[test]
    fn parts_and_url_say_the_same() {
        let parts = [("DB_HOST", "db"), ("DB_USER", "u"), ("DB_PASSWORD", "p"), ("DB_NAME", "n"), ("DB_PORT", "5433")];
        for config in [read(&parts), read(&[("DATABASE_URL", "postgres://u:p@db:5433/n")])] {
            let config = config.expect("complete");
            let options = config.server();
            assert_eq!((options.get_host(), options.get_port()), ("db", 5433));
            assert_eq!((options.get_username(), options.get_database()), ("u", Some("n")));
            assert_eq!(options.get_application_name(), Some("outrider-test"));
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(read(&[]).unwrap_err().to_string().starts_with("DATABASE_URL: is not set"));
        assert!(read(&[("DB_HOST", "db")]).unwrap_err().to_string().starts_with("DB_USER: is not set"));
        assert!(
            read(&[("DB_HOST", "db"), ("DB_PORT", "x")]).unwrap_err().to_string().starts_with("DB_PORT: invalid digit")
        );
    }

    #[test]
    fn a_bad_url_does_not_show_its_password() {
        let error = read(&[("DATABASE_URL", "postgres://u:hunter2@db:port/n")]).unwrap_err().to_string();
        assert!(error.starts_with("DATABASE_URL: "), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
