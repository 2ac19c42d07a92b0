//! The sender of a stream: `relay/src/session/sender.rs`.

use std::collections::HashSet;

use relay::lanes::Ticket;

use super::broker::{LEASE_NEEDED, MESSAGE_TIMEOUT, QUEUES, Queued, queue_of};
use super::database::{Refusal, Row, type_of};
use super::ground::Ground;
use super::lanes_table::Time;
use super::stream::{PutAside, Stream};
use super::variant::Variant;

/// What the sender is told.
#[derive(Debug)]
pub enum Work {
    /// A lane was taken, and these aggregates of it are parked.
    Lane(i16, HashSet<usize>),
    /// These are parked too.
    Parked(i16, HashSet<usize>),
    /// This type waits no more.
    Resume(usize),
    Event(Event),
}

#[derive(Debug, Clone, Copy)]
pub struct Event {
    pub row: Row,
    pub ticket: Ticket,
    pub token: i64,
}

impl Stream {
    fn is_blocked(&self) -> bool {
        self.outcomes.failure.is_some() || self.alone.is_some()
    }

    /// The sender takes one piece of work, after what it holds back, if it may.
    pub fn hand_over(&mut self, ground: &mut Ground, lease_until: Time) {
        let variant = ground.variant;
        let may_send = ground.now + LEASE_NEEDED < lease_until;
        for queue in 0..QUEUES {
            while !self.is_blocked()
                && may_send
                && !self.held[queue].is_empty()
                && self.flows.is_open(queue, ground.now)
            {
                if let Some(event) = self.held[queue].pop_front() {
                    self.dispatch(ground, event);
                }
            }
        }
        if self.is_blocked() {
            return;
        }
        match self.pipe.pop_front() {
            Some(Work::Lane(lane, keys)) => drop(self.parked.insert(lane, keys)),
            Some(Work::Parked(lane, keys)) => self.parked.entry(lane).or_default().extend(keys),
            Some(Work::Resume(of)) if self.routes[of] == Some(false) || variant == Variant::ResumesWhatIsOpen => {
                self.routes[of] = None;
            }
            None | Some(Work::Resume(_)) => {}
            Some(work @ Work::Event(_)) if !may_send => {
                ground.count("waited for the lease");
                self.pipe.push_front(work);
            }
            Some(Work::Event(event)) => self.offer(ground, event),
        }
    }

    /// Sends an event, or holds it back.
    fn offer(&mut self, ground: &mut Ground, event: Event) {
        let row = event.row;
        if row.refusal == Refusal::Sender && ground.variant == Variant::RefusesAheadOfOthers {
            return self.refuse(row, event.ticket);
        }
        let of = type_of(row.aggregate);
        match self.routes[of] {
            Some(false) => return,
            Some(true) => {}
            None if ground.down[of] && ground.chance(300) => {
                ground.count("topic was found to be down");
                self.routes[of] = Some(false);
                return self.outcomes.set_aside.push(of);
            }
            None => self.routes[of] = Some(true),
        }
        let queue = queue_of(row.aggregate);
        if self.held[queue].is_empty() && self.flows.is_open(queue, ground.now) {
            self.dispatch(ground, event);
        } else {
            ground.count("held until its producer is known");
            self.held[queue].push_back(event);
        }
    }

    fn dispatch(&mut self, ground: &mut Ground, Event { row, ticket, token }: Event) {
        if self.parked.get(&row.key.lane).is_some_and(|keys| keys.contains(&row.aggregate)) {
            return self.outcomes.put_aside.push(PutAside { ticket, id: row.key.id, refused: false });
        }
        if row.refusal == Refusal::Sender {
            return self.refuse(row, ticket);
        }
        if self.routes[type_of(row.aggregate)] != Some(true) {
            // Its type waits now, and it is not ours to send.
            return;
        }
        if self.suspects.remove(&row.key.id) {
            ground.count("sent alone");
            self.alone = Some(ticket);
        }
        self.flows.sent(queue_of(row.aggregate));
        self.producer.enqueue(Queued { ticket, row, token, deadline: ground.now + MESSAGE_TIMEOUT }, ground.now);
    }

    pub fn refuse(&mut self, row: Row, ticket: Ticket) {
        let is_first = self.parked.entry(row.key.lane).or_default().insert(row.aggregate);
        self.outcomes.put_aside.push(PutAside { ticket, id: row.key.id, refused: is_first });
    }
}
