//! Where the events of each aggregate type go, and whether they can.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use shared::kafka::{KafkaConfig, TopicState, Topics};

use super::outcomes::Failure;
use crate::config::RelayConfig;
use crate::routes::Routes;
use crate::session::Lessons;

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
    routes: Routes,
    source: String,
    batch_bytes: usize,
    denied: Denied,
    known: HashMap<String, Result<Destination, (String, Instant)>>,
}

impl Destinations {
    pub(crate) fn new(config: &RelayConfig, routes: Routes, lessons: &Lessons) -> Self {
        Self {
            topics: config.kafka.topics("outrider-relay"),
            kafka: config.kafka.clone(),
            routes,
            source: config.limits.source.clone(),
            batch_bytes: lessons.batch_bytes,
            denied: lessons.denied.clone(),
            known: HashMap::new(),
        }
    }

    /// Takes up other routes: what is sent from now on follows them.
    pub(crate) fn reroute(&mut self, routes: Routes) {
        if self.routes != routes {
            self.routes = routes;
            self.known.clear();
        }
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
        let topic = match self.routes.resolve(aggregate_type) {
            Ok(topic) => topic,
            Err(illegal) => return Ok(Err(illegal.to_string())),
        };
        if let Some((reason, _)) = self.denied.get(&topic).filter(|(_, since)| since.elapsed() < LOOK_AGAIN) {
            return Ok(Err(reason.clone()));
        }
        let failed = |error| Failure::Topic { topic: topic.clone(), error };
        let mut state = self.topics.look(&topic).await.map_err(failed)?;
        if matches!(state, TopicState::Missing) {
            state = if self.kafka.creates_topics() {
                self.topics.create(&topic).await.map_err(failed)?
            } else {
                TopicState::Refused("does not exist, and KAFKA_CREATE_TOPICS is false".to_owned())
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
