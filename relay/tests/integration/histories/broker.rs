//! A broker's logs, and one producer before them.

use std::collections::VecDeque;

use relay::lanes::Ticket;

use super::database::{Refusal, Row, TYPES, type_of};
use super::lanes_table::Time;

/// Partitions of each topic.
const PARTITIONS: usize = 2;

/// Partitions of all topics; each type has a topic of its own.
pub const QUEUES: usize = TYPES * PARTITIONS;

/// How long a record may wait for its acknowledgement.
pub const MESSAGE_TIMEOUT: Time = 60;

/// How much of its lease a relay must still have to hand over a record.
pub const LEASE_NEEDED: Time = MESSAGE_TIMEOUT + 20;

/// After so long a broker has forgotten an idle producer. Longer than a relay takes it to be known.
const FORGETS_AFTER: Time = 4;

/// The partition to which an aggregate's records go, among those of all topics.
pub fn queue_of(aggregate: usize) -> usize {
    type_of(aggregate) * PARTITIONS + aggregate / TYPES % PARTITIONS
}

/// The type whose topic has this partition.
pub fn type_of_queue(queue: usize) -> usize {
    queue / PARTITIONS
}

/// A record in the log.
#[derive(Debug, Clone, Copy)]
pub struct Written {
    pub row: Row,
    /// The token under which its lane was held by its sender.
    pub token: i64,
    /// Its lane had been taken by another relay before it was written.
    pub late: bool,
    /// An earlier record of its queue had been given up before it was written: only a relay that was frozen may do that.
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

/// A record of which the producer will report that it was delivered.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    pub ticket: Ticket,
    pub queue: usize,
    /// A broker has said where it is. If not, the producer has concluded it.
    pub has_offset: bool,
}

/// What a broker does with the next request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Luck {
    Good,
    /// It refuses the first request of a producer that it does not know, retriably, and takes the second one.
    FirstRefused,
    /// Its answer is lost, and a repeated request is called a duplicate, without an offset.
    AnswerLost,
}

/// What became of a try to write records.
#[derive(Debug)]
pub enum Sent {
    Written(Vec<Queued>),
    /// The broker refuses the batch for one of them.
    Refused(Vec<Queued>),
    /// The broker has refused the first request, and a second one was not on its way.
    FirstRefused,
    /// The earliest is too old.
    TimedOut,
}

/// An idempotent producer: it writes each partition's records in the order of their queue, each once, whatever it has to repeat. A request
/// that is lost, or whose answer is, is therefore nothing but a record that is written later, or acknowledged later.
#[derive(Debug, Default)]
pub struct Producer {
    queues: [VecDeque<Queued>; QUEUES],
    /// Whether the partition's broker knows this producer, and when the producer has last heard of it.
    known: [bool; QUEUES],
    heard_at: [Time; QUEUES],
    /// Reports that are yet to be heard.
    pub awaiting: Vec<Report>,
    /// Nothing more is sent; what is on the wire may arrive.
    pub stopped: bool,
}

impl Producer {
    pub fn enqueue(&mut self, record: Queued, now: Time) {
        let queue = queue_of(record.row.aggregate);
        if self.is_idle(queue) && now >= self.heard_at[queue] + FORGETS_AFTER {
            self.known[queue] = false;
        }
        self.queues[queue].push_back(record);
    }

    fn is_idle(&self, queue: usize) -> bool {
        self.queues[queue].is_empty() && self.awaiting.iter().all(|report| report.queue != queue)
    }

    /// Whether nothing waits to be sent to this partition.
    pub fn is_empty(&self, queue: usize) -> bool {
        self.queues[queue].is_empty()
    }

    /// Whether the time of the partition's earliest record is over.
    pub fn is_too_old(&self, queue: usize, now: Time) -> bool {
        self.queues[queue].front().is_some_and(|record| record.deadline < now)
    }

    /// Sends `count` records as one batch, unless the time of the earliest is over.
    pub fn send(&mut self, queue: usize, count: usize, now: Time, luck: Luck) -> Sent {
        if self.stopped {
            return Sent::Written(Vec::new());
        }
        if self.is_too_old(queue, now) {
            return Sent::TimedOut;
        }
        if luck == Luck::FirstRefused && !self.known[queue] && !self.is_empty(queue) {
            return self.send_two(queue, count);
        }
        let records = self.take(queue, count);
        if is_refused(&records) {
            return Sent::Refused(records);
        }
        self.known[queue] |= !records.is_empty();
        self.await_reports(queue, &records, luck != Luck::AnswerLost);
        Sent::Written(records)
    }

    /// Two requests to a broker that does not know this producer. It accepts any first sequence number, so it takes the second one. The
    /// producer concludes from this that the first one is there.
    fn send_two(&mut self, queue: usize, count: usize) -> Sent {
        let first = self.take(queue, count);
        let second = self.take(queue, count);
        if second.is_empty() {
            first.into_iter().rev().for_each(|record| self.queues[queue].push_front(record));
            return Sent::FirstRefused;
        }
        if is_refused(&second) {
            return Sent::Refused(second);
        }
        self.known[queue] = true;
        self.await_reports(queue, &first, false);
        self.await_reports(queue, &second, true);
        Sent::Written(second)
    }

    fn take(&mut self, queue: usize, count: usize) -> Vec<Queued> {
        let queue = &mut self.queues[queue];
        queue.drain(..count.min(queue.len())).collect()
    }

    fn await_reports(&mut self, queue: usize, records: &[Queued], has_offset: bool) {
        self.awaiting.extend(records.iter().map(|record| Report { ticket: record.ticket, queue, has_offset }));
    }

    /// A report arrives; they do so in any order.
    pub fn hear(&mut self, number: usize, now: Time) -> Report {
        let report = self.awaiting.swap_remove(number);
        self.heard_at[report.queue] = now;
        report
    }

    /// A record of this partition has failed: nothing that came after it may be sent, and nothing else is (`Context::stop` in the publisher).
    pub fn stop(&mut self, queue: usize) {
        self.queues[queue].clear();
        self.stopped = true;
    }

    /// A record that was sent alone was refused: the client goes on under a new producer id, which no broker knows.
    pub fn take_new_id(&mut self) {
        self.known = [false; QUEUES];
    }

    /// Requests arrive that were made before the process was frozen, or in the worst instant when it wakes.
    pub fn send_from_the_wire(&mut self, queue: usize, count: usize) -> Vec<Queued> {
        let mut sent = Vec::new();
        for _ in 0..count {
            match self.send(queue, 1, 0, Luck::Good) {
                Sent::Written(records) if !records.is_empty() => sent.extend(records),
                Sent::Refused(_) => {
                    self.stop(queue);
                    break;
                }
                _ => break,
            }
        }
        sent
    }

    /// Gives up a partition's records whose time is over. Returns how many there were.
    pub fn give_up(&mut self, queue: usize, now: Time) -> usize {
        let queue = &mut self.queues[queue];
        let old = queue.iter().filter(|record| record.deadline < now).count();
        queue.drain(..old).count()
    }

    /// What is on the wire when the process or the producer ends: of each partition some of the earliest.
    pub fn into_wire(mut self, mut count: impl FnMut(usize) -> usize) -> Vec<VecDeque<Queued>> {
        let queues = self.queues.iter_mut().filter(|queue| !queue.is_empty());
        queues.map(|queue| queue.drain(..count(queue.len())).collect()).collect()
    }
}

fn is_refused(records: &[Queued]) -> bool {
    records.iter().any(|record| record.row.refusal == Refusal::Broker)
}
