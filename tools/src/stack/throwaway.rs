//! Postgres and Kafka for one run of tests or a benchmark: in a temporary folder, fast rather than durable.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::kafka::{Jars, KafkaOptions};
use super::maven::Maven;
use super::postgres::{Binaries, PostgresOptions, Source};
use super::{Kafka, Postgres, Reaper, make_passable, reachable, unprivileged_user};
use crate::required::java;

/// Servers that are gone, with all of their data, when this is dropped. They are killed rather than stopped.
#[derive(Debug)]
pub struct Throwaway {
    postgres: Option<Postgres>,
    kafka: Option<Kafka>,
    // Last, since fields are dropped in order and the servers write into it.
    folder: TempDir,
}

/// Where the parts of servers come from and what is told meanwhile.
#[derive(Debug, Clone)]
pub struct Supply {
    /// The folder that holds what was fetched once, `.dev`.
    pub cache: PathBuf,
    /// Is told what takes long.
    pub announce: fn(&str),
    /// Ends the children when we vanish.
    pub reaper: Reaper,
}

impl Throwaway {
    /// An empty folder, no server yet.
    pub fn new() -> Result<Self> {
        let mut base = std::env::temp_dir();
        // Postgres, run as another user, has to reach its folder below.
        if reachable(&base.join("x"), unprivileged_user()?)? != std::path::absolute(base.join("x"))? {
            base = PathBuf::from("/var/tmp");
        }
        let folder = tempfile::Builder::new()
            .prefix("outrider-")
            .tempdir_in(&base)
            .with_context(|| format!("cannot create a folder in {}", base.display()))?;
        make_passable(folder.path())?;
        Ok(Self { postgres: None, kafka: None, folder })
    }

    /// Starts Postgres and says where it is: the URL of its database `postgres`, as superuser.
    pub async fn start_postgres(&mut self, supply: &Supply) -> Result<String> {
        // Tests hold prepared transactions; a server has room for none by default.
        let settings = vec![("max_prepared_transactions".to_owned(), "10".to_owned())];
        self.start_postgres_with(supply, false, settings).await
    }

    /// The same with further settings, and durable if asked for.
    pub async fn start_postgres_with(
        &mut self,
        supply: &Supply,
        durable: bool,
        settings: Vec<(String, String)>,
    ) -> Result<String> {
        let folder = self.folder.path().join("postgres");
        let binaries = supply.postgres(&self.folder.path().join("maven.log"), &folder).await?;
        let options = PostgresOptions { folder, log: self.folder.path().join("postgres.log"), durable, settings };
        let postgres = Postgres::start(&binaries, &options, &supply.reaper).await?;
        Ok(self.postgres.insert(postgres).url("postgres"))
    }

    /// Starts Kafka and says where it is, as in `KAFKA_BROKERS`.
    pub async fn start_kafka(&mut self, supply: &Supply) -> Result<String> {
        let jars = supply.kafka(&self.folder.path().join("maven.log")).await?;
        let options = KafkaOptions {
            folder: self.folder.path().join("kafka"),
            log: self.folder.path().join("kafka.log"),
            // A test sends records that are longer than a request may be by default.
            settings: vec![("socket.request.max.bytes".to_owned(), "300000000".to_owned())],
        };
        let kafka = Kafka::start(&jars, &options, &supply.reaper).await?;
        Ok(self.kafka.insert(kafka).brokers())
    }

    /// The folder that everything is in; there is room for more.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The Postgres server, when it was started.
    pub fn postgres(&mut self) -> Option<&mut Postgres> {
        self.postgres.as_mut()
    }

    /// The Kafka broker, when it was started.
    pub fn kafka(&mut self) -> Option<&mut Kafka> {
        self.kafka.as_mut()
    }
}

impl Supply {
    /// The programs of Postgres that fit the data in `existing`, if there is any.
    pub async fn postgres(&self, log: &Path, existing: &Path) -> Result<Binaries> {
        let existing = reachable(existing, unprivileged_user()?)?;
        Binaries::find(Source::from_env()?, &self.cache, &existing, &self.maven(log)).await
    }

    /// Kafka's jars and the Java to run them.
    pub async fn kafka(&self, log: &Path) -> Result<Jars> {
        let java = java()?;
        Jars::find(&self.cache, &java.program, &self.maven(log)).await
    }

    fn maven(&self, log: &Path) -> Maven<'_> {
        Maven { log: log.to_owned(), announce: self.announce, reaper: &self.reaper }
    }
}
