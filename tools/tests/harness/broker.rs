//! A broker of the test's own, what an administrator does to it, and a proxy in front of it if the test wants one.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::metadata::MetadataPartition;
use rdkafka::{ClientConfig, consumer::BaseConsumer, consumer::Consumer};
use shared::testing::eventually;
use tools::stack::Kafka;
use tools::stack::kafka::{Jars, KafkaOptions};
use tools::stack::throwaway::{Supply, Throwaway};

use super::kafka_proxy::KafkaProxy;
use super::second_broker::SecondBroker;

/// How long a broker may take for what an administrator wants.
const PATIENCE: Duration = Duration::from_secs(10);

/// Partitions of a topic that a test makes.
const PARTITIONS: i32 = 4;

/// What to start.
#[derive(Debug, Clone, Default)]
pub(crate) struct BrokerOptions {
    /// Further settings, as in `server.properties`.
    pub(crate) settings: Vec<(&'static str, &'static str)>,
    /// Whether clients reach it through a [`KafkaProxy`].
    pub(crate) proxied: bool,
    /// Whether there is a second broker (node 2), which holds only what is put there.
    pub(crate) second: bool,
}

/// See the module.
pub(crate) struct Broker {
    kafka: Kafka,
    second: Option<SecondBroker>,
    proxy: Option<KafkaProxy>,
    jars: Jars,
    log: PathBuf,
    // Last: the brokers end before their folder.
    place: Throwaway,
}

impl Broker {
    pub(crate) async fn start(supply: &Supply, options: &BrokerOptions) -> Result<Self> {
        let place = Throwaway::new()?;
        let log = place.folder().join("commands.log");
        let jars = supply.kafka(&place.folder().join("maven.log")).await?;
        let mut settings: Vec<(String, String)> =
            options.settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let proxy = if options.proxied { Some(KafkaProxy::start().await?) } else { None };
        if let Some(proxy) = &proxy {
            settings.push(("advertised.listeners".to_owned(), format!("PLAINTEXT://127.0.0.1:{}", proxy.port())));
        }
        let folder = place.folder().join("kafka");
        let first = KafkaOptions { folder, log: place.folder().join("kafka.log"), settings: settings.clone() };
        let kafka = Kafka::start(&jars, &first, &supply.reaper).await?;
        if let Some(proxy) = &proxy {
            let brokers = kafka.brokers();
            let (_, port) = brokers.rsplit_once(':').context("a port")?;
            proxy.lead_to(port.parse()?);
        }
        let mut broker = Self { kafka, second: None, proxy, jars, log, place };
        if options.second {
            let second =
                SecondBroker::beside(&first, &broker.place.folder().join("kafka-2"), &broker.jars, supply).await?;
            broker.second = Some(second);
            broker.has_brokers(2).await?;
        }
        Ok(broker)
    }

    /// Where clients find it, as in `KAFKA_BROKERS`.
    pub(crate) fn brokers(&self) -> String {
        self.proxy.as_ref().map_or_else(|| self.kafka.brokers(), |proxy| format!("127.0.0.1:{}", proxy.port()))
    }

    /// The folder for logs.
    pub(crate) fn folder(&self) -> PathBuf {
        self.place.folder().to_owned()
    }

    pub(crate) fn proxy(&self) -> Result<&KafkaProxy> {
        self.proxy.as_ref().context("this broker has no proxy")
    }

    pub(crate) fn second(&mut self) -> Result<&mut SecondBroker> {
        self.second.as_mut().context("there is no second broker")
    }

    /// Waits until so many brokers are members.
    pub(crate) async fn has_brokers(&self, count: usize) -> Result<()> {
        let client: BaseConsumer = self.client().create()?;
        eventually("the brokers know each other", async || {
            let metadata = client.fetch_metadata(None, Duration::from_secs(1)).ok()?;
            (metadata.brokers().len() == count).then_some(())
        })
        .await;
        Ok(())
    }

    fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.brokers()).set("client.id", "test-admin");
        client
    }

    /// Makes a topic of four partitions, each with replicas on these nodes, and waits until they have a leader.
    pub(crate) async fn create_topic(&self, name: &str, nodes: &[i32]) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> = self.client().create()?;
        let replicas = [nodes; PARTITIONS as usize];
        let topic = NewTopic::new(name, PARTITIONS, TopicReplication::Variable(&replicas));
        // Without a second replica, this has no effect.
        let topic = topic.set("min.insync.replicas", "2");
        for created in admin.create_topics([&topic], &options()).await? {
            created.map_err(|(topic, code)| anyhow!("{topic}: {code}"))?;
        }
        self.is_whole(name).await
    }

    /// Waits until each partition of a topic has a leader and all of its replicas in sync.
    pub(crate) async fn is_whole(&self, topic: &str) -> Result<()> {
        let client: BaseConsumer = self.client().create()?;
        eventually("the topic is whole", async || {
            let metadata = client.fetch_metadata(Some(topic), Duration::from_secs(1)).ok()?;
            let partitions = metadata.topics().first()?.partitions();
            let mut partitions = partitions.iter();
            let is_whole = |partition: &MetadataPartition| {
                partition.leader() >= 0
                    && partition.error().is_none()
                    && partition.isr().len() == partition.replicas().len()
            };
            (partitions.len() > 0 && partitions.all(is_whole)).then_some(())
        })
        .await;
        Ok(())
    }

    /// Gives a topic these settings and no others.
    pub(crate) async fn configure_topic(&self, name: &str, settings: &[(&str, &str)]) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> = self.client().create()?;
        let entries: HashMap<&str, &str> = settings.iter().copied().collect();
        let change = AlterConfig { specifier: ResourceSpecifier::Topic(name), entries };
        for changed in admin.alter_configs([&change], &options()).await? {
            changed.map_err(|(_, code)| anyhow!("{name}: {code}"))?;
        }
        Ok(())
    }

    /// Runs one of Kafka's own programs to its end.
    pub(crate) async fn run(&self, supply: &Supply, main_class: &str, arguments: &[&str]) -> Result<()> {
        let launch = self.jars.launch(main_class, &["-Xmx128m", "-XX:TieredStopAtLevel=1"], main_class);
        let launch = launch.args(["--bootstrap-server", &self.brokers()]).args(arguments).log(&self.log);
        launch.run(&supply.reaper).await
    }

    /// How much a producer of this name may send in a second, or no limit.
    pub(crate) async fn set_quota(&self, supply: &Supply, client_id: &str, bytes_per_sec: Option<u64>) -> Result<()> {
        let limit = bytes_per_sec.map(|bytes| format!("producer_byte_rate={bytes}"));
        let change = match &limit {
            Some(limit) => ["--add-config", limit],
            None => ["--delete-config", "producer_byte_rate"],
        };
        let whom = ["--alter", "--entity-type", "clients", "--entity-name", client_id];
        self.run(supply, CONFIG_COMMAND, &[&whom[..], &change].concat()).await
    }

    /// Takes from everybody, or gives back, the right to write to a topic. Needs the broker to have [`AUTHORIZER`].
    pub(crate) async fn allow_writes(&self, supply: &Supply, topic: &str, allowed: bool) -> Result<()> {
        let change = if allowed { ["--remove", "--force"] } else { ["--add", "--force"] };
        let deny = ["--topic", topic, "--deny-principal", "User:ANONYMOUS", "--operation", "Write"];
        if !allowed {
            // With a rule for the topic, what no rule allows is forbidden.
            let rest = ["--add", "--topic", topic, "--allow-principal", "User:ANONYMOUS", "--operation", "All"];
            self.run(supply, ACL_COMMAND, &rest).await?;
        }
        self.run(supply, ACL_COMMAND, &[&change[..], &deny].concat()).await
    }
}

/// Settings of a broker that knows rights, and lets everybody do what no rule is about.
pub(crate) const AUTHORIZER: [(&str, &str); 2] = [
    ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
    ("allow.everyone.if.no.acl.found", "true"),
];

const CONFIG_COMMAND: &str = "kafka.admin.ConfigCommand";
const ACL_COMMAND: &str = "org.apache.kafka.tools.AclCommand";

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE))
}
