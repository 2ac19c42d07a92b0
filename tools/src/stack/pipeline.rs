//! Servers and services together: watched together, stopped in order.

use std::process::ExitStatus;

use anyhow::{Context, Result};
use futures_util::future::select_all;

use super::process::{Process, describe_status};
use super::{Jaeger, Kafka, Postgres, Service};

/// What is running of one pipeline. A server that belongs to somebody else is not in here.
#[derive(Debug, Default)]
pub struct Pipeline {
    /// The services, in the order in which they are to be stopped.
    pub services: Vec<Service>,
    /// Our own broker.
    pub kafka: Option<Kafka>,
    /// Our own Postgres.
    pub postgres: Option<Postgres>,
    /// Our own Jaeger.
    pub jaeger: Option<Jaeger>,
}

/// A process that ended by itself.
#[derive(Debug)]
pub struct Death {
    /// What it is called.
    pub name: String,
    /// How it ended, and the tail of its log.
    pub error: anyhow::Error,
}

impl Pipeline {
    /// Whether nothing was started.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.processes_started() == 0
    }

    fn processes_started(&self) -> usize {
        let servers = [self.kafka.is_some(), self.postgres.is_some(), self.jaeger.is_some()];
        self.services.len() + servers.into_iter().filter(|started| *started).count()
    }

    fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        self.services
            .iter_mut()
            .map(Service::process)
            .chain(self.kafka.as_mut().map(Kafka::process))
            .chain(self.postgres.as_mut().map(Postgres::process))
            .chain(self.jaeger.as_mut().map(Jaeger::process))
    }

    /// Waits until one of the processes ends by itself; for ever when there is none. May be cancelled.
    pub async fn death(&mut self) -> Result<Death> {
        let ends: Vec<_> = self
            .processes()
            .map(|process| {
                Box::pin(async move {
                    let status = process.wait().await?;
                    Ok(Death { name: process.name().to_owned(), error: process.death(status) })
                })
            })
            .collect();
        if ends.is_empty() {
            return std::future::pending().await;
        }
        select_all(ends).await.0
    }

    /// Stops everything, one after the other: services, then Kafka, Postgres and Jaeger. What can't be stopped doesn't keep
    /// the rest from being stopped. Returns a line for each that did not end well.
    pub async fn stop(&mut self) -> Vec<String> {
        let mut complaints = Vec::new();
        for process in self.processes() {
            // What had ended before was reported when it did.
            if !matches!(process.try_wait(), Ok(None)) {
                continue;
            }
            let complaint = match process.stop().await {
                Ok(status) if is_ordered(process, status) => None,
                Ok(status) => Some(describe_status(status)),
                Err(error) => Some(format!("{error:#}")),
            };
            complaints.extend(complaint.map(|complaint| format!("{}: {complaint}", process.name())));
        }
        self.services.clear();
        self.kafka = None;
        self.postgres = None;
        self.jaeger = None;
        complaints
    }

    /// The API's base URL, when it is one of the services.
    pub fn api_url(&self) -> Result<String> {
        self.services.iter().find_map(Service::api_url).context("there is no api among the services")
    }
}

/// Java ends with 128 + 15 after an ordered shutdown on SIGTERM, everything else with 0.
fn is_ordered(process: &Process, status: ExitStatus) -> bool {
    status.success() || (process.name() == Kafka::NAME && status.code() == Some(143))
}
