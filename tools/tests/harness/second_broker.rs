//! A second broker (node 2) of a cluster whose first one is also its controller. Topics on it alone have trouble when it does.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use tools::stack::kafka::{Jars, KafkaOptions};
use tools::stack::throwaway::Supply;
use tools::stack::{Launch, Process, free_port};

/// Its number.
pub(crate) const NODE: i32 = 2;

const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// See the module.
pub(crate) struct SecondBroker {
    jars: Jars,
    supply: Supply,
    properties: PathBuf,
    log: PathBuf,
    process: Option<Process>,
}

impl SecondBroker {
    /// Starts it in `folder`, as a member of the cluster that was started with `first`.
    pub(crate) async fn beside(first: &KafkaOptions, folder: &Path, jars: &Jars, supply: &Supply) -> Result<Self> {
        let read = |file: &str| fs::read_to_string(first.folder.join(file)).with_context(|| file.to_owned());
        let value = |text: &str, name: &str| {
            let found =
                text.lines().rev().find_map(|line| line.strip_prefix(name)?.strip_prefix('=').map(str::to_owned));
            found.with_context(|| format!("no {name}"))
        };
        let cluster = value(&read("data/meta.properties")?, "cluster.id")?;
        let controller = value(&read("server.properties")?, "controller.quorum.bootstrap.servers")?;
        fs::create_dir_all(folder)?;
        let (port, data) = (free_port()?, folder.join("data"));
        let mut text = format!(
            "process.roles=broker
node.id={NODE}
controller.quorum.bootstrap.servers={controller}
listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={}
",
            data.display()
        );
        for (name, value) in first.settings.iter().filter(|(name, _)| name != "advertised.listeners") {
            writeln!(text, "{name}={value}")?;
        }
        let (properties, log) = (folder.join("server.properties"), folder.join("kafka.log"));
        fs::write(&properties, text)?;
        let mut second = Self { jars: jars.clone(), supply: supply.clone(), properties, log, process: None };
        second
            .launch("kafka.tools.StorageTool")
            .args(["format", "--no-initial-controllers", "-t", &cluster, "-c"])
            .arg(&second.properties)
            .run(&supply.reaper)
            .await?;
        second.start()?;
        Ok(second)
    }

    fn launch(&self, main_class: &str) -> Launch {
        self.jars.launch("kafka-2", &["-Xmx256m"], main_class).log(&self.log)
    }

    /// Starts it again after [`SecondBroker::stop`] or [`SecondBroker::kill`].
    pub(crate) fn start(&mut self) -> Result<()> {
        let launch = self.launch("kafka.Kafka").arg(&self.properties).end_with(Signal::TERM, STOP_PATIENCE);
        self.process = Some(launch.spawn(&self.supply.reaper)?);
        Ok(())
    }

    /// Its process, to be cruel to.
    pub(crate) fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the second broker does not run")
    }

    /// Stops it in good order: its partitions have no leader from then on.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        self.process()?.stop().await?;
        self.process = None;
        Ok(())
    }

    /// Kills it: the controller takes it for alive for a while.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.process()?.kill().await?;
        self.process = None;
        Ok(())
    }
}
