//! Where the events of each aggregate type go, and whether they can.

use std::ops::Range;

use shared::kafka::{TopicState, Topics};

use super::outcomes::{Cause, Failure, Trouble};
use crate::config::RelayConfig;
use crate::routes::{IllegalTopic, Routes};

/// What a batch needs beside its records, at most.
const BATCH_OVERHEAD_BYTES: usize = 512;

/// A topic, and what the records of one aggregate type have in common there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destination {
    /// Its name.
    pub topic: String,
    /// `ce_source` of the records.
    pub source: String,
    /// The largest record that its brokers take, compressed or not.
    pub bytes_max: usize,
    /// Its partitions, by their places in the flow control of the producer.
    pub flows: Range<usize>,
}

impl Destination {
    /// The topic by itself.
    pub(crate) fn topic(&self) -> OpenTopic {
        OpenTopic { name: self.topic.clone(), bytes_max: self.bytes_max, partitions: self.flows.len() }
    }
}

/// A topic that takes records, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OpenTopic {
    /// Its name.
    pub name: String,
    /// The largest record that its brokers take.
    pub bytes_max: usize,
    /// How many partitions it has.
    pub partitions: usize,
}

/// Says which topic an aggregate type goes to.
#[derive(Debug, Clone)]
pub(crate) struct Destinations {
    routes: Routes,
    /// The topic of all types, when it is not for the routes to say.
    topic: Option<String>,
    source: String,
}

impl Destinations {
    pub(crate) fn new(config: &RelayConfig, routes: Routes) -> Self {
        Self { routes, topic: None, source: config.limits.source.clone() }
    }

    /// Sends the events of all types to this topic.
    pub(crate) fn send_all_to(&mut self, topic: Option<String>) {
        self.topic = topic;
    }

    /// Takes up other routes: what is sent from now on follows them. Returns whether they differ.
    pub(crate) fn reroute(&mut self, routes: Routes) -> bool {
        let differ = self.routes != routes;
        self.routes = routes;
        differ
    }

    /// The topic of an aggregate type.
    pub(crate) fn topic_of(&self, aggregate_type: &str) -> Result<String, IllegalTopic> {
        self.topic.clone().map_or_else(|| self.routes.resolve(aggregate_type), Ok)
    }

    /// What the records of an aggregate type need in a topic whose partitions have these flows.
    pub(crate) fn destination(&self, aggregate_type: &str, topic: &OpenTopic, flows: Range<usize>) -> Destination {
        Destination {
            topic: topic.name.clone(),
            source: format!("{}/{aggregate_type}", self.source),
            bytes_max: topic.bytes_max,
            flows,
        }
    }
}

/// Looks at a topic, and makes it if it is missing. `batch_bytes` is what the producer puts into a batch.
pub(crate) async fn open(topics: &Topics, name: &str, batch_bytes: usize) -> Result<OpenTopic, Failure> {
    let trouble = |cause| Failure::Topics(vec![Trouble { topic: name.to_owned(), cause }]);
    match topics.look_or_create(name).await {
        Ok(TopicState::There { partitions, leaderless, .. }) if leaderless == partitions => {
            Err(trouble(Cause::Unavailable("none of its partitions has a leader".to_owned())))
        }
        Ok(TopicState::There { message_bytes_max, partitions, .. }) => {
            let batch_max = message_bytes_max.unwrap_or(batch_bytes);
            if batch_max < batch_bytes {
                // A batch of many small records would be refused as a whole.
                return Err(Failure::SmallerBatches(batch_max));
            }
            let bytes_max = message_bytes_max.unwrap_or(usize::MAX).saturating_sub(BATCH_OVERHEAD_BYTES);
            Ok(OpenTopic { name: name.to_owned(), bytes_max, partitions })
        }
        Ok(TopicState::Refused(why)) => Err(trouble(Cause::Unavailable(why))),
        Ok(TopicState::Missing) => Err(trouble(Cause::Unavailable("does not exist".to_owned()))),
        Err(error) => Err(trouble(Cause::TimedOut(format!("could not be looked at: {error}")))),
    }
}
