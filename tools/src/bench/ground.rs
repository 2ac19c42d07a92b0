//! Where a benchmark takes place: a Postgres and a Kafka of its own, and a fresh database and topic for each part.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Pid;
use shared::db::Connector;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, PgPool};

use super::topic::Topic;
use crate::migrate;
use crate::stack::service::Surroundings;
use crate::stack::throwaway::{Supply, Throwaway};
use crate::stack::{Kind, Launch, Service};
use crate::workspace::{Executables, Workspace};

/// Postgres as it would be set up for a service, and durable: a benchmark with `fsync` off flatters.
const POSTGRES_SETTINGS: [(&str, &str); 3] =
    [("max_wal_size", "8GB"), ("checkpoint_timeout", "30min"), ("wal_compression", "on")];

/// Gives each transaction its time of commit, by which latencies are told.
const COMMIT_TIMES: (&str, &str) = ("track_commit_timestamp", "on");

/// Servers, executables, and room for logs.
pub struct Ground {
    servers: Throwaway,
    /// Where the servers' programs come from, and who ends them.
    pub supply: Supply,
    binaries: PathBuf,
    postgres_url: String,
    /// As in `KAFKA_BROKERS`.
    pub brokers: String,
}

impl Ground {
    /// Builds the services (for release, unless `quick`; not at all when `binaries` holds them) and starts the servers.
    pub async fn open(quick: bool, binaries: Option<PathBuf>) -> Result<Self> {
        let own = Executables::own()?;
        let supply = Supply {
            cache: crate::workspace::dev_folder()?,
            announce: |line| eprintln!("{line}"),
            reaper: crate::stack::Reaper::start(own.outrider())?,
        };
        let binaries = match binaries {
            Some(binaries) => binaries,
            None if quick => own.folder().to_owned(),
            None => build_for_release(&own, &supply).await?,
        };
        let mut servers = Throwaway::new()?;
        let settings = if quick { &POSTGRES_SETTINGS[..0] } else { &POSTGRES_SETTINGS };
        let settings = settings.iter().chain([&COMMIT_TIMES]);
        let mut settings: Vec<(String, String)> =
            settings.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        if !quick {
            settings.push(("shared_buffers".to_owned(), format!("{}MB", shared_buffers_mib())));
        }
        let postgres_url = servers.start_postgres_with(&supply, true, settings).await?;
        let brokers = servers.start_kafka(&supply).await?;
        Ok(Self { servers, supply, binaries, postgres_url, brokers })
    }

    /// The folder for whatever a part writes.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.servers.folder()
    }

    /// One of the executables that are measured.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.binaries.join(name)
    }

    /// A fresh database and topic, without any service.
    pub async fn scene(&self, name: &str) -> Result<Scene> {
        let (server, _) = self.postgres_url.rsplit_once('/').context("the URL ends in a database")?;
        let admin = pool(&self.postgres_url).await?;
        sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE \"{name}\""))).execute(&admin).await?;
        let url = format!("{server}/{name}");
        let options: PgConnectOptions = url.parse()?;
        migrate::migrate(Connector::plain(options.clone())).await?;
        let surroundings = Surroundings {
            binaries: self.binaries.clone(),
            logs: self.servers.folder().to_owned(),
            database_url: url.clone(),
            kafka_brokers: self.brokers.clone(),
            takes_role: true,
            env: vec![("RUST_LOG".to_owned(), "info".to_owned())],
        };
        let topic = Topic::create(&self.brokers, &format!("{name}s")).await?;
        Ok(Scene { name: name.to_owned(), pool: pool(&url).await?, admin, surroundings, topic, services: Vec::new() })
    }

    /// The process of Postgres; its children are the connections.
    pub fn postgres(&mut self) -> Result<Pid> {
        Ok(self.servers.postgres().context("Postgres was started")?.process().pid())
    }

    /// The process of Kafka.
    pub fn kafka(&mut self) -> Result<Pid> {
        Ok(self.servers.kafka().context("Kafka was started")?.process().pid())
    }
}

/// A quarter of the memory, as Postgres' documentation advises for a server (19.4.1); 2 GB where it cannot be told how much there is.
fn shared_buffers_mib() -> u64 {
    let told = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total =
        told.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    total.map_or(2_048, |kib| kib / 1_024 / 4)
}

/// A database, a topic and the services around them, for one part of a benchmark.
pub struct Scene {
    /// The aggregate type; the topic's name is one `s` longer.
    pub name: String,
    /// Connections as the owner of the tables.
    pub pool: PgPool,
    admin: PgPool,
    surroundings: Surroundings,
    /// Where the events go.
    pub topic: Topic,
    services: Vec<Service>,
}

impl Scene {
    /// Starts a relay and waits until it is ready.
    pub async fn start_relay(&mut self, ground: &Ground, env: &[(&str, &str)]) -> Result<Pid> {
        let relay = self.start(Kind::Relay, ground, env)?;
        relay.wait_ready().await?;
        Ok(relay.process().pid())
    }

    /// Starts a service and does not wait for it.
    pub fn start(&mut self, kind: Kind, ground: &Ground, env: &[(&str, &str)]) -> Result<&mut Service> {
        let place = self.services.len();
        let name = format!("{}-{}-{place}", self.name, kind.name());
        self.services.push(Service::start(kind, &name, &self.surroundings, env, &ground.supply.reaper)?);
        self.services.last_mut().context("it has just been added")
    }

    /// Another program with the settings that services get here.
    #[must_use]
    pub fn launch(&self, ground: &Ground, name: &str, program: &str) -> Launch {
        Launch::new(name, ground.program(program))
            .env("DATABASE_URL", &self.surroundings.database_url)
            .env("KAFKA_BROKERS", &self.surroundings.kafka_brokers)
            .log(self.surroundings.logs.join(format!("{name}.log")))
    }

    /// One of Postgres's own programs, which finds the database by its environment.
    pub fn launch_client(&self, name: &str, program: &Path) -> Result<Launch> {
        let url: reqwest::Url = self.database_url().parse()?;
        Ok(Launch::new(name, program)
            .env("PGHOST", url.host_str().unwrap_or_default())
            .env("PGPORT", url.port().unwrap_or(5432).to_string())
            .env("PGUSER", url.username())
            .env("PGPASSWORD", url.password().unwrap_or_default())
            .env("PGDATABASE", url.path().trim_start_matches('/')))
    }

    /// Stops the services in good order.
    pub async fn stop(&mut self) -> Result<()> {
        for mut service in self.services.drain(..) {
            service.stop().await?;
        }
        Ok(())
    }

    /// Where the database is.
    #[must_use]
    pub fn database_url(&self) -> &str {
        &self.surroundings.database_url
    }

    /// Stops the services and drops the database, so that its pages and files are out of the way of the next part.
    pub async fn close(mut self) -> Result<()> {
        self.stop().await?;
        self.pool.close().await;
        let drop = format!("DROP DATABASE \"{}\" WITH (FORCE)", self.name);
        sqlx::query(sqlx::AssertSqlSafe(drop)).execute(&self.admin).await?;
        Ok(())
    }
}

async fn pool(url: &str) -> Result<PgPool> {
    let options: PgConnectOptions = url.parse()?;
    let options = options.application_name("outrider-bench").disable_statement_logging();
    let pool = PgPoolOptions::new().max_connections(16).acquire_timeout(Duration::from_secs(10));
    pool.connect_with(options).await.context("the server has just answered")
}

/// A release build takes minutes the first time, so that cargo's own progress is shown.
async fn build_for_release(own: &Executables, supply: &Supply) -> Result<PathBuf> {
    let workspace = Workspace::required()?;
    let target = own.folder().parent().context("our executable is in a folder of cargo's")?;
    let _ = Stdio::inherit();
    eprintln!("building the services for release");
    workspace
        .cargo()
        .args(["build", "--release", "--workspace", "--bins", "--locked", "--target-dir"])
        .arg(target)
        .run(&supply.reaper)
        .await?;
    Ok(target.join("release"))
}
