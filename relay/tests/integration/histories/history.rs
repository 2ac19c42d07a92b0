//! A history: one seed decides who does what, and when.

use rand::RngExt;

use super::check::{self, Violation};
use super::database::{Refusal, TYPES, type_of};
use super::fleet::Relay;
use super::ground::Ground;
use super::lanes_table::{LEASE, Owner};
use super::session::Session;
use super::variant::Variant;

/// Steps of its first part, in which anything may happen.
const STEPS: usize = 900;

/// Rounds of its second part, in which nothing goes wrong any more, until all must be published.
const ROUNDS: usize = 250;

const RELAYS_MAX: usize = 3;

/// What a history has come to.
#[derive(Debug)]
pub struct Report {
    pub result: Result<(), Violation>,
    pub ground: Ground,
}

pub struct History {
    pub ground: Ground,
    relays: Vec<Relay>,
    relays_made: u32,
    /// After so many steps all relays but this one stop, and hand their lanes to it.
    recall: Option<(usize, Owner)>,
}

/// Runs the history of this seed.
pub fn run(seed: u64, variant: Variant, traced: bool) -> Report {
    let mut history =
        History { ground: Ground::new(seed, variant, traced), relays: Vec::new(), relays_made: 0, recall: None };
    let result = history.run();
    Report { result, ground: history.ground }
}

impl History {
    fn run(&mut self) -> Result<(), Violation> {
        for _ in 0..STEPS {
            self.step();
            check::never_back(&self.ground)?;
        }
        self.finish()?;
        check::all(&self.ground)?;
        // What was on the wire all the while arrives last.
        while !self.ground.wire.is_empty() {
            self.let_wire_arrive();
        }
        check::all(&self.ground)
    }

    fn step(&mut self) {
        self.recall();
        if self.recall.is_none() && self.ground.trouble > 0 && self.ground.chance(30) {
            self.give_back_amid_read();
        }
        match self.ground.pick(100) {
            0..27 => self.write(),
            27..88 => self.work(),
            88..95 => self.pass_time(),
            95 => self.drop_partition(),
            97 => self.let_wire_arrive(),
            98 => self.come_and_go(),
            _ => self.trouble(),
        }
    }

    fn work(&mut self) {
        if self.relays.is_empty() {
            return self.add_relay();
        }
        let number = self.ground.pick(self.relays.len());
        let relay = &mut self.relays[number];
        if relay.frozen {
            if self.ground.chance(20) {
                relay.let_requests_arrive(&mut self.ground);
            }
        } else if !relay.step(&mut self.ground) {
            self.relays.remove(number);
            // Its lanes are free: let another one find them before much else happens.
            for session in self.relays.iter_mut().filter_map(|relay| relay.session.as_mut()) {
                session.next_balance = self.ground.now;
            }
        }
    }

    fn add_relay(&mut self) {
        if self.relays.len() < RELAYS_MAX {
            self.relays_made += 1;
            self.relays.push(Relay::new(self.relays_made));
        }
    }

    /// While a relay is frozen, time passes faster, so that its lanes are taken before it wakes.
    fn pass_time(&mut self) {
        let most = if self.relays.iter().any(|relay| relay.frozen) { 40 } else { 6 };
        self.ground.now += self.ground.rng.random_range(1..=most);
        let of = self.ground.pick(TYPES);
        if self.ground.down[of] && self.ground.chance(60) {
            self.ground.toggle_topic(of);
        }
    }

    fn drop_partition(&mut self) {
        if self.ground.table.may_drop(&self.ground.database) {
            self.ground.count("partition dropped");
            self.ground.note(|| "the oldest partition is dropped".to_owned());
            self.ground.database.drop_oldest_partition();
        }
    }

    fn let_wire_arrive(&mut self) {
        if self.ground.wire.is_empty() {
            return;
        }
        let number = self.ground.pick(self.ground.wire.len());
        if let Some(record) = self.ground.wire[number].pop_front() {
            let refused = record.row.refusal == Refusal::Broker || self.ground.down[type_of(record.row.aggregate)];
            if !refused {
                self.ground.write(vec![record], false);
                return;
            }
        }
        // Behind a refused record an idempotent producer's next one is out of sequence.
        self.ground.wire.swap_remove(number);
    }

    /// What belongs to a relay's life.
    fn come_and_go(&mut self) {
        match self.ground.pick(3) {
            0 | 1 => self.add_relay(),
            _ if self.relays.is_empty() => {}
            _ => {
                let number = self.ground.pick(self.relays.len());
                self.relays[number].stopping = true;
            }
        }
    }

    /// What goes wrong.
    fn trouble(&mut self) {
        if self.relays.is_empty() || self.ground.trouble == 0 {
            return;
        }
        let number = self.ground.pick(self.relays.len());
        match self.ground.pick(8) {
            6 | 7 => {
                let of = self.ground.pick(TYPES);
                self.ground.toggle_topic(of);
            }
            0 => {
                self.ground.count("killed");
                self.ground.note(|| format!("relay at {number} is killed"));
                self.relays.remove(number).kill(&mut self.ground);
            }
            1 | 2 if self.relays[number].frozen => self.wake(number),
            1 => {
                self.ground.count("frozen");
                self.ground.note(|| format!("relay at {number} is frozen"));
                self.relays[number].frozen = true;
            }
            3 => self.ground.now += LEASE / 4 + self.ground.rng.random_range(0..LEASE),
            _ => self.give_back_amid_read(),
        }
    }

    /// Any relay that is amid a read in parts gives one of its lanes back.
    fn give_back_amid_read(&mut self) {
        for number in 0..self.relays.len() {
            if !self.relays[number].frozen && self.relays[number].give_back_amid_read(&mut self.ground) {
                self.recall = Some((100, self.relays[number].owner));
                return self.add_relay();
            }
        }
    }

    fn recall(&mut self) {
        match &mut self.recall {
            None => {}
            Some((0, owner)) => {
                for relay in self.relays.iter_mut().filter(|relay| relay.owner != *owner) {
                    relay.stopping = true;
                }
                self.recall = None;
            }
            Some((steps, _)) => *steps -= 1,
        }
    }

    fn wake(&mut self, number: usize) {
        self.ground.note(|| format!("relay at {number} wakes"));
        let relay = &mut self.relays[number];
        relay.frozen = false;
        if self.ground.chance(500) {
            relay.wake_in_the_worst_instant(&mut self.ground);
        }
    }

    /// Everything ends, and must be published.
    fn finish(&mut self) -> Result<(), Violation> {
        self.ground.note(|| "from here on nothing goes wrong".to_owned());
        self.ground.trouble = 0;
        self.ground.down = [false; TYPES];
        for number in (0..self.ground.database.transactions()).rev() {
            self.end(number);
        }
        for number in 0..self.relays.len() {
            if self.relays[number].frozen {
                self.wake(number);
            }
        }
        for _ in 0..ROUNDS {
            if self.relays.iter().all(|relay| relay.stopping) {
                self.add_relay();
            }
            let ground = &mut self.ground;
            self.relays.retain_mut(|relay| relay.round(ground));
            self.drop_partition();
            self.ground.now += 7;
            check::never_back(&self.ground)?;
            let idle = |relay: &Relay| relay.session.as_ref().is_none_or(Session::is_idle);
            if self.ground.table.cover_all(&self.ground.database) && self.relays.iter().all(idle) {
                return Ok(());
            }
        }
        Err(Violation::Stuck)
    }
}
