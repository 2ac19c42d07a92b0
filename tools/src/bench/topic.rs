//! What has arrived in a topic: counted by its end offsets, or read.

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use shared::config::Env;
use shared::event;
use shared::kafka::KafkaConfig;

/// How long a broker may take for an answer.
const BROKER_PATIENCE: Duration = Duration::from_secs(10);

/// Between two looks at the end of a topic.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// How long nothing may arrive before the run is given up.
const STANDSTILL: Duration = Duration::from_mins(1);

/// The configuration of a Kafka client for these brokers.
pub fn config(brokers: &str) -> Result<KafkaConfig> {
    Ok(KafkaConfig::from_env(&Env::from_pairs([("KAFKA_BROKERS", brokers)]))?)
}

/// A topic with its partitions.
pub struct Topic {
    name: String,
    partitions: Vec<i32>,
    client: BaseConsumer,
}

impl Topic {
    /// Makes the topic, and looks at it from now on.
    pub async fn create(brokers: &str, name: &str) -> Result<Self> {
        config(brokers)?.ensure_topics("outrider-bench", &[name]).await?;
        let mut client = config(brokers)?.consumer("outrider-bench", "outrider-bench");
        client.set("fetch.wait.max.ms", "5").set("auto.offset.reset", "earliest").set("check.crcs", "false");
        let client: BaseConsumer = client.create()?;
        let begun = Instant::now();
        loop {
            let metadata = client.fetch_metadata(Some(name), BROKER_PATIENCE)?;
            let topic = metadata.topics().first().context("the topic has just been made")?;
            let led = topic.partitions().iter().all(|partition| partition.leader() >= 0);
            if topic.error().is_none() && led && !topic.partitions().is_empty() {
                let partitions = topic.partitions().iter().map(rdkafka::metadata::MetadataPartition::id).collect();
                drop(metadata);
                return Ok(Self { name: name.to_owned(), partitions, client });
            }
            ensure!(begun.elapsed() < BROKER_PATIENCE, "the topic {name} has no leaders");
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// How many records it holds.
    pub fn len(&self) -> Result<u64> {
        self.partitions.iter().map(|partition| self.len_of(*partition)).sum()
    }

    fn len_of(&self, partition: i32) -> Result<u64> {
        let begun = Instant::now();
        loop {
            match self.client.fetch_watermarks(&self.name, partition, BROKER_PATIENCE) {
                Ok((low, high)) => return Ok(u64::try_from(high - low).unwrap_or(0)),
                // A new topic's leaders are not known to everybody at once.
                Err(_) if begun.elapsed() < BROKER_PATIENCE => std::thread::sleep(LOOK_INTERVAL),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until it holds at least so many records.
    pub async fn reaches(&self, count: u64) -> Result<()> {
        let (mut best, mut since) = (0, Instant::now());
        loop {
            let now = self.len()?;
            if now >= count {
                return Ok(());
            }
            if now > best {
                (best, since) = (now, Instant::now());
            }
            if since.elapsed() > STANDSTILL {
                bail!("{best} of {count} records arrived in {}, then none for {STANDSTILL:?}", self.name);
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Reads it from the start and gives every record to `each`, and nothing ten times a second while nothing comes, until that says
    /// that it is enough. Blocks.
    pub fn read(&self, mut each: impl FnMut(Option<&BorrowedMessage<'_>>) -> bool) -> Result<()> {
        let mut list = TopicPartitionList::new();
        for partition in &self.partitions {
            list.add_partition_offset(&self.name, *partition, Offset::Beginning)?;
        }
        self.client.assign(&list)?;
        let mut heard = Instant::now();
        loop {
            let polled = self.client.poll(Duration::from_millis(100)).transpose()?;
            if !each(polled.as_ref()) {
                return Ok(());
            }
            if polled.is_some() {
                heard = Instant::now();
            }
            ensure!(heard.elapsed() < STANDSTILL, "nothing arrived in {} for {STANDSTILL:?}", self.name);
        }
    }

    /// Reads all of it and counts what should not be there. Blocks.
    pub fn check(&self, count: u64) -> Result<Order> {
        let mut latest: HashMap<Vec<u8>, i64> = HashMap::new();
        let mut order = Order::default();
        let all = self.len()?;
        self.read(|message| {
            let Some(message) = message else { return order.read < all };
            let version = header(message, event::AGGREGATE_VERSION).and_then(|text| text.parse().ok()).unwrap_or(0);
            let latest = latest.entry(message.key().unwrap_or_default().to_vec()).or_default();
            if version == *latest + 1 {
                *latest = version;
                order.right += 1;
            } else if version <= *latest {
                order.repeated += 1;
            } else {
                order.too_early += 1;
            }
            order.read += 1;
            order.read < all
        })?;
        order.lost = count.saturating_sub(order.right + order.too_early);
        Ok(order)
    }
}

/// What was found of each key's versions.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Records.
    pub read: u64,
    /// Those that came right after their elder.
    pub right: u64,
    /// Those that had been there before.
    pub repeated: u64,
    /// Those that came before an elder.
    pub too_early: u64,
    /// Those that never came.
    pub lost: u64,
}

impl Order {
    /// Whether each event came once, after its elder.
    pub fn is_perfect(&self) -> bool {
        self.right == self.read && self.lost == 0
    }
}

impl Display for Order {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { repeated, too_early, lost, .. } = self;
        write!(formatter, "{lost} lost, {repeated} repeated, {too_early} out of order")
    }
}

/// A header's text.
pub fn header<'a>(message: &'a BorrowedMessage<'_>, name: &str) -> Option<&'a str> {
    let headers = message.headers()?;
    let header = headers.iter().find(|header| header.key == name)?;
    str::from_utf8(header.value?).ok()
}
