//! A broker's log, and the producer of one session before it.

use std::collections::VecDeque;

use relay::lanes::Ticket;

use super::database::{Refusal, Row};
use super::lanes_table::Time;

/// Partitions of the topic.
pub const PARTITIONS: usize = 2;

/// How long a record may wait for its acknowledgement.
pub const MESSAGE_TIMEOUT: Time = 60;

/// How much of its lease a relay must still have to hand over a record.
pub const LEASE_NEEDED: Time = MESSAGE_TIMEOUT + 20;

pub fn partition_of(aggregate: usize) -> usize {
    aggregate % PARTITIONS
}

/// A record in the log.
#[derive(Debug, Clone, Copy)]
pub struct Written {
    pub row: Row,
    /// The token under which its lane was held by its sender.
    pub token: i64,
    /// Its lane had been taken by another relay before it was written.
    pub late: bool,
    /// An elder of its queue had been given up before it was written: only a relay that was frozen may do that.
    pub overtook: bool,
}

/// A record that was handed to a producer.
#[derive(Debug, Clone, Copy)]
pub struct Queued {
    pub ticket: Ticket,
    pub row: Row,
    pub token: i64,
    pub deadline: Time,
}

/// What became of a try to write records.
#[derive(Debug)]
pub enum Sent {
    Written(Vec<Queued>),
    /// The broker refuses the batch for one of them.
    Refused(Vec<Queued>),
    /// The eldest is too old.
    TimedOut,
}

/// An idempotent producer: it writes each partition's records in the order of their queue, each once, whatever it has to repeat. A request
/// that is lost, or whose answer is, is therefore nothing but a record that is written later, or acknowledged later.
#[derive(Debug, Default)]
pub struct Producer {
    queues: [VecDeque<Queued>; PARTITIONS],
    /// Written, and not acknowledged.
    pub awaiting: Vec<Ticket>,
    /// Nothing more is sent; what is on the wire may arrive.
    pub stopped: bool,
}

impl Producer {
    pub fn enqueue(&mut self, record: Queued) {
        self.queues[partition_of(record.row.aggregate)].push_back(record);
    }

    /// Sends `count` records as one batch, unless the time of the eldest is over.
    pub fn send(&mut self, partition: usize, count: usize, now: Time) -> Sent {
        let queue = &mut self.queues[partition];
        if self.stopped {
            return Sent::Written(Vec::new());
        }
        if queue.front().is_some_and(|record| record.deadline < now) {
            return Sent::TimedOut;
        }
        let records: Vec<Queued> = queue.drain(..count.min(queue.len())).collect();
        if records.iter().any(|record| record.row.refusal == Refusal::Broker) {
            return Sent::Refused(records);
        }
        self.awaiting.extend(records.iter().map(|record| record.ticket));
        Sent::Written(records)
    }

    /// A record of this partition has failed: nothing that came after it may be sent, and nothing else is (`Context::stop` in the publisher).
    pub fn stop(&mut self, partition: usize) {
        self.queues[partition].clear();
        self.stopped = true;
    }

    /// Requests arrive that were made before the process was frozen, or in the worst instant when it wakes.
    pub fn send_from_the_wire(&mut self, partition: usize, count: usize) -> Vec<Queued> {
        let mut sent = Vec::new();
        for _ in 0..count {
            match self.send(partition, 1, 0) {
                Sent::Written(records) if !records.is_empty() => sent.extend(records),
                Sent::Refused(_) => {
                    self.stop(partition);
                    break;
                }
                _ => break,
            }
        }
        sent
    }

    /// Gives up a partition's records whose time is over. Returns how many there were.
    pub fn give_up(&mut self, partition: usize, now: Time) -> usize {
        let queue = &mut self.queues[partition];
        let old = queue.iter().filter(|record| record.deadline < now).count();
        queue.drain(..old).count()
    }

    /// What is on the wire when the process dies: of each partition some of the eldest.
    pub fn into_wire(mut self, mut count: impl FnMut(usize) -> usize) -> Vec<VecDeque<Queued>> {
        let queues = self.queues.iter_mut().filter(|queue| !queue.is_empty());
        queues.map(|queue| queue.drain(..count(queue.len())).collect()).collect()
    }
}
