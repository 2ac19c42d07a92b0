//! A private Postgres: its own folder, port, superuser and password; on loopback only.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rand::RngExt;
use rand::distr::Alphanumeric;
use rustix::process::Signal;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};

use super::process::{Launch, Process, User};
use super::reaper::Reaper;
use super::{free_port, make_passable, reachable, unprivileged_user};

pub mod binaries;

pub use binaries::{Binaries, Source};

/// The name of the superuser.
const SUPERUSER: &str = "postgres";

/// How long a start may take; replaying the log after a crash is part of it.
const START_PATIENCE: Duration = Duration::from_mins(1);

/// How long a stop may take; the last checkpoint is part of it.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// How often a start is tried again when somebody else took the port meanwhile.
const START_ATTEMPTS: u32 = 3;

/// What to start.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// The folder that holds the data and the password. Made when it is missing.
    pub folder: PathBuf,
    /// The file for the server's log.
    pub log: PathBuf,
    /// Whether a crash of the machine may lose nothing. Tests do without and are faster.
    pub durable: bool,
    /// Further settings, as in `postgresql.conf`.
    pub settings: Vec<(String, String)>,
}

/// A running Postgres server that is ours.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    port: u16,
    password: String,
    version: String,
    folder: PathBuf,
}

impl Postgres {
    /// Makes the data folder if there is none yet, starts the server and waits until it answers.
    pub async fn start(binaries: &Binaries, options: &PostgresOptions, reaper: &Reaper) -> Result<Self> {
        let user = unprivileged_user()?;
        let folder = reachable(&options.folder, user)?;
        make_passable(&folder)?;
        let cluster = Cluster { binaries, options, folder, user };
        if !cluster.data().join("PG_VERSION").exists() {
            cluster.init(reaper).await?;
        }
        binaries.check_matches(&cluster.data())?;
        cluster.start(reaper).await
    }

    /// The connection URL of one of its databases, as superuser, password included.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{SUPERUSER}:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    /// The port that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The version, such as `15.13`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The folder that holds data and password. It is another one than asked for when root asked for one that the
    /// server's user can't reach.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its process, to wait for or to be cruel to.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Makes a database unless there is one of that name.
    pub async fn create_database(&self, name: &str) -> Result<()> {
        let mut connection = connect(&self.url("postgres")).await?;
        let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
            .bind(name)
            .fetch_one(&mut connection)
            .await?;
        if !exists {
            let quoted = name.replace('"', "\"\"");
            connection
                .execute(AssertSqlSafe(format!("CREATE DATABASE \"{quoted}\"")))
                .await
                .with_context(|| format!("cannot create the database {name}"))?;
        }
        connection.close().await?;
        Ok(())
    }

    /// Stops the server in good order: connections are cut, everything is written.
    pub async fn stop(&mut self) -> Result<()> {
        self.process.stop().await.map(drop)
    }
}

/// Opens one connection without logging its statements.
pub async fn connect(url: &str) -> Result<PgConnection> {
    let options: PgConnectOptions = url.parse().context("this is no Postgres URL")?;
    let options = options.application_name("outrider").disable_statement_logging();
    PgConnection::connect_with(&options).await.context("cannot connect to Postgres")
}

/// What is known while the server is being started.
struct Cluster<'a> {
    binaries: &'a Binaries,
    options: &'a PostgresOptions,
    folder: PathBuf,
    user: Option<User>,
}

impl Cluster<'_> {
    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn password_file(&self) -> PathBuf {
        self.folder.join("password")
    }

    /// Makes the data folder under another name first, so that an interrupted attempt is never taken for a whole one.
    async fn init(&self, reaper: &Reaper) -> Result<()> {
        let unfinished = self.folder.join("data.new");
        remove_if_present(&unfinished)?;
        fs::create_dir(&unfinished).context("cannot create the data folder")?;
        self.hand_over(&unfinished)?;
        self.write_password()?;

        let mut launch = Launch::new("initdb", self.binaries.folder().join("initdb"))
            .args(["--encoding=UTF8", "--locale=C", "--auth=scram-sha-256"])
            .arg(format!("--username={SUPERUSER}"))
            .arg(format!("--pwfile={}", self.password_file().display()))
            .arg(format!("--pgdata={}", unfinished.display()));
        if !self.options.durable {
            launch = launch.arg("--no-sync");
        }
        self.prepare(launch).run(reaper).await?;
        fs::rename(&unfinished, self.data()).context("cannot name the data folder")
    }

    fn write_password(&self) -> Result<()> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let password: String = rand::rng().sample_iter(Alphanumeric).take(24).map(char::from).collect();
        let file = self.password_file();
        remove_if_present(&file)?;
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&file)
            .and_then(|mut open| open.write_all(password.as_bytes()))
            .with_context(|| format!("cannot write {}", file.display()))?;
        self.hand_over(&file)
    }

    fn hand_over(&self, path: &Path) -> Result<()> {
        let Some(User { uid, gid }) = self.user else {
            return Ok(());
        };
        std::os::unix::fs::chown(path, Some(uid), Some(gid))
            .with_context(|| format!("cannot give {} to another user", path.display()))
    }

    /// What every program of Postgres needs: the user, the log, a working folder that the user may enter, and none of
    /// our variables that it would take for its own.
    fn prepare(&self, launch: Launch) -> Launch {
        let launch =
            ["PGDATA", "PGHOST", "PGPORT", "PGUSER", "PGPASSWORD"].into_iter().fold(launch, Launch::env_remove);
        launch.env("LC_ALL", "C").current_dir(&self.folder).user(self.user).log(&self.options.log)
    }

    async fn start(self, reaper: &Reaper) -> Result<Postgres> {
        let password = fs::read_to_string(self.password_file())
            .with_context(|| format!("cannot read {} (start afresh with --fresh)", self.password_file().display()))?;
        let mut attempt = 1;
        loop {
            let port = free_port()?;
            match self.start_on(port, &password, reaper).await {
                Err(error) if attempt < START_ATTEMPTS && format!("{error:#}").contains("could not bind") => {
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    async fn start_on(&self, port: u16, password: &str, reaper: &Reaper) -> Result<Postgres> {
        let mut settings = vec![
            ("port".to_owned(), port.to_string()),
            ("listen_addresses".to_owned(), "127.0.0.1".to_owned()),
            ("unix_socket_directories".to_owned(), String::new()),
            ("cluster_name".to_owned(), "outrider".to_owned()),
            ("max_connections".to_owned(), "200".to_owned()),
            ("timezone".to_owned(), "UTC".to_owned()),
            ("log_timezone".to_owned(), "UTC".to_owned()),
        ];
        if !self.options.durable {
            for name in ["fsync", "synchronous_commit", "full_page_writes"] {
                settings.push((name.to_owned(), "off".to_owned()));
            }
        }
        settings.extend(self.options.settings.iter().cloned());
        let launch = Launch::new("postgres", self.binaries.folder().join("postgres")).arg("-D").arg(self.data());
        let launch =
            settings.iter().fold(launch, |launch, (name, value)| launch.arg("-c").arg(format!("{name}={value}")));
        // SIGINT is Postgres's fast shutdown, SIGQUIT the immediate one; SIGKILL would leave shared memory behind.
        let process =
            self.prepare(launch).end_with(Signal::INT, STOP_PATIENCE).drop_with(Signal::QUIT).spawn(reaper)?;
        let mut postgres = Postgres {
            process,
            port,
            password: password.to_owned(),
            version: self.binaries.version().to_owned(),
            folder: self.folder.clone(),
        };
        let url = postgres.url("postgres");
        postgres.process.wait_ready(START_PATIENCE, async || answers(&url).await).await?;
        Ok(postgres)
    }
}

async fn answers(url: &str) -> bool {
    let Ok(mut connection) = connect(url).await else {
        return false;
    };
    connection.ping().await.is_ok()
}

pub(super) fn remove_if_present(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            bail!("cannot remove {}: {error}", path.display())
        }
        _ => Ok(()),
    }
}
