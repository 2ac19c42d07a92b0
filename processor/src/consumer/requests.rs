//! What is asked of librdkafka for several partitions at once.

use std::time::Duration;

use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::KafkaConsumer;
use super::positions::Start;
use super::seat::Seat;
use crate::record::Partition;

/// How long librdkafka may take to set a partition to an offset.
const SEEK_TIMEOUT: Duration = Duration::from_secs(5);

/// The partitions as librdkafka takes them.
pub(crate) fn list_of<'a>(partitions: impl IntoIterator<Item = &'a Partition>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition(&partition.topic, partition.number);
    }
    list
}

/// Commits what Kafka has not been told of these seats. It is sent before whatever the consumer asks of the group after it, and
/// nobody waits for the answer.
pub(crate) fn commit<'a>(kafka: &KafkaConsumer, seats: impl Iterator<Item = (&'a Partition, &'a mut Seat)>) {
    let mut list = TopicPartitionList::new();
    for (partition, seat) in seats {
        if let Some(offset) = seat.untold() {
            // Fails only for an offset that is none, and this one is in Postgres.
            let _ = list.add_partition_offset(&partition.topic, partition.number, Offset::Offset(offset));
        }
    }
    if list.count() == 0 {
        return;
    }
    if let Err(error) = kafka.commit(&list, CommitMode::Async) {
        tracing::debug!(error = %error, "offsets not committed to Kafka");
    }
}

/// Sets partitions to where they start. They are paused first, and stay so: what was fetched before is thrown away, and nothing
/// of what comes after can be mistaken for it. Blocks.
pub(crate) fn seek(kafka: &KafkaConsumer, starts: &[Start]) -> Result<(), KafkaError> {
    kafka.pause(&list_of(starts.iter().map(|start| &start.partition)))?;
    for start in starts {
        kafka.seek(&start.partition.topic, start.partition.number, start.offset, SEEK_TIMEOUT)?;
    }
    Ok(())
}
