//! One of the three services as a child process, configured by its environment only.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::free_port;
use super::process::{Launch, Process};
use super::reaper::Reaper;
use crate::http;

/// How long a service may take until it is ready; Postgres and Kafka are up by then.
const READY_PATIENCE: Duration = Duration::from_mins(1);

/// How long a service's ordered shutdown may take before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// Which service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `outrider-api`
    Api,
    /// `outrider-relay`
    Relay,
    /// `outrider-processor`
    Processor,
}

impl Kind {
    /// All of them, in the order in which an event passes them.
    pub const ALL: [Self; 3] = [Self::Api, Self::Relay, Self::Processor];

    /// Its short name, which is also that of its crate.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Relay => "relay",
            Self::Processor => "processor",
        }
    }
}

/// What all services of one pipeline have in common.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The folder that holds the executables `outrider-api` and so on.
    pub binaries: PathBuf,
    /// The folder for their logs.
    pub logs: PathBuf,
    /// The database, as `DATABASE_URL`.
    pub database_url: String,
    /// The brokers, as `KAFKA_BROKERS`.
    pub kafka_brokers: String,
    /// Whether each service takes its own Postgres role. Only for a server that is ours: elsewhere the login of
    /// `database_url` decides what a service may do.
    pub takes_role: bool,
    /// Further variables, for each of them.
    pub env: Vec<(String, String)>,
}

/// A running service.
#[derive(Debug)]
pub struct Service {
    kind: Kind,
    process: Process,
    admin_port: u16,
    api_port: Option<u16>,
}

impl Service {
    /// Starts a service. `name` is what its log file and messages are called, for there may be several relays; `env`
    /// are variables for this one alone, and win over everything else.
    pub fn start(
        kind: Kind,
        name: &str,
        surroundings: &Surroundings,
        env: &[(&str, &str)],
        reaper: &Reaper,
    ) -> Result<Self> {
        let admin_port = free_port()?;
        let program = surroundings.binaries.join(format!("outrider-{}", kind.name()));
        let mut launch = Launch::new(name, &program)
            .env("DATABASE_URL", &surroundings.database_url)
            .env("KAFKA_BROKERS", &surroundings.kafka_brokers)
            .env("ADMIN_BIND", format!("127.0.0.1:{admin_port}"))
            .log(surroundings.logs.join(format!("{name}.log")))
            .end_with(Signal::TERM, STOP_PATIENCE);
        if surroundings.takes_role {
            launch = launch.env("DB_ROLE", format!("outrider_{}", kind.name()));
        }
        let mut api_port = None;
        if kind == Kind::Api {
            let given = env.iter().find(|(name, _)| *name == "API_BIND");
            let port = match given {
                Some((_, bind)) => port_of(bind)?,
                None => free_port()?,
            };
            launch = launch.env("API_BIND", format!("127.0.0.1:{port}"));
            // On loopback, for whoever tries it out or tests it; the log of the service says so.
            launch = launch.env("API_AUTH", "none");
            api_port = Some(port);
        }
        for (name, value) in &surroundings.env {
            launch = launch.env(name, value);
        }
        for (name, value) in env {
            launch = launch.env(name, value);
        }
        let process = launch.spawn(reaper).with_context(|| format!("is {} built?", program.display()))?;
        Ok(Self { kind, process, admin_port, api_port })
    }

    /// Which service it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Waits until its `/readyz` says 200.
    pub async fn wait_ready(&mut self) -> Result<()> {
        let url = self.admin_url() + "/readyz";
        let client = http::client()?;
        self.process
            .wait_ready(READY_PATIENCE, async || {
                let answer = client.get(&url).send().await;
                answer.is_ok_and(|answer| answer.status().is_success())
            })
            .await
    }

    /// The base URL of its health and metrics port.
    #[must_use]
    pub fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin_port)
    }

    /// Where the API takes orders; `None` for the services that take none.
    #[must_use]
    pub fn api_address(&self) -> Option<SocketAddr> {
        Some(SocketAddr::from((Ipv4Addr::LOCALHOST, self.api_port?)))
    }

    /// The same as a base URL.
    #[must_use]
    pub fn api_url(&self) -> Option<String> {
        self.api_address().map(|address| format!("http://{address}"))
    }

    /// Its process, to wait for or to be cruel to.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Stops it in good order.
    pub async fn stop(&mut self) -> Result<std::process::ExitStatus> {
        self.process.stop().await
    }
}

fn port_of(bind: &str) -> Result<u16> {
    let port = bind.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    port.with_context(|| format!("API_BIND={bind} is not host:port"))
}
