//! The only place where a Kafka client is configured.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;
use serde::Deserialize;

use crate::backoff::Backoff;
use crate::config::{ConfigError, Env, Secret, check_file};
use crate::shutdown::Shutdown;

pub use diagnosis::TopicUse;
pub use retention::TopicRetention;

mod answering;
mod diagnosis;
pub mod headers;
mod probe;
mod retention;
mod rights;

/// The section `KAFKA_*`: where the brokers are, who we are to them, and how missing topics are made.
#[derive(Debug, Clone, Deserialize)]
pub struct KafkaConfig {
    /// `KAFKA_BROKERS`: host:port, comma-separated; none for [`DEFAULT_BROKERS`].
    brokers: Option<String>,
    #[serde(default)]
    security_protocol: SecurityProtocol,
    sasl_mechanism: Option<String>,
    sasl_username: Option<String>,
    sasl_password: Option<Secret>,
    ssl_ca_location: Option<PathBuf>,
    ssl_certificate_location: Option<PathBuf>,
    ssl_key_location: Option<PathBuf>,
    ssl_key_password: Option<Secret>,
    /// `KAFKA_CREATE_TOPICS`: whether missing topics are created.
    #[serde(default = "yes")]
    create_topics: bool,
    /// `KAFKA_TOPIC_PARTITIONS`: partitions of a topic that is created.
    #[serde(default = "twelve")]
    topic_partitions: i32,
    /// `KAFKA_TOPIC_REPLICATION`: replicas of a topic that is created; -1 is the brokers' default.
    #[serde(default = "brokers_default")]
    topic_replication: i32,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum SecurityProtocol {
    #[default]
    Plaintext,
    SaslPlaintext,
    Ssl,
    SaslSsl,
}

/// Where Kafka is if nothing says so: where the system that this one replaces expects it.
const DEFAULT_BROKERS: &str = "localhost:9092";

/// Memory for records that are not acknowledged. A producer that has filled it makes its callers wait.
const PRODUCER_QUEUE_KBYTES: &str = "131072";

const fn yes() -> bool {
    true
}

const fn twelve() -> i32 {
    12
}

const fn brokers_default() -> i32 {
    -1
}

impl SecurityProtocol {
    const fn name(self) -> &'static str {
        match self {
            Self::Plaintext => "PLAINTEXT",
            Self::SaslPlaintext => "SASL_PLAINTEXT",
            Self::Ssl => "SSL",
            Self::SaslSsl => "SASL_SSL",
        }
    }

    const fn uses_tls(self) -> bool {
        matches!(self, Self::Ssl | Self::SaslSsl)
    }

    const fn uses_sasl(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }
}

impl KafkaConfig {
    /// Reads the section.
    ///
    /// # Errors
    /// When a setting is missing, contradicts another one, or needs TLS in a build that has none.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let config: Self = env.section("KAFKA_")?;
        let bad = |variable: &str, problem: &str| Err(ConfigError::new(variable, problem));
        let has_port = |broker: &str| {
            broker.trim().rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        let brokers = config.brokers();
        if !brokers.split(',').all(has_port) {
            return bad("KAFKA_BROKERS", &format!("'{brokers}' is not a list such as kafka-1:9092,kafka-2:9092"));
        }
        if config.topic_partitions < 1 {
            return bad("KAFKA_TOPIC_PARTITIONS", "must be at least 1");
        }
        if config.topic_replication < 1 && config.topic_replication != -1 {
            return bad("KAFKA_TOPIC_REPLICATION", "must be at least 1, or -1 for the brokers' default");
        }
        let protocol = config.security_protocol;
        if protocol.uses_sasl() {
            if config.sasl_mechanism.is_none() {
                return bad(
                    "KAFKA_SASL_MECHANISM",
                    &format!("is needed with {}: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512", protocol.name()),
                );
            }
            if config.sasl_username.is_none() {
                return bad("KAFKA_SASL_USERNAME", &format!("is needed with {}", protocol.name()));
            }
            if config.sasl_password.is_none() {
                return bad("KAFKA_SASL_PASSWORD", &format!("is needed with {}", protocol.name()));
            }
        } else if config.sasl_username.is_some() {
            return bad(
                "KAFKA_SECURITY_PROTOCOL",
                "must be SASL_SSL or SASL_PLAINTEXT when KAFKA_SASL_USERNAME is set",
            );
        }
        let scram = config.sasl_mechanism.as_deref().is_some_and(|mechanism| mechanism.starts_with("SCRAM"));
        if cfg!(not(feature = "kafka-tls")) && (protocol.uses_tls() || scram) {
            let setting = if protocol.uses_tls() { "KAFKA_SECURITY_PROTOCOL" } else { "KAFKA_SASL_MECHANISM" };
            return bad(setting, "needs a build with TLS: cargo build --release --features kafka-tls");
        }
        check_file("KAFKA_SSL_CA_LOCATION", config.ssl_ca_location.as_deref())?;
        check_file("KAFKA_SSL_CERTIFICATE_LOCATION", config.ssl_certificate_location.as_deref())?;
        check_file("KAFKA_SSL_KEY_LOCATION", config.ssl_key_location.as_deref())?;
        Ok(config)
    }

    fn brokers(&self) -> &str {
        self.brokers.as_deref().unwrap_or(DEFAULT_BROKERS)
    }

    /// What every client has in common: brokers, credentials, and a name in the brokers' logs.
    #[must_use]
    pub fn client(&self, client_id: &str) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.brokers());
        client.set("client.id", client_id);
        client.set("security.protocol", self.security_protocol.name());
        // A broker that comes back is found within a quarter of a second and not within librdkafka's ten.
        client.set("reconnect.backoff.max.ms", "250");
        // A producer's question after a topic would make it, with as many partitions as brokers think fit; topics are made by us or by nobody.
        client.set("allow.auto.create.topics", "false");
        let path = |path: &PathBuf| path.display().to_string();
        let settings = [
            ("sasl.mechanism", self.sasl_mechanism.clone()),
            ("sasl.username", self.sasl_username.clone()),
            ("sasl.password", self.sasl_password.as_ref().map(|secret| secret.expose().to_owned())),
            ("ssl.ca.location", self.ssl_ca_location.as_ref().map(path)),
            ("ssl.certificate.location", self.ssl_certificate_location.as_ref().map(path)),
            ("ssl.key.location", self.ssl_key_location.as_ref().map(path)),
            ("ssl.key.password", self.ssl_key_password.as_ref().map(|secret| secret.expose().to_owned())),
        ];
        for (name, value) in settings {
            if let Some(value) = value {
                client.set(name, value);
            }
        }
        client
    }

    /// An idempotent producer's settings. `message_timeout` is how long one record may take, retries included.
    #[must_use]
    pub fn producer(&self, client_id: &str, message_timeout: Duration) -> ClientConfig {
        let mut client = self.client(client_id);
        client
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", message_timeout.as_millis().to_string())
            // The partitioner of Kafka's Java clients: whoever else writes such keys finds the same partitions.
            .set("partitioner", "murmur2_random")
            .set("compression.type", "lz4")
            .set("linger.ms", "1")
            .set("batch.size", "1000000")
            .set("batch.num.messages", "10000")
            .set("queue.buffering.max.messages", "500000")
            .set("queue.buffering.max.kbytes", PRODUCER_QUEUE_KBYTES)
            // A topic that has just been made is not an unknown one.
            .set("topic.metadata.propagation.max.ms", "10000");
        client
    }

    /// A consumer's settings for `group`: commits by hand, whole transactions only.
    #[must_use]
    pub fn consumer(&self, client_id: &str, group: &str) -> ClientConfig {
        let mut client = self.client(client_id);
        client
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("isolation.level", "read_committed")
            // As much as the protocol can carry. An answer that is longer than this breaks the connection, and records that zstd has made small
            // and that unpack to more are refused, each time they are fetched: their partition would stand still. How long a record may be
            // is for its topic to say (`max.message.bytes`).
            .set("receive.message.max.bytes", i32::MAX.to_string())
            .set("partition.assignment.strategy", "cooperative-sticky")
            // A position that the broker no longer has is an error to be looked at, never a silent jump.
            .set("auto.offset.reset", "error");
        client
    }

    /// Makes those of `topics` that are missing, unless `KAFKA_CREATE_TOPICS` is false.
    ///
    /// # Errors
    /// When the brokers cannot be reached within ten seconds or refuse.
    pub async fn ensure_topics(&self, client_id: &str, topics: &[&str]) -> Result<(), KafkaError> {
        if !self.create_topics {
            return Ok(());
        }
        let admin: AdminClient<DefaultClientContext> = self.client(client_id).create()?;
        self.make_topics(&admin, topics).await
    }

    async fn make_topics(&self, admin: &AdminClient<DefaultClientContext>, topics: &[&str]) -> Result<(), KafkaError> {
        let wanted: Vec<NewTopic<'_>> = topics
            .iter()
            .map(|topic| NewTopic::new(topic, self.topic_partitions, TopicReplication::Fixed(self.topic_replication)))
            .collect();
        let options = AdminOptions::new()
            .operation_timeout(Some(Duration::from_secs(10)))
            .request_timeout(Some(Duration::from_secs(10)));
        for result in admin.create_topics(&wanted, &options).await? {
            match result {
                Ok(topic) => tracing::info!(
                    messaging.destination.name = topic,
                    partitions = self.topic_partitions,
                    "topic created"
                ),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(KafkaError::AdminOp(code)),
            }
        }
        Ok(())
    }

    /// A client to look at topics with, and to make them. It connects when it is first used.
    #[must_use]
    pub fn topics(&self, client_id: &str) -> Topics {
        Topics { config: self.clone(), client_id: client_id.to_owned(), admin: Arc::default() }
    }

    /// Waits with backoff until a broker answers. Returns whether one did: it did not if the shutdown was asked for first.
    pub async fn wait_until_up(&self, client_id: &str, shutdown: &Shutdown) -> bool {
        if self.brokers.is_none() {
            tracing::info!("KAFKA_BROKERS is not set: using {DEFAULT_BROKERS}");
        }
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            let config = self.client(client_id);
            let answer = tokio::task::spawn_blocking(move || {
                let client: BaseConsumer = config.create()?;
                client.fetch_metadata(None, Duration::from_secs(5)).map(|_| ())
            });
            let error = match answer.await {
                Ok(Ok(())) => return true,
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            let delay = backoff.random_delay();
            tracing::warn!(
                kafka.brokers = self.brokers(),
                error,
                retry_in_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
                "waiting for Kafka"
            );
            if !shutdown.sleep(delay).await {
                return false;
            }
        }
    }
}

/// How long brokers may take to answer a question about a topic.
const TOPIC_PATIENCE: Duration = Duration::from_secs(10);

/// How long one broker may take, before another one is asked.
const ONE_BROKER: Duration = Duration::from_secs(1);

/// How long a broker may take to answer at all. Longer pauses than that for garbage are rare.
const BROKER_PATIENCE: Duration = Duration::from_millis(500);

/// How long they may take to say what a topic's settings are. Without an answer, what is usual is assumed.
const SETTINGS_PATIENCE: Duration = Duration::from_secs(1);

/// Looks at topics and makes them. Cheap to clone; all clones share one client.
#[derive(Clone)]
pub struct Topics {
    config: KafkaConfig,
    client_id: String,
    admin: Arc<Mutex<Option<Arc<AdminClient<DefaultClientContext>>>>>,
}

/// What the brokers say of a topic's partitions.
#[derive(Default)]
struct Partitions {
    error: Option<RDKafkaErrorCode>,
    count: usize,
    leaderless: usize,
    /// How many replicas are in sync, of each partition that lacks some.
    reduced: Vec<usize>,
    /// `host:port` of all brokers that have an in-sync replica of one.
    in_sync: Vec<String>,
}

impl Partitions {
    fn of(metadata: &Metadata) -> Self {
        let Some(topic) = metadata.topics().first() else { return Self::default() };
        let has_replica = |id: i32| topic.partitions().iter().any(|partition| partition.isr().contains(&id));
        let reduced = topic.partitions().iter().filter(|of| of.isr().len() < of.replicas().len());
        let in_sync = metadata.brokers().iter().filter(|broker| has_replica(broker.id()));
        Self {
            error: topic.error().map(RDKafkaErrorCode::from),
            count: topic.partitions().len(),
            leaderless: topic.partitions().iter().filter(|partition| partition.leader() < 0).count(),
            reduced: reduced.map(|partition| partition.isr().len()).collect(),
            in_sync: in_sync.map(|broker| format!("{}:{}", broker.host(), broker.port())).collect(),
        }
    }
}

/// Why a topic may acknowledge nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TopicHealth {
    /// How many of its partitions have no leader; one if the topic is not there, or refused to us.
    pub leaderless: usize,
    /// What partitions lack that have too few replicas in sync.
    pub too_few_in_sync: Option<String>,
    /// `host:port` of the brokers that have an in-sync replica of it and do not answer.
    pub unanswering: Vec<String>,
}

/// What the brokers say of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicState {
    /// It can be written to, as far as is known.
    There {
        /// `max.message.bytes`: the largest batch of records it takes. None if we may not know.
        message_bytes_max: Option<usize>,
        /// How many partitions it has.
        partitions: usize,
        /// How many of them have no leader now.
        leaderless: usize,
    },
    /// There is none of that name.
    Missing,
    /// We may not look at it or make it now.
    Refused(String),
}

impl Topics {
    fn cached(&self) -> MutexGuard<'_, Option<Arc<AdminClient<DefaultClientContext>>>> {
        self.admin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admin(&self) -> Result<Arc<AdminClient<DefaultClientContext>>, KafkaError> {
        let mut cached = self.cached();
        if let Some(admin) = &*cached {
            return Ok(Arc::clone(admin));
        }
        let admin = Arc::new(self.config.client(&self.client_id).create::<AdminClient<DefaultClientContext>>()?);
        *cached = Some(Arc::clone(&admin));
        Ok(admin)
    }

    /// Asks for a topic's partitions. A client asks the broker that it asked last, also when that one stands still: so after a third
    /// of our patience, or a second, without an answer, a new client asks.
    async fn partitions(&self, topic: &str, patience: Duration) -> Result<Partitions, KafkaError> {
        let begun = Instant::now();
        loop {
            let (admin, topic) = (self.admin()?, topic.to_owned());
            let once = ONE_BROKER.min(patience / 3);
            let asked = tokio::task::spawn_blocking(move || {
                admin.inner().fetch_metadata(Some(&topic), once).map(|metadata| Partitions::of(&metadata))
            });
            match asked.await.map_err(|_| KafkaError::Canceled)? {
                Ok(partitions) => return Ok(partitions),
                Err(error) => {
                    // To end a client takes a moment.
                    let stuck = self.cached().take();
                    drop(tokio::task::spawn_blocking(move || drop(stuck)));
                    if begun.elapsed() + once > patience {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Asks the brokers how a topic is, and then each that has an in-sync replica of it whether it answers, for half a second at the most.
    ///
    /// # Errors
    /// When none says how it is within `patience`.
    pub async fn health(&self, topic: &str, patience: Duration) -> Result<TopicHealth, KafkaError> {
        let partitions = self.partitions(topic, patience).await?;
        let leaderless = partitions.leaderless.max(usize::from(partitions.count == 0));
        let unanswering = answering::unanswering(partitions.in_sync, BROKER_PATIENCE);
        let (too_few_in_sync, unanswering) =
            tokio::join!(self.too_few_in_sync(topic, &partitions.reduced), unanswering);
        Ok(TopicHealth { leaderless, too_few_in_sync, unanswering })
    }

    /// Says so if partitions of the topic, of those with so many replicas in sync, have too few of them. Says nothing if we may not know.
    ///
    /// A leader keeps the answer to a record back that it has taken when replicas were still enough, and with it all later answers to the same
    /// connection: to its client it looks like one that throttles.
    async fn too_few_in_sync(&self, topic: &str, reduced: &[usize]) -> Option<String> {
        if reduced.is_empty() {
            return None;
        }
        let least: usize = setting(self.admin().ok()?.as_ref(), topic, "min.insync.replicas").await?;
        let too_few: Vec<_> = reduced.iter().filter(|in_sync| **in_sync < least).collect();
        let fewest = too_few.iter().min()?;
        let count = too_few.len();
        Some(format!(
            "{count} of its partitions have too few replicas in sync: {fewest}, and min.insync.replicas is {least}"
        ))
    }

    /// Resolves when any broker has answered a question about a topic.
    ///
    /// # Errors
    /// When none answers within `patience`.
    pub async fn answer(&self, topic: &str, patience: Duration) -> Result<(), KafkaError> {
        self.partitions(topic, patience).await.map(drop)
    }

    /// Looks at a topic.
    ///
    /// # Errors
    /// When the brokers do not answer within ten seconds.
    pub async fn look(&self, topic: &str) -> Result<TopicState, KafkaError> {
        let Partitions { error, count, leaderless, .. } = self.partitions(topic, TOPIC_PATIENCE).await?;
        match error {
            None | Some(RDKafkaErrorCode::NoError) => {
                let message_bytes_max = setting(self.admin()?.as_ref(), topic, "max.message.bytes").await;
                Ok(TopicState::There { message_bytes_max, partitions: count, leaderless })
            }
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => Ok(TopicState::Missing),
            Some(RDKafkaErrorCode::LeaderNotAvailable) => {
                Ok(TopicState::Refused("has no leader for its partitions".to_owned()))
            }
            Some(code @ (RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::InvalidTopic)) => {
                Ok(TopicState::Refused(format!("is refused to us: {code}")))
            }
            Some(code) => Err(KafkaError::MetadataFetch(code)),
        }
    }

    /// Looks at a topic, and makes it if it is missing, by `KAFKA_TOPIC_PARTITIONS` and `KAFKA_TOPIC_REPLICATION`.
    ///
    /// # Errors
    /// When the brokers do not answer within ten seconds.
    pub async fn look_or_create(&self, topic: &str) -> Result<TopicState, KafkaError> {
        match self.look(topic).await? {
            TopicState::Missing if self.config.create_topics => {}
            TopicState::Missing => {
                return Ok(TopicState::Refused("does not exist, and KAFKA_CREATE_TOPICS is false".to_owned()));
            }
            state => return Ok(state),
        }
        match self.config.make_topics(self.admin()?.as_ref(), &[topic]).await {
            Ok(()) => Ok(match self.look(topic).await? {
                // Not every broker knows of it yet.
                TopicState::Missing => TopicState::There {
                    message_bytes_max: None,
                    partitions: usize::try_from(self.config.topic_partitions).unwrap_or(1),
                    leaderless: 0,
                },
                state => state,
            }),
            Err(KafkaError::AdminOp(code)) => {
                Ok(TopicState::Refused(format!("does not exist and cannot be made: {code}")))
            }
            Err(error) => Err(error),
        }
    }
}

/// A number of a topic's settings. None without the right to ask.
async fn setting(admin: &AdminClient<DefaultClientContext>, topic: &str, name: &str) -> Option<usize> {
    let options = AdminOptions::new().request_timeout(Some(SETTINGS_PATIENCE));
    let described = admin.describe_configs(&[ResourceSpecifier::Topic(topic)], &options).await.ok()?;
    described.first()?.as_ref().ok()?.get(name)?.value.as_ref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<KafkaConfig, ConfigError> {
        KafkaConfig::from_env(&Env::from_pairs(pairs.iter().copied()))
    }

    fn refused(pairs: &[(&str, &str)]) -> String {
        read(pairs).expect_err("refused").to_string()
    }

    #[test]
    fn what_contradicts_is_named_and_brokers_have_a_default() {
        assert_eq!(read(&[]).expect("complete").client("t").get("bootstrap.servers"), Some("localhost:9092"));
        assert!(refused(&[("KAFKA_BROKERS", "kafka")]).starts_with("KAFKA_BROKERS: 'kafka' is not a list"));
        let brokers = ("KAFKA_BROKERS", "a:1,b:2");
        assert!(refused(&[brokers, ("KAFKA_TOPIC_PARTITIONS", "0")]).starts_with("KAFKA_TOPIC_PARTITIONS: "));
        assert!(refused(&[brokers, ("KAFKA_SECURITY_PROTOCOL", "TLS")]).starts_with("KAFKA_SECURITY_PROTOCOL: "));
        assert!(
            refused(&[brokers, ("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT")]).starts_with("KAFKA_SASL_MECHANISM: ")
        );
        assert!(refused(&[brokers, ("KAFKA_SASL_USERNAME", "u")]).starts_with("KAFKA_SECURITY_PROTOCOL: "));
        assert!(
            refused(&[brokers, ("KAFKA_SSL_CA_LOCATION", "/no/such")])
                .starts_with("KAFKA_SSL_CA_LOCATION: there is no file")
        );
    }

    #[test]
    fn credentials_reach_the_client_and_not_the_log() {
        let config = read(&[
            ("KAFKA_BROKERS", "a:1"),
            ("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT"),
            ("KAFKA_SASL_MECHANISM", "PLAIN"),
            ("KAFKA_SASL_USERNAME", "u"),
            ("KAFKA_SASL_PASSWORD", "hunter2"),
        ])
        .expect("complete");
        assert_eq!(config.client("t").get("sasl.password"), Some("hunter2"));
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
