//! A stream: one producer and the sender that feeds it, `relay/src/session/{stream,sender}.rs`.

use std::collections::{HashMap, HashSet, VecDeque};

use relay::lanes::Ticket;

use super::broker::{Producer, QUEUES, Queued, Report, Sent, queue_of, type_of_queue};
use super::database::TYPES;
use super::flows::Flows;
use super::ground::Ground;
use super::sender::{Event, Work};
use super::variant::Variant;

/// A row that is to wait in `relay_parked`.
#[derive(Debug)]
pub struct PutAside {
    pub ticket: Ticket,
    pub id: i64,
    pub refused: bool,
}

/// Why a topic takes no records, or not these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    TimedOut,
    Unavailable,
    Refused,
    Unconfirmed,
}

/// What has come of a stream and was not taken yet.
#[derive(Debug, Default)]
pub struct Outcomes {
    pub acknowledged: Vec<Ticket>,
    pub put_aside: Vec<PutAside>,
    /// Records that a broker has refused, perhaps for their company.
    pub refused: Vec<Ticket>,
    /// Types whose topic takes nothing and of which nothing was sent.
    pub set_aside: Vec<usize>,
    /// The topic for which it has ended.
    pub failure: Option<(usize, Cause)>,
}

#[derive(Debug)]
pub struct Stream {
    pub pipe: VecDeque<Work>,
    /// Events whose partition is not open.
    pub(super) held: [VecDeque<Event>; QUEUES],
    pub(super) flows: Flows,
    /// Whether each type's topic is open; none if it was not looked at.
    pub(super) routes: [Option<bool>; TYPES],
    pub(super) parked: HashMap<i16, HashSet<usize>>,
    pub(super) suspects: HashSet<i64>,
    /// Each record is a batch.
    single: bool,
    pub(super) alone: Option<Ticket>,
    pub producer: Producer,
    pub outcomes: Outcomes,
}

impl Stream {
    pub fn new(variant: Variant, suspects: HashSet<i64>) -> Self {
        Self {
            pipe: VecDeque::new(),
            held: Default::default(),
            flows: Flows::new(variant, !suspects.is_empty()),
            routes: [None; TYPES],
            parked: HashMap::new(),
            single: !suspects.is_empty(),
            suspects,
            alone: None,
            producer: Producer::default(),
            outcomes: Outcomes::default(),
        }
    }

    /// Whether it was begun to find out which record is refused, and has.
    pub fn has_cleared_its_suspects(&self) -> bool {
        self.single && self.suspects.is_empty() && self.alone.is_none()
    }

    fn fail(&mut self, of: usize, cause: Cause) {
        self.outcomes.failure.get_or_insert((of, cause));
    }

    /// A record has failed. Returns whether the producer, wrongly, goes on.
    fn fail_and_stop(&mut self, ground: &Ground, queue: usize, cause: Cause) -> bool {
        let goes_on = ground.variant == Variant::GoesOnAfterAFailure;
        if !goes_on {
            self.producer.stop(queue);
        }
        self.fail(type_of_queue(queue), cause);
        goes_on
    }

    /// The producer sends a request.
    pub fn transmit(&mut self, ground: &mut Ground, queue: usize) {
        if ground.down[type_of_queue(queue)] && !self.producer.is_too_old(queue, ground.now) {
            return self.meet_trouble(ground, queue);
        }
        let count = if self.single { 1 } else { 1 + ground.pick(3) };
        let luck = ground.luck();
        match self.producer.send(queue, count, ground.now, luck) {
            Sent::Written(records) => ground.write(records, false),
            Sent::FirstRefused => ground.count("first request refused"),
            Sent::TimedOut => {
                ground.count("record timed out");
                if self.fail_and_stop(ground, queue, Cause::TimedOut) {
                    self.producer.give_up(queue, ground.now);
                }
            }
            Sent::Refused(records) => match records[..] {
                [only] if self.alone == Some(only.ticket) => {
                    ground.count("refused alone");
                    self.alone = None;
                    self.producer.take_new_id();
                    self.flows.refused(queue_of(only.row.aggregate));
                    self.refuse(only.row, only.ticket);
                }
                _ => {
                    ground.count("batch refused");
                    self.outcomes.refused.extend(records.iter().map(|record| record.ticket));
                    self.fail_and_stop(ground, queue, Cause::Refused);
                }
            },
        }
    }

    /// A topic takes nothing: its brokers say so, or the sender finds out that it is slow.
    fn meet_trouble(&mut self, ground: &mut Ground, queue: usize) {
        if self.producer.stopped || self.producer.is_empty(queue) || !ground.chance(300) {
            return;
        }
        ground.count("topic in trouble");
        self.fail(type_of_queue(queue), Cause::Unavailable);
        self.producer.stopped = true;
    }

    /// A report arrives.
    pub fn hear(&mut self, ground: &mut Ground) {
        if self.producer.awaiting.is_empty() {
            return;
        }
        let number = ground.pick(self.producer.awaiting.len());
        let Report { ticket, queue, has_offset } = self.producer.hear(number, ground.now);
        if !self.flows.acknowledge(queue, has_offset, ground.now) {
            ground.count("report without an offset");
            self.producer.stop(queue);
            return self.fail(type_of_queue(queue), Cause::Unconfirmed);
        }
        if self.alone == Some(ticket) {
            self.alone = None;
        }
        self.outcomes.acknowledged.push(ticket);
    }

    /// What was already on the wire when the process was frozen arrives, or what it sends when it wakes.
    pub fn let_arrive(&mut self, ground: &mut Ground, queue: usize, count: usize) -> Vec<Queued> {
        if ground.down[type_of_queue(queue)] {
            return Vec::new();
        }
        let was_stopped = self.producer.stopped;
        let sent = self.producer.send_from_the_wire(queue, count);
        if self.producer.stopped && !was_stopped {
            self.fail(type_of_queue(queue), Cause::Refused);
        }
        sent
    }

    /// The producer of a process that has just woken gives up what is too old, and sends what is not.
    pub fn overtake(&mut self, ground: &mut Ground, queue: usize) {
        let given_up = self.producer.give_up(queue, ground.now);
        let count = ground.pick(4);
        let sent = self.let_arrive(ground, queue, count);
        if given_up > 0 {
            // By now the failure is known.
            self.producer.stop(queue);
            self.fail(type_of_queue(queue), Cause::TimedOut);
        }
        if given_up > 0 && !sent.is_empty() {
            ground.count("overtook earlier ones");
        }
        ground.write(sent, given_up > 0);
    }

    /// Ends it: nothing more is sent but what is on the wire, and some last reports are heard.
    pub fn close(mut self, ground: &mut Ground) -> Outcomes {
        for _ in 0..ground.pick(self.producer.awaiting.len() + 1) {
            self.hear(ground);
        }
        self.throw_away(ground)
    }

    /// Nothing of it is left but what is on the wire.
    pub fn throw_away(self, ground: &mut Ground) -> Outcomes {
        let wire = self.producer.into_wire(|queued| ground.pick(queued.min(3) + 1));
        ground.wire.extend(wire.into_iter().filter(|queue| !queue.is_empty()));
        self.outcomes
    }
}
