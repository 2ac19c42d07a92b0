//! A private Kafka: one node that is broker and controller, on loopback, its jars fetched once through Maven.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rand::RngExt;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rustix::process::Signal;
use shared::config::Env;
use shared::kafka::KafkaConfig;

use super::free_port;
use super::maven::{Maven, Wanted};
use super::postgres::remove_if_present;
use super::process::{Launch, Process};
use super::reaper::Reaper;

const POM: &str = include_str!("kafka/pom.xml");
const LOG4J: &str = include_str!("kafka/log4j2.properties");

/// How long a start may take; reading the logs after a crash is part of it.
const START_PATIENCE: Duration = Duration::from_secs(90);

/// How long a stop in good order may take.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// How often a start is tried again when somebody else took a port meanwhile.
const START_ATTEMPTS: u32 = 3;

/// The jars, fetched.
#[derive(Debug, Clone)]
pub struct Jars {
    folder: PathBuf,
    java: PathBuf,
}

impl Jars {
    /// Whether the jars are in `cache` already, so that no Maven is needed.
    #[must_use]
    pub fn are_fetched(cache: &Path) -> bool {
        Self::folder_in(cache).join("libs").exists()
    }

    /// Finds the jars in `cache`, or fetches them there. `java` is the program that runs them.
    pub async fn find(cache: &Path, java: &Path, maven: &Maven<'_>) -> Result<Self> {
        let folder = std::path::absolute(Self::folder_in(cache))?;
        if !Self::are_fetched(cache) {
            let what = format!("Kafka {}", Kafka::VERSION);
            let wanted = Wanted { what: &what, pom: POM, goal: "copy-dependencies" };
            maven.fetch(&wanted, &folder, put_into_libs).await?;
        }
        Ok(Self { folder, java: java.to_owned() })
    }

    fn folder_in(cache: &Path) -> PathBuf {
        cache.join(format!("kafka-{}", Kafka::VERSION))
    }

    /// A run of one of the programs in the jars, by its main class, with these options for Java itself.
    #[must_use]
    pub fn launch(&self, name: &str, options: &[&str], main_class: &str) -> Launch {
        Launch::new(name, &self.java).args(options).arg("-cp").arg(self.folder.join("libs/*")).arg(main_class)
    }

    /// Writes a script that runs one of the programs in the jars, as those of Kafka's own archive do.
    pub fn write_script(&self, file: &Path, main_class: &str) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let (java, libs) = (self.java.display(), self.folder.join("libs"));
        let options = "-Xmx128m -XX:TieredStopAtLevel=1";
        let script = format!("#!/bin/sh\nexec '{java}' {options} -cp '{}/*' {main_class} \"$@\"\n", libs.display());
        fs::write(file, script).with_context(|| format!("cannot write {}", file.display()))?;
        fs::set_permissions(file, fs::Permissions::from_mode(0o755)).context("cannot make a script executable")
    }
}

/// Maven puts the jars side by side; they belong one level down, where Kafka's own archive has them.
fn put_into_libs(fetched: &Path) -> Result<()> {
    let jars: Vec<PathBuf> = fs::read_dir(fetched)?.filter_map(Result::ok).map(|entry| entry.path()).collect();
    let libs = fetched.join("libs");
    fs::create_dir(&libs)?;
    for jar in jars {
        fs::rename(&jar, libs.join(jar.file_name().unwrap_or_default()))?;
    }
    Ok(())
}

/// What to start.
#[derive(Debug, Clone)]
pub struct KafkaOptions {
    /// The folder that holds its data and properties. Made when it is missing.
    pub folder: PathBuf,
    /// The file for the broker's log.
    pub log: PathBuf,
    /// Further settings, as in `server.properties`.
    pub settings: Vec<(String, String)>,
}

/// A running Kafka broker that is ours.
#[derive(Debug)]
pub struct Kafka {
    process: Process,
    port: u16,
}

impl Kafka {
    /// The version in `kafka/pom.xml`.
    pub const VERSION: &str = "4.3.0";

    /// What its process is called.
    pub const NAME: &str = "kafka";

    /// Formats the data folder if there is none yet, starts the broker and waits until it answers.
    pub async fn start(jars: &Jars, options: &KafkaOptions, reaper: &Reaper) -> Result<Self> {
        fs::create_dir_all(&options.folder).with_context(|| format!("cannot create {}", options.folder.display()))?;
        let mut attempt = 1;
        loop {
            match Self::start_on(free_ports()?, jars, options, reaper).await {
                Err(error) if attempt < START_ATTEMPTS && format!("{error:#}").contains("Address already in use") => {
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    async fn start_on(ports: (u16, u16), jars: &Jars, options: &KafkaOptions, reaper: &Reaper) -> Result<Self> {
        let folder = std::path::absolute(&options.folder)?;
        let data = folder.join("data");
        let properties = folder.join("server.properties");
        let log4j = folder.join("log4j2.properties");
        fs::write(&properties, server_properties(ports, &data, &options.settings))?;
        fs::write(&log4j, LOG4J)?;
        let logging = format!("-Dlog4j2.configurationFile={}", log4j.display());

        if !data.join("meta.properties").exists() {
            remove_if_present(&data)?;
            jars.launch("kafka-storage", &[&logging], "kafka.tools.StorageTool")
                .args(["format", "--standalone", "-t", &cluster_id(), "-c"])
                .arg(&properties)
                .log(&options.log)
                .run(reaper)
                .await?;
        }
        let process = jars
            .launch(Self::NAME, &["-Xmx512m", &logging], "kafka.Kafka")
            .arg(&properties)
            .log(&options.log)
            .end_with(Signal::TERM, STOP_PATIENCE)
            .spawn(reaper)?;
        let mut kafka = Self { process, port: ports.0 };
        let brokers = kafka.brokers();
        kafka.process.wait_ready(START_PATIENCE, async || answers(&brokers).await).await?;
        Ok(kafka)
    }

    /// Where clients find it, as in `KAFKA_BROKERS`.
    #[must_use]
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its process, to wait for or to be cruel to.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Stops the broker in good order.
    pub async fn stop(&mut self) -> Result<()> {
        self.process.stop().await.map(drop)
    }
}

/// Whether a broker has registered itself there, so that topics can be made. Waits a second at most.
pub async fn answers(brokers: &str) -> bool {
    // librdkafka would take its time between attempts; a port that is closed needs no client.
    let first = brokers.split(',').next().unwrap_or_default().to_owned();
    if tokio::net::TcpStream::connect(&first).await.is_err() {
        return false;
    }
    let brokers = brokers.to_owned();
    let asked = tokio::task::spawn_blocking(move || {
        let config = KafkaConfig::from_env(&Env::from_pairs([("KAFKA_BROKERS", brokers)])).ok()?;
        let client: BaseConsumer = config.client("outrider").create().ok()?;
        client.fetch_metadata(None, Duration::from_secs(1)).ok()
    });
    matches!(asked.await, Ok(Some(metadata)) if !metadata.brokers().is_empty())
}

fn free_ports() -> Result<(u16, u16)> {
    let first = free_port()?;
    loop {
        let second = free_port()?;
        if second != first {
            return Ok((first, second));
        }
    }
}

/// An id for a new cluster: 16 random bytes in base64url, as Kafka's own tool makes them. The first character is a
/// letter, since a leading dash would be taken for an option.
fn cluster_id() -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut rng = rand::rng();
    (0..22)
        .map(|place| {
            let choices = match place {
                0 => 52,
                // 22 characters hold 132 bits; the last four of them must be zero.
                21 => return char::from(ALPHABET[rng.random_range(0..4_usize) * 16]),
                _ => 64,
            };
            char::from(ALPHABET[rng.random_range(0..choices)])
        })
        .collect()
}

fn server_properties(ports: (u16, u16), data: &Path, more: &[(String, String)]) -> String {
    use std::fmt::Write as _;
    let (port, controller) = ports;
    let listeners = format!("PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}");
    let mut text = format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listeners={listeners}
advertised.listeners={listeners}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={}
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
",
        data.display()
    );
    for (name, value) in more {
        let _ = writeln!(text, "{name}={value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_id_looks_like_kafkas_own() {
        for _ in 0..100 {
            let id = cluster_id();
            assert_eq!(id.len(), 22, "{id}");
            assert!(id.starts_with(|first: char| first.is_ascii_alphabetic()), "{id}");
            assert!(id.ends_with(['A', 'Q', 'g', 'w']), "{id}");
        }
    }

    #[test]
    fn the_version_of_the_folder_is_that_of_the_jars() {
        assert_eq!(POM.matches(&format!("<version>{}</version>", Kafka::VERSION)).count(), 2);
    }

    #[test]
    fn further_settings_come_last_so_that_they_win() {
        let more = [("node.id".to_owned(), "2".to_owned())];
        let text = server_properties((1, 2), Path::new("/data"), &more);
        assert!(text.ends_with("\nnode.id=2\n"), "{text}");
        assert!(text.contains("listeners=PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:2\n"));
        assert!(text.contains("\nlog.dirs=/data\n"));
    }
}
