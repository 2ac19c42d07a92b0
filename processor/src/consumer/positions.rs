//! Where partitions start: at the position in Postgres, else at the one that Kafka has, else at the beginning. A position that
//! the broker does not have any more is refused, never jumped over.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use shared::backoff::Backoff;
use sqlx::PgPool;

use super::{ConsumerError, KafkaConsumer};
use crate::record::Partition;
use crate::store;

/// Where positions are kept.
#[derive(Clone)]
pub(crate) struct Positions {
    pub(crate) pool: PgPool,
    pub(crate) group: Arc<str>,
    pub(crate) kafka: Arc<KafkaConsumer>,
    pub(crate) retry_max: Duration,
}

/// Where one partition starts.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) partition: Partition,
    /// Position in Postgres; none if it has no row.
    pub(crate) position: Option<i64>,
    /// The lowest offset that is to be applied.
    pub(crate) next_offset: i64,
    /// What to ask Kafka for.
    pub(crate) offset: Offset,
}

/// What Kafka says of a partition.
#[derive(Debug, Clone, Copy)]
struct BrokerView {
    low: i64,
    high: i64,
    committed: Option<i64>,
}

/// How long the broker may take to answer one question.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);

impl Positions {
    /// Finds where `partitions` start. Tries again, with backoff, for as long as Postgres or Kafka do not answer: the consumer
    /// is polled meanwhile and stays in its group, and drops this when it leaves.
    ///
    /// # Errors
    /// When a position is not within what the broker has.
    pub(crate) async fn find(&self, partitions: &[Partition]) -> Result<Vec<Start>, ConsumerError> {
        if partitions.is_empty() {
            return Ok(Vec::new()); // More processors than partitions: no reason to wait for Postgres.
        }
        let mut backoff = Backoff::new(Duration::from_millis(50), self.retry_max);
        loop {
            let error = match self.read(partitions).await {
                Ok((stored, views)) => return self.starts(partitions, &stored, &views),
                Err(error) => error,
            };
            let delay = backoff.random_delay();
            tracing::warn!(
                error = %error,
                attempt = backoff.attempts(),
                retry_in_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
                "positions could not be read"
            );
            tokio::time::sleep(delay).await;
        }
    }

    async fn read(
        &self,
        partitions: &[Partition],
    ) -> Result<(HashMap<Partition, i64>, Vec<BrokerView>), Box<dyn std::error::Error + Send + Sync>> {
        let stored = store::positions(&self.pool, &self.group, partitions).await?;
        let kafka = Arc::clone(&self.kafka);
        let asked = partitions.to_vec();
        let views = tokio::task::spawn_blocking(move || ask_broker(&kafka, &asked)).await??;
        Ok((stored, views))
    }

    fn starts(
        &self,
        partitions: &[Partition],
        stored: &HashMap<Partition, i64>,
        views: &[BrokerView],
    ) -> Result<Vec<Start>, ConsumerError> {
        let mut starts = Vec::with_capacity(partitions.len());
        let mut lost = Vec::new();
        for (partition, view) in partitions.iter().zip(views) {
            let position = stored.get(partition).copied();
            match position.or(view.committed) {
                Some(offset) if offset < view.low || offset > view.high => lost.push(Lost {
                    group: Arc::clone(&self.group),
                    partition: partition.clone(),
                    offset,
                    in_postgres: position.is_some(),
                    view: *view,
                }),
                Some(offset) => starts.push(Start {
                    partition: partition.clone(),
                    position,
                    next_offset: offset,
                    offset: Offset::Offset(offset),
                }),
                // Not as the offset that `low` is now: it may be gone a moment later, and nothing of it has been missed.
                None => starts.push(Start {
                    partition: partition.clone(),
                    position,
                    next_offset: view.low,
                    offset: Offset::Beginning,
                }),
            }
        }
        if lost.is_empty() { Ok(starts) } else { Err(ConsumerError::PositionsLost(LostPositions(lost))) }
    }
}

/// Asks for the range of each partition, and for the committed offsets. Blocks, at most [`BROKER_TIMEOUT`] a question.
fn ask_broker(kafka: &KafkaConsumer, partitions: &[Partition]) -> Result<Vec<BrokerView>, KafkaError> {
    let mut asked = TopicPartitionList::with_capacity(partitions.len());
    for partition in partitions {
        asked.add_partition(&partition.topic, partition.number);
    }
    let committed = kafka.committed_offsets(asked, BROKER_TIMEOUT)?;
    let view = |partition: &Partition| {
        let (low, high) = kafka.fetch_watermarks(&partition.topic, partition.number, BROKER_TIMEOUT)?;
        let committed = committed.find_partition(&partition.topic, partition.number);
        let committed = match committed.map(|found| found.offset()) {
            Some(Offset::Offset(offset)) => Some(offset),
            _ => None,
        };
        Ok(BrokerView { low, high, committed })
    };
    partitions.iter().map(view).collect()
}

/// Positions that the broker does not have.
#[derive(Debug)]
pub struct LostPositions(Vec<Lost>);

#[derive(Debug)]
struct Lost {
    group: Arc<str>,
    partition: Partition,
    offset: i64,
    in_postgres: bool,
    view: BrokerView,
}

impl fmt::Display for LostPositions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the broker does not have the records at the position of every partition")?;
        self.0.iter().try_for_each(|lost| lost.fmt(formatter))
    }
}

impl std::error::Error for LostPositions {}

impl fmt::Display for Lost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BrokerView { low, high, .. } = self.view;
        let keeper = if self.in_postgres { "Postgres" } else { "Kafka's committed offset" };
        let cause = if self.offset > high {
            "the topic was made anew or has lost its end"
        } else {
            "records that were never applied have been deleted"
        };
        write!(
            formatter,
            "; partition {}: {keeper} says {}, the broker has {low} to {high}: {cause}. To accept that and go on at {low}: ",
            self.partition, self.offset
        )?;
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let (group, topic) = (quoted(&self.group), quoted(&self.partition.topic));
        let number = self.partition.number;
        if self.in_postgres {
            write!(
                formatter,
                "UPDATE consumer_offsets SET next_offset = {low} WHERE group_id = {group} AND topic = {topic} AND partition = {number}"
            )?;
        } else {
            write!(
                formatter,
                "INSERT INTO consumer_offsets (group_id, topic, partition, next_offset) VALUES ({group}, {topic}, {number}, {low})"
            )?;
        }
        formatter.write_char(';')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_position_says_what_is_stored_what_there_is_and_how_to_accept_it() {
        let lost = |offset, in_postgres| Lost {
            group: "g'".into(),
            partition: Partition { topic: "orders".into(), number: 3 },
            offset,
            in_postgres,
            view: BrokerView { low: 5, high: 9, committed: None },
        };
        let text = LostPositions(vec![lost(10, true), lost(1, false)]).to_string();
        for part in [
            "orders/3: Postgres says 10, the broker has 5 to 9: the topic was made anew",
            "UPDATE consumer_offsets SET next_offset = 5 WHERE group_id = 'g''' AND topic = 'orders' AND partition = 3;",
            "Kafka's committed offset says 1, the broker has 5 to 9: records that were never applied have been deleted",
            "INSERT INTO consumer_offsets (group_id, topic, partition, next_offset) VALUES ('g''', 'orders', 3, 5);",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
