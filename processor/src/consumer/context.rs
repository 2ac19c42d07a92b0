//! What librdkafka calls: changes of the assignment are handed to the consumer's task, and answered from there.

use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Statistics, TopicPartitionList};
use shared::throttle::Throttle;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use crate::gaps::{End, ends};
use crate::lag::lags;
use crate::metrics::Metrics;

/// A change of the assignment. librdkafka makes no other one before it is answered by (un)assigning.
#[derive(Debug)]
pub(crate) enum Change {
    /// Partitions to work on.
    Assign(TopicPartitionList),
    /// Partitions to leave.
    Revoke(TopicPartitionList),
}

/// Callbacks of the consumer.
#[derive(Debug)]
pub(crate) struct Context {
    /// Unbounded, because a callback cannot wait; there is at most one change at a time in it.
    changes: UnboundedSender<Change>,
    /// Where partitions end; the last word counts.
    ends: watch::Sender<Vec<End>>,
    closing: AtomicBool,
    metrics: Metrics,
    log: Throttle,
}

impl Context {
    pub(crate) const fn new(changes: UnboundedSender<Change>, ends: watch::Sender<Vec<End>>, metrics: Metrics) -> Self {
        Self { changes, ends, closing: AtomicBool::new(false), metrics, log: Throttle::new() }
    }

    /// From now on changes are answered at once: the task that would answer them has ended, and librdkafka's close waits for
    /// the answer.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }
}

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        if let Some(others) = self.log.pass("client") {
            tracing::warn!(error = %error, reason, others_since_the_last = others, "the Kafka client reports a problem");
        }
    }

    fn stats(&self, statistics: Statistics) {
        self.metrics.lag(&lags(&statistics));
        self.ends.send_replace(ends(&statistics));
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let change = if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            Change::Assign(partitions.clone())
        } else {
            Change::Revoke(partitions.clone())
        };
        if self.closing.load(Ordering::Acquire) {
            decline(consumer, &change);
        } else if let Err(returned) = self.changes.send(change) {
            decline(consumer, &returned.0);
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        if let Err(error) = result {
            // No harm beyond what lag tools show: Postgres holds the position that counts.
            self.metrics.commit_failures.inc();
            tracing::debug!(error = %error, "offsets not committed to Kafka");
        }
    }
}

/// Answers a change without taking on any partition.
pub(crate) fn decline(consumer: &impl Consumer<Context>, change: &Change) {
    let cooperative = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
    let answered = match change {
        Change::Assign(_) if cooperative => consumer.incremental_assign(&TopicPartitionList::new()),
        Change::Assign(_) => consumer.assign(&TopicPartitionList::new()),
        Change::Revoke(partitions) if cooperative => consumer.incremental_unassign(partitions),
        Change::Revoke(_) => consumer.unassign(),
    };
    if let Err(error) = answered {
        tracing::debug!(error = %error, "change of the assignment not answered");
    }
}
