//! The Postgres pool: where the database is, waiting for it, refusing an older schema, and which errors are worth another try.

use std::time::Duration;

use serde::Deserialize;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::{ConnectOptions, PgExecutor, PgPool};

use crate::backoff::Backoff;
use crate::config::{ConfigError, Env, Secret};
use crate::shutdown::Shutdown;

pub use silence::Silence;

mod silence;

/// The migrations of this build.
pub static MIGRATOR: Migrator = sqlx::migrate!("../migrations");

/// A connection that rested this long is tried before it is used: the server may have gone meanwhile. One that was used since is known to
/// be good as of then, and a round trip before each transaction would buy no more.
pub const RESTED: Duration = Duration::from_secs(1);

/// Where the database is, and as whom to go there.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    options: PgConnectOptions,
    connections_max: u32,
    silence: Silence,
}

#[derive(Deserialize)]
struct Parts {
    host: Option<String>,
    user: Option<String>,
    password: Option<Secret>,
    name: Option<String>,
    #[serde(default = "postgres_port")]
    port: u16,
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
        let mut options = match env.var("DATABASE_URL") {
            // The error does not repeat the URL: it holds the password.
            Some(url) => url.parse::<PgConnectOptions>().map_err(|error| {
                ConfigError::new(
                    "DATABASE_URL",
                    format!("is not of the form postgres://user:password@host:port/name ({error})"),
                )
            })?,
            None => parts.connect_options()?,
        };
        options = options
            .application_name(service)
            .log_statements(tracing::log::LevelFilter::Trace)
            .options([("TimeZone", "UTC")]);
        if let Some(role) = &parts.role {
            options = options.options([("role", role)]);
        }
        let silence = Silence::new(Duration::from_millis(parts.silence_max_ms));
        Ok(Self { options, connections_max: parts.connections_max, silence })
    }

    /// The same database with these server settings on every connection.
    #[must_use]
    pub fn with_settings<const N: usize>(mut self, settings: [(&str, &str); N]) -> Self {
        self.options = self.options.options(settings);
        self
    }

    /// How to open one connection outside of the pool.
    #[must_use]
    pub const fn connect_options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// For how long the server may be silent, for what is done with the pool.
    #[must_use]
    pub const fn silence(&self) -> &Silence {
        &self.silence
    }

    /// Opens the pool and checks that this is a primary, and its database one in UTF-8 with this build's schema. Tries once.
    ///
    /// # Errors
    /// When the server does not answer or refuses, is a standby, or the database has another encoding or an older schema.
    pub async fn open(&self) -> Result<PgPool, ConnectError> {
        let pool = PgPoolOptions::new().max_connections(self.connections_max).acquire_timeout(Duration::from_secs(5));
        let pool = self.silence.watch(pool).connect_with(self.options.clone()).await?;
        self.silence.bound(check(&pool)).await?;
        Ok(pool)
    }

    /// Opens the pool, waiting with backoff for a database that is not up yet, or is still a standby.
    ///
    /// # Errors
    /// When the schema is older than this build's, the database is not in UTF-8 or refuses us for good (wrong password, no such
    /// database), or the shutdown was asked for first.
    pub async fn connect(&self, shutdown: &Shutdown) -> Result<PgPool, ConnectError> {
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
    ) -> Result<PgPool, ConnectError> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            let error = match self.open().await {
                Err(error) if error.may_pass() => error,
                opened => return opened,
            };
            waiting(&error);
            let delay = backoff.random_delay();
            tracing::warn!(
                db.host = self.options.get_host(),
                db.port = self.options.get_port(),
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
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(host)
            .port(self.port)
            .username(user)
            .database(name)
            .ssl_mode(PgSslMode::Prefer);
        if let Some(password) = &self.password {
            options = options.password(password.expose());
        }
        Ok(options)
    }
}

/// What to do about a server that is a standby.
pub const ON_STANDBY: &str = "the Postgres server of DATABASE_URL is a standby (pg_is_in_recovery() is true), which takes no writes and may show commits in \
     another order than the primary: let DATABASE_URL name the primary, or an address that always leads to it, or promote this server";

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
    /// The server does not answer, or refuses.
    #[error("Postgres: {0}")]
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
            Self::SchemaTooOld { .. } | Self::Encoding { .. } | Self::ShutDown => false,
        }
    }
}

async fn check(pool: &PgPool) -> Result<(), ConnectError> {
    refuse_standby(pool).await?;
    refuse_encoding(pool).await?;
    check_schema(pool).await
}

/// Checks that this server is a primary. libpq's `target_session_attrs=read-write` for those who have no libpq.
///
/// # Errors
/// When it is a standby.
pub async fn refuse_standby<'e>(database: impl PgExecutor<'e>) -> Result<(), ConnectError> {
    let standby = sqlx::query_scalar::<_, bool>("SELECT pg_is_in_recovery()").fetch_one(database).await?;
    if standby { Err(ConnectError::Standby) } else { Ok(()) }
}

/// Checks that the database is in UTF-8, as records and JSON are: of another one, Postgres converts each text for us, or, from `SQL_ASCII`, hands
/// out bytes of which nobody knows what they mean.
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
    let needed = MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0);
    // Not checked at build time: the table belongs to sqlx.
    let found = sqlx::query_scalar::<_, Option<i64>>("SELECT max(version) FROM _sqlx_migrations WHERE success")
        .fetch_one(database)
        .await;
    let found = match found {
        Ok(found) => found.unwrap_or(0),
        Err(error) if sql_state(&error).as_deref() == Some("42P01") => 0,
        Err(error) => return Err(error.into()),
    };
    if found < needed { Err(ConnectError::SchemaTooOld { found, needed }) } else { Ok(()) }
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
            let options = config.expect("complete").options;
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
