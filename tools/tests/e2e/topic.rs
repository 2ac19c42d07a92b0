//! All that lies in a topic, repeats included.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use shared::testing::{PATIENCE, kafka_brokers};

/// A record.
pub(super) struct Record {
    pub(super) key: String,
    pub(super) event_id: String,
    pub(super) version: i64,
    /// When it was handed to its producer, in milliseconds since 1970.
    pub(super) timestamp_ms: i64,
}

/// The records of a topic once `distinct` events are in it, each partition's in its order.
pub(super) fn records(topic: &str, distinct: usize) -> Result<Vec<Record>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka_brokers())
        .set("group.id", "nobody")
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "10")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(5))?;
    let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    let mut assignment = TopicPartitionList::new();
    for partition in 0..i32::try_from(partitions)? {
        assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;
    let (mut found, mut seen, start) = (Vec::new(), HashSet::new(), Instant::now());
    while seen.len() < distinct {
        ensure!(start.elapsed() < PATIENCE, "{} of {distinct} events are on the topic", seen.len());
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let record = read(&message?)?;
        seen.insert(record.event_id.clone());
        found.push(record);
    }
    // What came after the last of them, up to what is the end by now.
    let mut end = 0;
    for partition in 0..i32::try_from(partitions)? {
        let (low, high) = consumer.fetch_watermarks(topic, partition, Duration::from_secs(5))?;
        end += usize::try_from(high - low)?;
    }
    while found.len() < end {
        ensure!(start.elapsed() < PATIENCE, "{} of {end} records were read", found.len());
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            found.push(read(&message?)?);
        }
    }
    Ok(found)
}

fn read(message: &impl Message) -> Result<Record> {
    let headers = message.headers().context("headers")?;
    let header = |name: &str| {
        let value = headers.iter().find(|header| header.key == name).and_then(|header| header.value);
        Ok::<_, anyhow::Error>(String::from_utf8(value.with_context(|| format!("the header {name}"))?.to_vec())?)
    };
    Ok(Record {
        key: String::from_utf8(message.key().context("a key")?.to_vec())?,
        event_id: header("id")?,
        version: header("aggregate_version")?.parse()?,
        timestamp_ms: message.timestamp().to_millis().context("a time")?,
    })
}
