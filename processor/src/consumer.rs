//! The consumer: one task that polls Kafka and never waits for anything else, so that the group never loses it. It routes records
//! to the workers of their partitions and answers changes of the assignment.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use rdkafka::consumer::{Consumer as _, RebalanceProtocol, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{ClientConfig, TopicPartitionList};
use shared::shutdown::Shutdown;
use shared::throttle::Throttle;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::MissedTickBehavior;

use self::context::{Change, Context, decline};
use self::positions::{Positions, Start};
use self::requests::{commit, list_of};
use self::seat::{Seat, drain};
use crate::broker::Broker;
use crate::config::Settings;
use crate::gaps::{End, Gap};
use crate::membership;
use crate::offsets::LostPositions;
use crate::partition::{Ending, Shop};
use crate::queue::Limits;
use crate::record::{Partition, copy};

mod context;
pub(crate) mod positions;
mod requests;
mod seat;

pub(crate) type KafkaConsumer = StreamConsumer<Context>;

/// Condition of [`shared::health::Readiness`]: the group has told us our partitions.
pub(crate) const ASSIGNMENT: &str = "kafka";

/// How often Kafka is told the positions. Only lag tools look at them, and a new group in another database: not worth a request
/// a batch.
const TELL_INTERVAL: Duration = Duration::from_millis(250);

/// Records that are routed before the task looks at anything else.
const BURST_ROWS_MAX: usize = 500;

/// How long to wait before a partition that could not be sought is tried again.
const SEEK_RETRY: Duration = Duration::from_millis(200);

/// How long closing may take: a last commit, and leaving the group.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the consumer cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ConsumerError {
    /// Records between a position and what the broker has are lost, or the topic is another one.
    #[error("{0}")]
    PositionsLost(LostPositions),
    /// Kafka's client refuses, for good.
    #[error("Kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// A part of the processor panicked.
    #[error("a part of the processor has failed: {0}")]
    Panicked(JoinError),
}

/// What a task of the consumer's has done.
#[derive(Debug)]
pub(crate) enum Done {
    Worker {
        partition: Partition,
        generation: u64,
        ending: Ending,
    },
    Found(Result<Vec<Start>, ConsumerError>),
    FoundAgain {
        generation: u64,
        starts: Result<Vec<Start>, ConsumerError>,
    },
    Sought {
        generation: u64,
        starts: Vec<Start>,
        result: Result<(), KafkaError>,
    },
    Failed(ConsumerError),
    Drained {
        partitions: TopicPartitionList,
        seats: Vec<(Partition, Seat)>,
    },
    /// The brokers were asked what is at these offsets.
    Looked {
        partition: Partition,
        generation: u64,
        gap: Gap,
        first: Result<Option<i64>, KafkaError>,
    },
}

/// The consumer's task.
pub(crate) struct Consumer {
    kafka: Arc<KafkaConsumer>,
    positions: Positions,
    shop: Arc<Shop>,
    topics: Vec<Arc<str>>,
    limits: Limits,
    drain_timeout: Duration,
    /// Whether we are known to the group by a name of our own.
    comes_back: bool,
    seats: HashMap<Partition, Seat>,
    generation: u64,
    changes: UnboundedReceiver<Change>,
    ends: watch::Receiver<Vec<End>>,
    /// The client's settings, for more of them.
    client: ClientConfig,
    /// The change that is under way; it is answered when it is done.
    unanswered: Option<Change>,
    /// Partitions that are being sought, which takes a moment; a change of the assignment waits for it.
    seeking: usize,
    /// Workers, and whatever else must not keep the consumer from polling.
    tasks: JoinSet<Done>,
    log: Throttle,
}

impl Consumer {
    /// Joins the group.
    pub(crate) fn subscribe(
        mut client: ClientConfig,
        settings: &Settings,
        shop: Arc<Shop>,
    ) -> Result<Self, ConsumerError> {
        let asking = client.clone();
        let broker = Arc::new(Broker::new(&asking)?);
        client
            .set("queued.max.messages.kbytes", Settings::PREFETCH_KIB_MAX.to_string())
            // A partition whose prefetch is full is looked at again after a hundredth and not after a whole second.
            .set("fetch.queue.backoff.ms", "10")
            // Partitions that are added to a topic are heard of within ten seconds and not within five minutes.
            .set("topic.metadata.refresh.interval.ms", "10000")
            // For the lag.
            .set("statistics.interval.ms", "5000");
        membership::set(settings, &mut client);
        let (sender, changes) = unbounded_channel();
        let (new_ends, ends) = watch::channel(Vec::new());
        let kafka: KafkaConsumer = client.create_with_context(Context::new(sender, new_ends, shop.metrics.clone()))?;
        let topics: Vec<&str> = settings.topics.iter().map(String::as_str).collect();
        kafka.subscribe(&topics)?;
        let kafka = Arc::new(kafka);
        let positions = Positions {
            database: shop.applier.database.clone(),
            group: Arc::clone(&shop.applier.group),
            broker,
            retry_max: settings.retry_max(),
        };
        Ok(Self {
            kafka,
            positions,
            shop,
            topics: topics.into_iter().map(Arc::from).collect(),
            limits: Limits { rows_max: settings.queue_rows_max, bytes_max: settings.queue_bytes_max },
            drain_timeout: settings.drain_timeout(),
            comes_back: settings.instance_id.is_some(),
            seats: HashMap::new(),
            generation: 0,
            changes,
            ends,
            client: asking,
            unanswered: None,
            seeking: 0,
            tasks: JoinSet::new(),
            log: Throttle::new(),
        })
    }

    /// Works until the shutdown is asked for, then finishes what is under way and leaves the group.
    pub(crate) async fn run(mut self, shutdown: &Shutdown) -> Result<(), ConsumerError> {
        let result = self.work(shutdown).await;
        self.finish().await;
        // Dropping polls until librdkafka has closed, so not on a thread that other tasks need.
        let closed = tokio::task::spawn_blocking(move || drop(self));
        if tokio::time::timeout(CLOSE_TIMEOUT, closed).await.is_err() {
            tracing::warn!("the group was not left in time: its other members wait for the session to end");
        }
        result
    }

    async fn work(&mut self, shutdown: &Shutdown) -> Result<(), ConsumerError> {
        let kafka = Arc::clone(&self.kafka);
        let shop = Arc::clone(&self.shop);
        let mut messages = kafka.stream();
        let mut tell = tokio::time::interval(TELL_INTERVAL);
        tell.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.requested() => return Ok(()),
                Some(change) = self.changes.recv(), if self.unanswered.is_none() && self.seeking == 0 => self.begin(change),
                Some(done) = self.tasks.join_next() => self.finished(done)?,
                () = shop.room.notified() => self.resume()?,
                _ = tell.tick() => self.tell(),
                Ok(()) = self.ends.changed() => self.look_for_gaps(),
                Some(message) = messages.next() => {
                    self.route(message)?;
                    for _ in 1..BURST_ROWS_MAX {
                        let Some(Some(message)) = messages.next().now_or_never() else { break };
                        self.route(message)?;
                    }
                }
            }
        }
    }

    /// Starts to carry out a change of the assignment.
    fn begin(&mut self, change: Change) {
        match &change {
            Change::Assign(partitions) => {
                self.shop.metrics.rebalanced("assign");
                let positions = self.positions.clone();
                let wanted = self.partitions(partitions);
                self.tasks.spawn(async move { Done::Found(positions.find(&wanted).await) });
            }
            Change::Revoke(partitions) => {
                self.shop.metrics.rebalanced("revoke");
                let leaving = self.partitions(partitions).into_iter();
                let seats: Vec<_> = leaving.filter_map(|partition| self.seats.remove_entry(&partition)).collect();
                let (partitions, timeout) = (partitions.clone(), self.drain_timeout);
                self.tasks.spawn(async move {
                    drain(&seats.iter().map(|(_, seat)| seat).collect::<Vec<_>>(), timeout).await;
                    Done::Drained { partitions, seats }
                });
            }
        }
        self.unanswered = Some(change);
    }

    fn finished(&mut self, done: Result<Done, JoinError>) -> Result<(), ConsumerError> {
        match done {
            Ok(Done::Found(starts)) => self.assign(&starts?),
            Ok(Done::Drained { partitions, seats }) => self.unassign(&partitions, seats),
            Ok(Done::Worker { partition, generation, ending: Ending::Fenced }) => {
                self.find_again(partition, generation, Duration::ZERO);
                Ok(())
            }
            Ok(Done::Failed(error)) => Err(error),
            Ok(Done::Worker { ending: Ending::Stopped, .. }) => Ok(()),
            Ok(Done::FoundAgain { generation, starts }) => {
                self.seek(generation, starts?);
                Ok(())
            }
            Ok(Done::Sought { generation, starts, result }) => self.sought(generation, &starts, &result),
            Ok(Done::Looked { partition, generation, gap, first }) => {
                self.looked(&partition, generation, gap, &first);
                Ok(())
            }
            Err(error) if error.is_cancelled() => Ok(()),
            Err(error) => Err(ConsumerError::Panicked(error)),
        }
    }

    /// Answers an assignment: exactly the offsets that were found.
    fn assign(&mut self, starts: &[Start]) -> Result<(), ConsumerError> {
        let mut list = TopicPartitionList::with_capacity(starts.len());
        for start in starts {
            list.add_partition_offset(&start.partition.topic, start.partition.number, start.offset)?;
            self.open(start);
        }
        self.unanswered = None;
        match self.kafka.rebalance_protocol() {
            RebalanceProtocol::Cooperative => self.kafka.incremental_assign(&list)?,
            _ => self.kafka.assign(&list)?,
        }
        self.shop.readiness.met(ASSIGNMENT);
        self.assignment_changed("assigned", starts.len());
        Ok(())
    }

    /// Answers a revocation, after the workers have ended.
    fn unassign(
        &mut self,
        partitions: &TopicPartitionList,
        mut seats: Vec<(Partition, Seat)>,
    ) -> Result<(), ConsumerError> {
        // A pause would outlive the assignment; to resume what is not paused does no harm where nothing is read any more.
        let left = list_of(seats.iter().map(|(partition, _)| partition));
        if left.count() > 0 {
            self.kafka.resume(&left)?;
        }
        if !self.kafka.assignment_lost() {
            commit(&self.kafka, seats.iter_mut().map(|(partition, seat)| (&*partition, seat)));
        }
        self.unanswered = None;
        match self.kafka.rebalance_protocol() {
            RebalanceProtocol::Cooperative => self.kafka.incremental_unassign(partitions)?,
            _ => self.kafka.unassign()?,
        }
        self.assignment_changed("revoked", partitions.count());
        Ok(())
    }

    fn assignment_changed(&self, kind: &'static str, partitions: usize) {
        self.shop.metrics.partitions.set(i64::try_from(self.seats.len()).unwrap_or(i64::MAX));
        tracing::info!(kind, partitions, held = self.seats.len(), "assignment changed");
    }

    fn open(&mut self, start: &Start) {
        self.generation += 1;
        let seat = Seat::open(start, self.generation, self.limits, &self.shop, &mut self.tasks);
        self.seats.insert(start.partition.clone(), seat);
    }

    /// Finds out, after `delay`, where a partition is whose position somebody else has moved, and goes there.
    fn find_again(&mut self, partition: Partition, generation: u64, delay: Duration) {
        let positions = self.positions.clone();
        self.tasks.spawn(async move {
            tokio::time::sleep(delay).await;
            Done::FoundAgain { generation, starts: positions.find(&[partition]).await }
        });
    }

    /// Sets a partition to where it was found.
    fn seek(&mut self, generation: u64, starts: Vec<Start>) {
        if !self.are_of(generation, &starts) {
            return; // It has been revoked meanwhile.
        }
        self.seeking += 1;
        let kafka = Arc::clone(&self.kafka);
        self.tasks.spawn_blocking(move || {
            let result = requests::seek(&kafka, &starts);
            Done::Sought { generation, starts, result }
        });
    }

    /// Starts a new worker where a partition has been set to. It was paused for that, so nothing has been delivered since.
    fn sought(
        &mut self,
        generation: u64,
        starts: &[Start],
        result: &Result<(), KafkaError>,
    ) -> Result<(), ConsumerError> {
        self.seeking -= 1;
        for start in starts {
            match result {
                Ok(()) => {
                    self.open(start);
                    self.kafka.resume(&list_of([&start.partition]))?;
                }
                Err(error) => {
                    tracing::warn!(error = %error, partition = %start.partition, "position not sought, trying again");
                    self.find_again(start.partition.clone(), generation, SEEK_RETRY);
                }
            }
        }
        Ok(())
    }

    /// Asks the brokers what is behind the positions that stay behind the ends of their partitions though nothing waits for them.
    fn look_for_gaps(&mut self) {
        let ends = self.ends.borrow_and_update().clone();
        for end in ends {
            let Some(topic) = self.topics.iter().find(|topic| ***topic == end.topic) else { continue };
            let partition = Partition { topic: Arc::clone(topic), number: end.partition };
            let Some(seat) = self.seats.get_mut(&partition).filter(|seat| seat.is_open()) else { continue };
            // A paused partition has more to read. One without a position cannot be behind.
            let Some(position) = seat.position().filter(|_| seat.queue.is_empty() && !seat.queue.is_paused()) else {
                continue;
            };
            let Some(gap) = seat.gap_watch.look(position, end.offset) else { continue };
            let (generation, client) = (seat.generation, self.client.clone());
            self.tasks.spawn_blocking(move || {
                let first = Broker::for_much(&client).and_then(|broker| broker.first_from(&partition, gap.from));
                Done::Looked { partition, generation, gap, first }
            });
        }
    }

    /// Tells the worker of a partition what holds no record: all of `gap`, or what is before its first record.
    fn looked(&mut self, partition: &Partition, generation: u64, gap: Gap, first: &Result<Option<i64>, KafkaError>) {
        let Some(seat) = self.seats.get_mut(partition).filter(|seat| seat.generation == generation) else { return };
        seat.gap_watch.answered();
        match first {
            Ok(first) => {
                let end = first.map_or(gap.end, |first| first.min(gap.end));
                if end > gap.from {
                    seat.tell_gap(Gap { end, ..gap });
                }
            }
            Err(error) => {
                if let Some(others) = self.log.pass("gap") {
                    tracing::warn!(
                        error = %error,
                        partition = %partition,
                        others_since_the_last = others,
                        "what is behind a position could not be read, will try again"
                    );
                }
            }
        }
    }

    fn are_of(&self, generation: u64, starts: &[Start]) -> bool {
        let seat = |start: &Start| self.seats.get(&start.partition);
        starts.iter().all(|start| seat(start).is_some_and(|seat| seat.generation == generation))
    }

    /// Gives a message to the worker of its partition.
    fn route(&mut self, message: Result<BorrowedMessage<'_>, KafkaError>) -> Result<(), ConsumerError> {
        let message = match message {
            Ok(message) => message,
            Err(error) => return self.check(error),
        };
        let Some(topic) = self.topics.iter().find(|topic| &***topic == message.topic()) else { return Ok(()) };
        let partition = Partition { topic: Arc::clone(topic), number: message.partition() };
        // Without a worker the partition is being revoked or sought anew: whoever goes on with it starts at the position in
        // Postgres, and so reads this record again.
        let Some(seat) = self.seats.get(&partition).filter(|seat| seat.is_open()) else { return Ok(()) };
        if seat.queue.push(copy(&message)) {
            self.shop.metrics.pauses.inc();
            self.kafka.pause(&list_of([&partition]))?;
        }
        Ok(())
    }

    /// Most of librdkafka's errors are news of something that it is mending by itself.
    fn check(&mut self, error: KafkaError) -> Result<(), ConsumerError> {
        match error {
            KafkaError::MessageConsumptionFatal(_) => Err(error.into()),
            // `auto.offset.reset` is `error`. The message does not say which partition it is, so all are looked at.
            KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset) => {
                let positions = self.positions.clone();
                let partitions: Vec<Partition> = self.seats.keys().cloned().collect();
                self.tasks.spawn(async move {
                    Done::Failed(positions.find(&partitions).await.err().unwrap_or_else(|| error.into()))
                });
                Ok(())
            }
            _ => {
                if let Some(others) = self.log.pass("consumer") {
                    tracing::warn!(error = %error, others_since_the_last = others, "the Kafka consumer reports a problem");
                }
                Ok(())
            }
        }
    }

    /// Resumes the partitions whose queues have room again.
    fn resume(&self) -> Result<(), ConsumerError> {
        // Not one that is being sought: it is resumed where its new worker starts. Before that, records would have nobody to
        // go to, and would be missing.
        let room = self.seats.iter().filter(|(_, seat)| seat.is_open() && seat.queue.wants_resume());
        let room = list_of(room.map(|(partition, _)| partition));
        if room.count() > 0 {
            self.kafka.resume(&room)?;
        }
        Ok(())
    }

    /// Tells Kafka the positions.
    fn tell(&mut self) {
        commit(&self.kafka, self.seats.iter_mut());
    }

    /// Finishes the transactions under way and tells Kafka where they ended.
    async fn finish(&mut self) {
        drain(&self.seats.values().collect::<Vec<_>>(), self.drain_timeout).await;
        self.tell();
        // A task that is only told to end still shares the consumer, which then would not be closed by dropping it here.
        self.tasks.shutdown().await;
    }

    fn partitions(&self, list: &TopicPartitionList) -> Vec<Partition> {
        let partition = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
            let topic = self.topics.iter().find(|topic| &***topic == element.topic());
            let topic = topic.map_or_else(|| Arc::from(element.topic()), Arc::clone);
            Partition { topic, number: element.partition() }
        };
        list.elements().iter().map(partition).collect()
    }
}

impl Drop for Consumer {
    /// librdkafka's close waits until the changes that it has made known are answered.
    fn drop(&mut self) {
        self.kafka.context().close();
        if let Some(change) = self.unanswered.take() {
            decline(&*self.kafka, &change);
        }
        while let Ok(change) = self.changes.try_recv() {
            decline(&*self.kafka, &change);
        }
        // librdkafka's close by itself does not leave the group when it holds no partition (2.12, rd_kafka_cgrp_revoke_all_rejoin),
        // and the next rebalance of the others would wait for a member that is gone until its session ends.
        // One that comes back under its name does not leave: that would be the rebalance which the name is to spare the others.
        if !self.comes_back {
            self.kafka.unsubscribe();
        }
    }
}
