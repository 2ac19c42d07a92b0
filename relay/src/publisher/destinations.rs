//! Where the events of each aggregate type go, and whether they can.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use shared::kafka::{KafkaConfig, TopicState, Topics};

use super::outcomes::Failure;

/// How long a topic that cannot be written to stays so for us, until it is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// What a batch needs beside its records, at most.
const BATCH_OVERHEAD_BYTES: usize = 512;

/// A topic, and what its records have in common.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    /// Its name.
    pub topic: String,
    /// `ce_source` of the records.
    pub source: String,
    /// The largest record that its brokers take, compressed or not.
    pub bytes_max: usize,
}

/// Topics whose records the brokers refuse whatever is in them, and why.
pub(crate) type Denied = HashMap<String, (String, Instant)>;

/// The destinations that were asked for so far.
pub(crate) struct Destinations {
    kafka: KafkaConfig,
    topics: Topics,
    source: String,
    batch_bytes: usize,
    denied: Denied,
    known: HashMap<String, Result<Destination, (String, Instant)>>,
}

impl Destinations {
    pub(crate) fn new(kafka: KafkaConfig, source: String, batch_bytes: usize, denied: Denied) -> Self {
        Self { topics: kafka.topics("outrider-relay"), kafka, source, batch_bytes, denied, known: HashMap::new() }
    }

    /// Whether [`Destinations::find`] need not be asked.
    pub(crate) fn is_known(&self, aggregate_type: &str) -> bool {
        match self.known.get(aggregate_type) {
            None => false,
            Some(Ok(_)) => true,
            Some(Err((_, looked))) => looked.elapsed() < LOOK_AGAIN,
        }
    }

    /// Finds the destination of an aggregate type, or why its events can have none. Makes the topic if it is missing.
    pub(crate) async fn find(&mut self, aggregate_type: &str) -> Result<(), Failure> {
        let found = self.look(aggregate_type).await?;
        self.known.insert(aggregate_type.to_owned(), found.map_err(|reason| (reason, Instant::now())));
        Ok(())
    }

    /// The destination that was found for an aggregate type, or why its events can have none.
    pub(crate) fn known(&self, aggregate_type: &str) -> Result<&Destination, &str> {
        match self.known.get(aggregate_type) {
            Some(Ok(destination)) => Ok(destination),
            Some(Err((reason, _))) => Err(reason),
            None => Err("its aggregate type has no topic"),
        }
    }

    async fn look(&self, aggregate_type: &str) -> Result<Result<Destination, String>, Failure> {
        let topic = format!("{aggregate_type}s");
        if !is_legal_topic(&topic) {
            return Ok(Err("its aggregate type makes no legal topic name".to_owned()));
        }
        if let Some((reason, _)) = self.denied.get(&topic).filter(|(_, since)| since.elapsed() < LOOK_AGAIN) {
            return Ok(Err(reason.clone()));
        }
        let failed = |error| Failure::Topic { topic: topic.clone(), error };
        let mut state = self.topics.look(&topic).await.map_err(failed)?;
        if matches!(state, TopicState::Missing) {
            state = match self.kafka.creates_topics() {
                true => self.topics.create(&topic).await.map_err(failed)?,
                false => TopicState::Refused("does not exist, and KAFKA_CREATE_TOPICS is false".to_owned()),
            };
        }
        match state {
            TopicState::There { message_bytes_max } => {
                let bytes_max = message_bytes_max.unwrap_or(self.batch_bytes);
                if bytes_max < self.batch_bytes {
                    // A batch of many small records would be refused as a whole.
                    return Err(Failure::SmallerBatches(bytes_max));
                }
                let source = format!("{}/{aggregate_type}", self.source);
                let bytes_max = message_bytes_max.unwrap_or(usize::MAX).saturating_sub(BATCH_OVERHEAD_BYTES);
                Ok(Ok(Destination { topic, source, bytes_max }))
            }
            TopicState::Refused(why) => Ok(Err(format!("the topic '{topic}' {why}"))),
            TopicState::Missing => Ok(Err(format!("the topic '{topic}' does not exist"))),
        }
    }
}

/// Whether Kafka allows a topic of that name (`org.apache.kafka.common.internals.Topic`). Asked here, since for an illegal one the
/// producer takes the record first and refuses it later, when its elders and its youngers are under way.
fn is_legal_topic(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() <= 249
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_names_are_checked_by_kafkas_rules() {
        assert!(["orders", "a.b_c-1"].into_iter().all(is_legal_topic));
        assert!(!["", ".", "..", "no topic", "a/b", "é", &"x".repeat(250)].into_iter().any(is_legal_topic));
    }
}
