//! Topics of tests, and their records, repeats included.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::metadata::Metadata;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::{PATIENCE, kafka_brokers};
use crate::config::Env;
use crate::kafka::KafkaConfig;

/// A record as it lies in the topic.
#[derive(Debug, Clone)]
pub struct Record {
    /// The aggregate's id.
    pub key: String,
    /// The header `aggregate_version`, 0 without it.
    pub version: i64,
    /// The header `id`.
    pub event_id: String,
    /// The record's value.
    pub payload: String,
    /// All headers by name.
    pub headers: HashMap<String, String>,
    /// When it was handed to its producer, in milliseconds since 1970.
    pub timestamp_ms: i64,
}

/// Makes a topic as a relay would, and waits until all of its partitions answer. A type waits while a slow broker makes its topic, and some of
/// its events may be repeated then: a test that allows no repeats begins with this.
///
/// # Panics
/// When the brokers refuse, or do not answer in time.
pub async fn make_topic(topic: &str) {
    let env = Env::from_pairs([("KAFKA_BROKERS", kafka_brokers())]);
    let config = KafkaConfig::from_env(&env).expect("the settings are good");
    config.ensure_topics("outrider-test", &[topic]).await.expect("the topic is made");
    assert!(published(topic, 0).await.is_empty(), "the topic is new");
}

/// All records of `topic`, once `distinct` different events are in it; each partition's in its order.
///
/// # Panics
/// When they do not come within [`PATIENCE`].
pub async fn published(topic: &str, distinct: usize) -> Vec<Record> {
    published_at(&kafka_brokers(), topic, distinct).await
}

/// As [`published`], at these brokers.
///
/// # Panics
/// When they do not come within [`PATIENCE`].
pub async fn published_at(brokers: &str, topic: &str, distinct: usize) -> Vec<Record> {
    published_once(brokers, topic, move |events| events.len() >= distinct).await
}

/// As [`published_at`], once `complete` says of the ids of the events in it that they are all.
///
/// # Panics
/// When they do not come within [`PATIENCE`].
pub async fn published_once(
    brokers: &str,
    topic: &str,
    complete: impl Fn(&HashSet<String>) -> bool + Send + 'static,
) -> Vec<Record> {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    tokio::task::spawn_blocking(move || read_topic(&brokers, &topic, complete))
        .await
        .expect("the reader does not panic")
}

/// How many partitions a topic has.
///
/// # Panics
/// When the brokers do not answer.
pub async fn partitions_of(brokers: &str, topic: &str) -> usize {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    let look = move || {
        let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers).create().expect("a client");
        let metadata = consumer.fetch_metadata(Some(&topic), Duration::from_secs(5)).expect("the brokers answer");
        metadata.topics().first().map_or(0, |topic| topic.partitions().len())
    };
    tokio::task::spawn_blocking(look).await.expect("the reader does not panic")
}

/// Each key's versions in the order in which they first appear; repeats are left out.
#[must_use]
pub fn first_appearances(records: &[Record]) -> HashMap<String, Vec<i64>> {
    let mut seen = HashSet::new();
    let mut keys: HashMap<String, Vec<i64>> = HashMap::new();
    for record in records {
        if seen.insert(&record.event_id) {
            keys.entry(record.key.clone()).or_default().push(record.version);
        }
    }
    keys
}

fn read_topic(brokers: &str, topic: &str, complete: impl Fn(&HashSet<String>) -> bool) -> Vec<Record> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "outrider-test")
        .set("enable.auto.commit", "false")
        // A request for the end of a partition waits behind a fetch that waits for more: half a second, for each partition.
        .set("fetch.wait.max.ms", "10")
        .create()
        .expect("a consumer");
    let start = Instant::now();
    let partitions = loop {
        let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(5));
        let partitions = |metadata: &Metadata| metadata.topics().first().map_or(0, |topic| topic.partitions().len());
        match metadata.as_ref().map_or(0, partitions) {
            0 => assert!(start.elapsed() < PATIENCE, "the topic {topic} does not appear"),
            partitions => break i32::try_from(partitions).expect("few partitions"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment.add_partition_offset(topic, partition, Offset::Beginning).expect("a valid offset");
    }
    consumer.assign(&assignment).expect("an assignment");
    let mut records = Vec::new();
    let mut seen = HashSet::new();
    // The end of each partition once all events are there: up to it, repeats are part of the answer.
    while !complete(&seen) {
        assert!(start.elapsed() < PATIENCE, "{} events were published to {topic}, not all", seen.len());
        take(&consumer, &mut records, &mut seen);
    }
    let end: i64 = (0..partitions).map(|partition| end_of(&consumer, topic, partition, start)).sum();
    while i64::try_from(records.len()).expect("few records") < end {
        assert!(start.elapsed() < PATIENCE, "{} of {end} records were read", records.len());
        take(&consumer, &mut records, &mut seen);
    }
    records
}

/// How many records a partition holds. A topic that has just been made may not have a leader for each of its partitions yet.
fn end_of(consumer: &BaseConsumer, topic: &str, partition: i32, start: Instant) -> i64 {
    loop {
        match consumer.fetch_watermarks(topic, partition, Duration::from_secs(5)) {
            Ok((low, high)) => return high - low,
            Err(error) => assert!(start.elapsed() < PATIENCE, "no end of partition {partition}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn take(consumer: &BaseConsumer, records: &mut Vec<Record>, seen: &mut HashSet<String>) {
    let Some(message) = consumer.poll(Duration::from_millis(100)) else { return };
    let message = message.expect("the topic can be read");
    let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec()).expect("UTF-8");
    let headers: HashMap<String, String> = message
        .headers()
        .map(|headers| headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect())
        .unwrap_or_default();
    let event_id = headers.get("id").cloned().unwrap_or_default();
    seen.insert(event_id.clone());
    records.push(Record {
        key: text(message.key()),
        version: headers.get("aggregate_version").and_then(|version| version.parse().ok()).unwrap_or(0),
        event_id,
        payload: text(message.payload()),
        headers,
        timestamp_ms: message.timestamp().to_millis().unwrap_or(0),
    });
}
