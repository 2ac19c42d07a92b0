//! A stream: one producer and the thread that feeds it. A session has one for all events that flow, and one for each aggregate type that
//! is being brought up to where the others are.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::ages::Stage;
use shared::kafka::Topics;

use super::SessionError;
use super::lease::Lease;
use super::sender::{Pipe, Sender};
use crate::config::RelayConfig;
use crate::metrics::Metrics;
use crate::publisher::destinations::Destinations;
use crate::publisher::flow::{FlowControl, Flows, WINDOW_FIRST};
use crate::publisher::outcomes::Outcomes;
use crate::publisher::{Batching, Listener, Publisher};
use crate::routes::Routes;

/// What one producer has taught for the next.
#[derive(Debug, Clone)]
pub struct PublishConstraints {
    /// Bytes that a batch may have.
    pub(crate) batch_bytes: usize,
    /// Bytes that may be in flight at first.
    pub(crate) window: u64,
    /// Rows (lane and outbox id) that a broker has refused, perhaps only for the company in their batch.
    pub(crate) suspects: HashSet<(i16, i64)>,
    /// Parked events that were tried again together failed: they are to go alone.
    pub(crate) retry_alone: bool,
}

impl Default for PublishConstraints {
    fn default() -> Self {
        Self { batch_bytes: 1_000_000, window: WINDOW_FIRST, suspects: HashSet::new(), retry_alone: false }
    }
}

impl PublishConstraints {
    /// A topic takes batches of so many bytes, whose framing is part of it. From then on all topics get such batches: librdkafka has one
    /// `batch.size` for a producer, not one for a topic. A topic is better given its usual `max.message.bytes`.
    pub(crate) fn shrink_batches(&mut self, bytes: usize) {
        self.batch_bytes = self.batch_bytes.min(bytes.saturating_sub(512)).max(1);
    }

    fn batching(&self) -> Batching {
        if self.suspects.is_empty() { Batching::Full(self.batch_bytes) } else { Batching::Single }
    }
}

/// How long a stream may take to find out about a topic: one of all events, so that they do not wait, and one of a single type.
pub(super) const LOOK_OF_ALL: Duration = Duration::from_secs(2);
pub(super) const LOOK_OF_ONE: Duration = Duration::from_secs(15);

/// What every stream of a session has in common.
pub(super) struct Streams<'a> {
    pub config: &'a RelayConfig,
    pub metrics: &'a Metrics,
    pub topics: Topics,
    pub routes: Routes,
    /// Until when the lanes are ours.
    pub lease_until: Instant,
}

/// A producer to which nothing was handed yet, and those that will hear of its records.
pub(super) struct Unused {
    publisher: Publisher,
    control: FlowControl,
    outcomes: Arc<Outcomes>,
    batching: Batching,
}

/// See the module.
pub(super) struct Stream {
    pub pipe: Pipe,
    pub outcomes: Arc<Outcomes>,
    pub lease: Arc<Lease>,
    flows: Arc<Flows>,
}

impl Streams<'_> {
    /// The topic of an aggregate type; none if it can have none.
    pub(super) fn topic_of(&self, aggregate_type: &str) -> Option<String> {
        self.routes.resolve(aggregate_type).ok()
    }

    /// Makes a producer. It connects, and has a broker give it an id, by itself.
    pub(super) fn producer(&self, constraints: &PublishConstraints) -> Result<Unused, SessionError> {
        let timeout = self.config.limits.message_timeout();
        let (control, outcomes) = (FlowControl::new(timeout), Arc::new(Outcomes::default()));
        let listener = Listener { outcomes: Arc::clone(&outcomes), flows: control.flows() };
        let (client, batching) = (self.config.kafka.producer("outrider-relay", timeout), constraints.batching());
        let publisher = Publisher::new(client, batching, listener, shared::telemetry::spans())?;
        Ok(Unused { publisher, control, outcomes, batching })
    }

    /// Starts a thread that sends by this producer, or by a new one if it does not make batches as it is to.
    pub(super) fn start(
        &self,
        constraints: &PublishConstraints,
        look_max: Duration,
        spare: Option<Unused>,
    ) -> Result<Stream, SessionError> {
        let limits = &self.config.limits;
        let Unused { publisher, control, outcomes, .. } = match spare {
            Some(spare) if spare.batching == constraints.batching() => spare,
            _ => self.producer(constraints)?,
        };
        let control = control.begin_with(constraints.window).one_at_a_time(!constraints.suspects.is_empty());
        let (lease, flows) = (Arc::new(Lease::new()), control.flows());
        lease.extend(self.lease_until);
        let pipe = Pipe::start(Sender {
            publisher,
            control,
            outcomes: Arc::clone(&outcomes),
            read_age: self.metrics.ages.at(Stage::Read),
            lease: Arc::clone(&lease),
            topics: self.topics.clone(),
            destinations: Destinations::new(self.config, self.routes.clone()),
            batch_bytes: constraints.batch_bytes,
            lease_needed: limits.lease_needed_to_send(),
            look_max,
            slow: limits.slow_after(),
            suspects: constraints.suspects.clone(),
            retry_alone: constraints.retry_alone,
        });
        Ok(Stream { pipe: pipe.map_err(SessionError::Thread)?, outcomes, lease, flows })
    }
}

impl Stream {
    /// Ends it. When what is returned resolves, nothing is sent any more, and the outcomes are final. What was not sent is thrown away.
    pub(super) fn close(self) -> Ending {
        let Self { pipe, outcomes, flows, .. } = self;
        Ending { outcomes, window: flows.window(), closing: tokio::task::spawn_blocking(move || pipe.close()) }
    }
}

/// A stream that ends.
pub(super) struct Ending {
    /// What Kafka has said of its records.
    pub outcomes: Arc<Outcomes>,
    /// Bytes that were let be in flight.
    pub window: u64,
    closing: tokio::task::JoinHandle<()>,
}

impl Ending {
    /// Waits for it.
    pub(super) async fn end(self) -> (Arc<Outcomes>, u64) {
        let _ = self.closing.await;
        (self.outcomes, self.window)
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.closing.is_finished()
    }
}
