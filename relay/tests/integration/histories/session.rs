//! One session of a relay around the real core: the steps of `relay/src/session`, each to be interrupted anywhere.

use std::collections::{BTreeMap, HashSet};

use relay::lanes::{HeldLanes, LaneLimits, Ticket, index};

use super::broker::QUEUES;
use super::ground::Ground;
use super::lanes_table::{Owner, Time};
use super::reading::{Finding, Reading};
use super::stream::{PutAside, Stream};
use super::waiting::Waiting;

/// Records that may be under way.
const IN_FLIGHT_MAX: usize = 16;

/// Why a session ends before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    Database,
    LaneLost,
    Delivery,
}

#[derive(Debug)]
pub struct Session {
    pub owner: Owner,
    pub lanes: HeldLanes,
    pub reading: Option<Reading>,
    /// The aggregates of a detour that are still to be found.
    pub finding: Option<Finding>,
    /// The lanes that began a detour.
    pub together: Vec<i16>,
    pub next_balance: Time,
    pub lease_until: Time,
    /// The stream of all events that flow.
    pub main: Stream,
    /// Types whose topic takes no records.
    pub waiting: BTreeMap<usize, Waiting>,
    /// Until then nothing is read, so that a type that waited can catch up.
    pub reads_rest_until: Time,
}

impl Session {
    pub fn start(ground: &mut Ground, owner: Owner) -> Result<Self, Stop> {
        let mut session = Self {
            owner,
            lanes: HeldLanes::new(LaneLimits { detours: 2, held_rows: 4, part_rows: 2, behind_ids: 3 }),
            reading: None,
            finding: None,
            together: Vec::new(),
            next_balance: 0,
            lease_until: 0,
            main: Stream::new(ground.variant, HashSet::new()),
            waiting: BTreeMap::new(),
            reads_rest_until: 0,
        };
        session.keep_leases(ground)?;
        Ok(session)
    }

    /// Whether nothing may be read now.
    pub fn is_full(&self, now: Time) -> bool {
        self.lanes.in_flight() >= IN_FLIGHT_MAX || (!self.waiting.is_empty() && now < self.reads_rest_until)
    }

    /// All streams: that of all events, and those of types that are being tried.
    pub fn streams(&mut self) -> impl Iterator<Item = &mut Stream> {
        let tries = self.waiting.values_mut().filter_map(Waiting::stream);
        std::iter::once(&mut self.main).chain(tries)
    }

    /// One of the senders takes a piece of work.
    pub fn hand_over(&mut self, ground: &mut Ground, lease_until: Time) {
        let number = ground.pick(self.streams().count());
        if let Some(stream) = self.streams().nth(number) {
            stream.hand_over(ground, lease_until);
        }
    }

    /// One of the producers sends a request.
    pub fn transmit(&mut self, ground: &mut Ground) {
        let (number, queue) = (ground.pick(self.streams().count()), ground.pick(QUEUES));
        if let Some(stream) = self.streams().nth(number) {
            stream.transmit(ground, queue);
        }
    }

    /// One of the producers reports something.
    pub fn hear(&mut self, ground: &mut Ground) {
        let number = ground.pick(self.streams().count());
        if let Some(stream) = self.streams().nth(number) {
            stream.hear(ground);
        }
    }

    /// All that the streams can do while nothing goes wrong.
    pub fn send_all(&mut self, ground: &mut Ground) {
        let lease_until = self.lease_until;
        for stream in self.streams() {
            for _ in 0..32 {
                stream.hand_over(ground, lease_until);
                for queue in 0..QUEUES {
                    stream.transmit(ground, queue);
                }
                stream.hear(ground);
            }
        }
    }

    /// The session takes what has come of the stream of all events.
    pub fn collect(&mut self, ground: &mut Ground) -> Result<(), Stop> {
        self.take_main_outcomes(ground)?;
        self.set_aside_types(ground)?;
        match self.main.outcomes.failure {
            Some(failure) => self.replace_producer(ground, failure),
            None => Ok(()),
        }
    }

    pub fn take_main_outcomes(&mut self, ground: &mut Ground) -> Result<(), Stop> {
        for ticket in std::mem::take(&mut self.main.outcomes.acknowledged) {
            self.lanes.acknowledge(ticket);
        }
        let put_aside = std::mem::take(&mut self.main.outcomes.put_aside);
        for ticket in self.park(ground, &put_aside)? {
            self.lanes.acknowledge(ticket);
        }
        Ok(())
    }

    /// Writes these rows into `relay_parked`. Returns their tickets.
    pub fn park(&self, ground: &mut Ground, put_aside: &[PutAside]) -> Result<Vec<Ticket>, Stop> {
        for lane in self.lanes.iter() {
            let of_lane = put_aside.iter().filter(|aside| aside.ticket.lane() == index(lane.lane));
            let rows: Vec<(i64, bool)> = of_lane.map(|aside| (aside.id, aside.refused)).collect();
            if rows.is_empty() {
                continue;
            }
            if !ground.ask(|ground| ground.table.park(&ground.database, lane.lane, lane.token, &rows))? {
                return Err(Stop::LaneLost);
            }
            ground.count("parked");
        }
        Ok(put_aside.iter().map(|aside| aside.ticket).collect())
    }
}
