//! A look at the brokers and at topics: everything that keeps events from flowing, or will.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::{Metadata, MetadataBroker};

use super::rights::{Object, Rights, RightsClient};
use super::{KafkaConfig, TOPIC_PATIENCE, answering};
use crate::findings::{Finding, fine_if_none};

/// How long brokers may take to answer the first question.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long each may take to answer at the address that it tells.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(3);

/// A topic with less than this loses events that a processor has not read, if that is away for a night.
const RETENTION_SHORT: Duration = Duration::from_hours(24);

/// A topic, and what we do with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicUse {
    /// Its name.
    pub topic: String,
    /// Whether a relay of ours writes to it.
    pub written: bool,
    /// The consumer group of ours that reads it.
    pub group: Option<String>,
}

/// Keeps what the client says of its connections.
#[derive(Default)]
struct Complaints(Mutex<Vec<String>>);

impl ClientContext for Complaints {
    fn error(&self, _: KafkaError, reason: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(reason.to_owned());
    }
}

impl ConsumerContext for Complaints {}

/// Brokers and topics, as the brokers tell them.
struct Cluster {
    brokers: Vec<String>,
    first_id: Option<i32>,
    topics: BTreeMap<String, Topic>,
}

#[derive(Debug, Clone, Default)]
struct Topic {
    partitions: usize,
    leaderless: usize,
    /// Copies of a partition, the fewest.
    replicas: usize,
    /// Copies that are in sync, the fewest.
    in_sync: usize,
}

impl Cluster {
    fn of(metadata: &Metadata) -> Self {
        let brokers = metadata.brokers().iter().map(|broker| format!("{}:{}", broker.host(), broker.port())).collect();
        let topics = metadata.topics().iter().map(|topic| {
            let partitions = topic.partitions();
            let found = Topic {
                partitions: partitions.len(),
                leaderless: partitions.iter().filter(|partition| partition.leader() < 0).count(),
                replicas: partitions.iter().map(|partition| partition.replicas().len()).min().unwrap_or(0),
                in_sync: partitions.iter().map(|partition| partition.isr().len()).min().unwrap_or(0),
            };
            (topic.name().to_owned(), found)
        });
        let first_id = metadata.brokers().first().map(MetadataBroker::id);
        Self { brokers, first_id, topics: topics.collect() }
    }

    /// A topic that is there.
    fn topic(&self, name: &str) -> Option<&Topic> {
        self.topics.get(name).filter(|topic| topic.partitions > 0)
    }
}

impl KafkaConfig {
    /// Looks at the brokers and at each of `uses`.
    pub async fn diagnose(&self, client_id: &str, uses: &[TopicUse]) -> Vec<Finding> {
        let cluster = match self.cluster(client_id).await {
            Ok(cluster) => cluster,
            Err(finding) => return vec![finding],
        };
        let count = cluster.brokers.len();
        let mut findings = vec![Finding::fine("kafka.connection", format!("{count} brokers"))];
        findings.push(addresses(&cluster).await);
        findings.push(self.version(client_id, cluster.first_id).await);
        findings.extend(self.replication(count));
        findings.extend(self.may(client_id, uses, &cluster).await);
        let topics = uses.iter().map(|of| of.topic.as_str());
        let there: Vec<&str> = topics.filter(|topic| cluster.topic(topic).is_some()).collect();
        let asked: Vec<ResourceSpecifier<'_>> = there.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let told = self.settings(client_id, &asked).await;
        let settings: BTreeMap<&str, Settings> =
            there.into_iter().zip(told).filter_map(|(topic, told)| Some((topic, told?))).collect();
        for of in uses {
            match cluster.topic(&of.topic) {
                None => findings.push(self.missing(client_id, &of.topic).await),
                Some(found) => {
                    let mut faults = judge(&of.topic, found, count);
                    match settings.get(of.topic.as_str()) {
                        Some(settings) => faults.extend(judge_settings(&of.topic, found, settings)),
                        None => faults.push(Finding::warning(
                            "kafka.topics",
                            format!("the settings of the topic {} are not told to us", of.topic),
                            "allow DESCRIBE_CONFIGS on it, or look at them as an administrator",
                        )),
                    }
                    if faults.is_empty() {
                        let words = format!("{}: {} partitions, {} in sync", of.topic, found.partitions, found.in_sync);
                        faults.push(Finding::fine("kafka.topics", words));
                    }
                    findings.extend(faults);
                }
            }
        }
        findings
    }

    /// Says in the log what [`Self::diagnose`] finds, for a service that starts.
    pub async fn say_findings(self, client_id: &'static str, uses: Vec<TopicUse>) {
        self.diagnose(client_id, &uses).await.iter().for_each(Finding::log);
    }

    async fn cluster(&self, client_id: &str) -> Result<Cluster, Finding> {
        let config = self.client(client_id);
        let brokers = self.brokers().to_owned();
        let asked = tokio::task::spawn_blocking(move || {
            let client = BaseConsumer::from_config_and_context(&config, Complaints::default());
            let client = client.map_err(|error| (error, String::new()))?;
            client.fetch_metadata(None, PATIENCE).map(|metadata| Cluster::of(&metadata)).map_err(|error| {
                // What the client has to say of its connections comes by its events.
                let _ = client.poll(Duration::from_millis(10));
                let heard = client.context().0.lock().unwrap_or_else(PoisonError::into_inner).join("; ");
                (error, heard)
            })
        });
        match asked.await {
            Ok(Ok(cluster)) => Ok(cluster),
            Ok(Err((error, heard))) => {
                let why = if heard.is_empty() { error.to_string() } else { heard };
                Err(Finding::wrong(
                    "kafka.connection",
                    format!("no broker of KAFKA_BROKERS={brokers} answers as we ask ({why})"),
                    "check the addresses, that a broker listens there, and KAFKA_SECURITY_PROTOCOL with what belongs to it",
                ))
            }
            Err(error) => Err(Finding::error("kafka.connection", error)),
        }
    }

    /// Which version the brokers have, as far as their settings tell: nothing else does to a client.
    async fn version(&self, client_id: &str, broker: Option<i32>) -> Finding {
        const CHECK: &str = "kafka.version";
        let settings = match broker {
            Some(broker) => self.settings(client_id, &[ResourceSpecifier::Broker(broker)]).await.pop().flatten(),
            None => None,
        };
        let Some(settings) = settings else {
            return Finding::fine(CHECK, "not told to us, who may not read the brokers' settings");
        };
        // Kafka 4.0 has it no more.
        Finding::fine(
            CHECK,
            match settings.get("inter.broker.protocol.version") {
                Some(protocol) => format!("before 4.0; the brokers speak {protocol} to each other"),
                None => "4.0 or newer".to_owned(),
            },
        )
    }

    /// Whether topics can be made as we were told to make them.
    fn replication(&self, brokers: usize) -> Option<Finding> {
        let wanted = usize::try_from(self.topic_replication).unwrap_or(1);
        (self.create_topics && wanted > brokers).then(|| {
            Finding::wrong(
                "kafka.replication",
                format!("KAFKA_TOPIC_REPLICATION is {wanted}, and there are {brokers} brokers: no topic can be made"),
                format!("set KAFKA_TOPIC_REPLICATION={brokers}, or add brokers"),
            )
        })
    }

    /// Of a topic that is not there, whether it could be made.
    async fn missing(&self, client_id: &str, topic: &str) -> Finding {
        const CHECK: &str = "kafka.topics";
        if !self.create_topics {
            return Finding::wrong(
                CHECK,
                format!("the topic {topic} does not exist, and KAFKA_CREATE_TOPICS is false: its events wait"),
                "make the topic, or set KAFKA_CREATE_TOPICS=true",
            );
        }
        let tried = async {
            let admin: AdminClient<DefaultClientContext> = self.client(client_id).create()?;
            let replication = TopicReplication::Fixed(self.topic_replication);
            let topic = NewTopic::new(topic, self.topic_partitions, replication);
            let options = AdminOptions::new().request_timeout(Some(TOPIC_PATIENCE)).validate_only(true);
            let made = admin.create_topics([&topic], &options).await?;
            made.into_iter().try_for_each(|made| made.map(drop).map_err(|(_, code)| KafkaError::AdminOp(code)))
        };
        match tried.await {
            // Somebody has just made it.
            Ok(()) | Err(KafkaError::AdminOp(RDKafkaErrorCode::TopicAlreadyExists)) => {
                Finding::fine(CHECK, format!("{topic} is not there yet, and is made when it is needed"))
            }
            Err(error) => Finding::wrong(
                CHECK,
                format!("the topic {topic} does not exist, and could not be made ({error}): its events wait"),
                "make the topic, allow our user CREATE on it, or correct KAFKA_TOPIC_PARTITIONS and KAFKA_TOPIC_REPLICATION",
            ),
        }
    }

    /// What we may do, by the brokers' word.
    async fn may(&self, client_id: &str, uses: &[TopicUse], cluster: &Cluster) -> Vec<Finding> {
        const CHECK: &str = "kafka.rights";
        let mut questions = Vec::new();
        for of in uses {
            if cluster.topic(&of.topic).is_some() {
                questions.push((Object::Topic(of.topic.clone()), of.written, of.group.is_some()));
            }
            if let Some(group) = &of.group {
                questions.push((Object::Group(group.clone()), false, true));
            }
        }
        questions.sort();
        questions.dedup();
        let client = self.client(client_id);
        let answered = tokio::task::spawn_blocking(move || {
            let mut rights = RightsClient::new(&client)?;
            let ask = |(object, write, read): (Object, bool, bool)| {
                lacking(&object, (write, read), rights.of(&object, PATIENCE))
            };
            Ok::<Vec<Finding>, KafkaError>(questions.into_iter().filter_map(ask).collect())
        });
        match answered.await {
            Ok(Ok(findings)) => fine_if_none(CHECK, "the brokers let us do what we need", findings),
            Ok(Err(error)) => vec![Finding::error(CHECK, error)],
            Err(error) => vec![Finding::error(CHECK, error)],
        }
    }

    /// The settings of each of these, if it tells them.
    async fn settings(&self, client_id: &str, of: &[ResourceSpecifier<'_>]) -> Vec<Option<Settings>> {
        let Ok(admin) = self.client(client_id).create::<AdminClient<DefaultClientContext>>() else {
            return Vec::new();
        };
        let options = AdminOptions::new().request_timeout(Some(TOPIC_PATIENCE));
        let described = admin.describe_configs(of, &options).await.unwrap_or_default();
        let told = described.into_iter().map(|described| {
            let entries = described.ok()?.entries.into_iter();
            Some(entries.filter_map(|entry| Some((entry.name, entry.value?))).collect())
        });
        told.collect()
    }
}

/// Values by name.
type Settings = BTreeMap<String, String>;

fn lacking(what: &Object, (write, read): (bool, bool), found: Result<Option<Rights>, KafkaError>) -> Option<Finding> {
    const CHECK: &str = "kafka.rights";
    let rights = match found {
        Ok(Some(rights)) => rights,
        Ok(None)
        | Err(KafkaError::AdminOp(
            RDKafkaErrorCode::GroupAuthorizationFailed | RDKafkaErrorCode::TopicAuthorizationFailed,
        )) => {
            let found = format!("{what} is hidden from us: we may not even see it");
            return Some(Finding::wrong(
                CHECK,
                found,
                format!("allow our user DESCRIBE, and what it needs, on {what}"),
            ));
        }
        // A right that cannot be looked up may be there.
        Err(error) => {
            let found = format!("what we may do with {what} is not told ({error})");
            return Some(Finding::warning(CHECK, found, "look at the brokers' ACLs"));
        }
    };
    let needs = [("WRITE", write && !rights.write), ("READ", read && !rights.read)];
    let missing: Vec<&str> = needs.into_iter().filter(|(_, lacks)| *lacks).map(|(operation, _)| operation).collect();
    (!missing.is_empty()).then(|| {
        let missing = missing.join(" and ");
        Finding::wrong(CHECK, format!("we may not {missing} on {what}"), format!("allow our user {missing} on {what}"))
    })
}

/// Whether each broker answers at the address by which it wants to be called.
async fn addresses(cluster: &Cluster) -> Finding {
    let silent = answering::unanswering(cluster.brokers.clone(), ADDRESS_PATIENCE).await;
    if silent.is_empty() {
        return Finding::fine(
            "kafka.addresses",
            format!("all answer where they say that they are: {}", cluster.brokers.join(", ")),
        );
    }
    Finding::wrong(
        "kafka.addresses",
        format!("brokers tell addresses at which they do not answer from here: {}", silent.join(", ")),
        "correct advertised.listeners of these brokers, or let this machine reach them",
    )
}

/// What is wrong with a topic's partitions.
fn judge(topic: &str, found: &Topic, brokers: usize) -> Vec<Finding> {
    const CHECK: &str = "kafka.topics";
    let mut faults = Vec::new();
    if found.leaderless > 0 {
        faults.push(Finding::wrong(
            CHECK,
            format!(
                "{} of {} partitions of the topic {topic} have no leader: their events wait",
                found.leaderless, found.partitions
            ),
            "bring back the brokers that have their replicas",
        ));
    }
    if found.replicas == 1 && brokers > 1 {
        faults.push(Finding::warning(
            CHECK,
            format!("the topic {topic} has one replica: if its broker is lost, so are events that were acknowledged"),
            "raise its replication to 3 (kafka-reassign-partitions), and KAFKA_TOPIC_REPLICATION",
        ));
    }
    faults
}

/// What is wrong with a topic's settings.
fn judge_settings(topic: &str, found: &Topic, settings: &Settings) -> Vec<Finding> {
    const CHECK: &str = "kafka.topics";
    let value = |name: &str| settings.get(name).map(String::as_str);
    let number = |name: &str| value(name).and_then(|value| value.parse::<i64>().ok());
    let alter = |setting: &str| {
        format!("run `kafka-configs --alter --entity-type topics --entity-name {topic} --add-config {setting}`")
    };
    let mut faults = Vec::new();
    let mut warn = |found: String, advice: String| faults.push(Finding::warning(CHECK, found, advice));
    if value("cleanup.policy") == Some("compact") {
        warn(
            format!(
                "the topic {topic} is compacted: of each key only the last event stays, so that a processor that is late misses the others"
            ),
            alter("cleanup.policy=delete"),
        );
    }
    if value("unclean.leader.election.enable") == Some("true") {
        warn(
            format!(
                "unclean.leader.election.enable is true for the topic {topic}: a broker that lags may become leader, and events are lost"
            ),
            alter("unclean.leader.election.enable=false"),
        );
    }
    if number("message.timestamp.before.max.ms").is_some_and(|millis| millis < 86_400_000) {
        warn(
            format!(
                "message.timestamp.before.max.ms of the topic {topic} is below a day: events of a backlog are refused"
            ),
            alter("message.timestamp.before.max.ms=9223372036854775807"),
        );
    }
    if number("max.message.bytes").is_some_and(|bytes| bytes < 1_000_000) {
        warn(
            format!("max.message.bytes of the topic {topic} is below 1 MB: larger events park their keys"),
            alter("max.message.bytes=1048588"),
        );
    }
    if number("retention.bytes").is_some_and(|bytes| bytes >= 0) {
        warn(
            format!(
                "retention.bytes of the topic {topic} is set: under load, events go before a processor that is late has read them"
            ),
            alter("retention.bytes=-1"),
        );
    }
    let short = i64::try_from(RETENTION_SHORT.as_millis()).unwrap_or(i64::MAX);
    if number("retention.ms").is_some_and(|millis| (0..short).contains(&millis)) {
        warn(
            format!(
                "retention.ms of the topic {topic} is below a day: a processor that is away for a night misses events"
            ),
            alter("retention.ms=604800000"),
        );
    }
    if let Some(least) = number("min.insync.replicas").and_then(|least| usize::try_from(least).ok()) {
        if least > found.in_sync {
            faults.push(Finding::wrong(
                CHECK,
                format!(
                    "the topic {topic} takes nothing: {} of {least} replicas (min.insync.replicas) are in sync",
                    found.in_sync
                ),
                "bring back the brokers that have the others, or lower min.insync.replicas",
            ));
        } else if least == found.replicas && found.replicas > 1 {
            faults.push(Finding::warning(
                CHECK,
                format!("min.insync.replicas of the topic {topic} is {least}, the number of its replicas: it takes nothing while one broker is away"),
                alter(&format!("min.insync.replicas={}", least - 1)),
            ));
        } else if least == 1 && found.replicas > 1 {
            faults.push(Finding::warning(
                CHECK,
                format!("min.insync.replicas of the topic {topic} is 1: an event is acknowledged by one broker, and lost with that"),
                alter("min.insync.replicas=2"),
            ));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn replicas_are_judged_by_what_may_fail() {
        let topic = |replicas, in_sync| Topic { partitions: 1, leaderless: 0, replicas, in_sync };
        let found = |topic: &Topic, least: &str| {
            let faults = judge_settings("t", topic, &settings(&[("min.insync.replicas", least)]));
            faults.into_iter().map(|finding| finding.found).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(found(&topic(3, 3), "2"), "");
        assert_eq!(found(&topic(1, 1), "1"), "");
        assert!(found(&topic(3, 3), "1").contains("acknowledged by one broker"));
        assert!(found(&topic(3, 3), "3").contains("while one broker is away"));
        assert!(found(&topic(3, 1), "2").contains("takes nothing: 1 of 2"));
        assert!(judge("t", &topic(1, 1), 1).is_empty() && judge("t", &topic(1, 1), 3).len() == 1);
    }

    #[test]
    fn good_settings_are_no_fault() {
        let topic = Topic { partitions: 6, leaderless: 0, replicas: 3, in_sync: 3 };
        let good = [
            ("cleanup.policy", "delete"),
            ("max.message.bytes", "1048588"),
            ("message.timestamp.before.max.ms", "9223372036854775807"),
            ("min.insync.replicas", "2"),
            ("retention.bytes", "-1"),
            ("retention.ms", "604800000"),
            ("unclean.leader.election.enable", "false"),
        ];
        assert_eq!(judge_settings("t", &topic, &settings(&good)), []);
    }
}
