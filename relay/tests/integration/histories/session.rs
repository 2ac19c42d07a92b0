//! One session of a relay around the real core: the steps of `relay/src/session`, each to be interrupted anywhere.

use std::collections::{HashMap, HashSet, VecDeque};

use relay::lanes::plan::{Accepted, Answer, FindPlan, PartAnswer, PartPlan, ReadPlan, Step};
use relay::lanes::{DetourLimits, HeldLanes, RowKey, Snapshot, Ticket};

use super::broker::{LEASE_NEEDED, MESSAGE_TIMEOUT, Producer, Queued, Sent};
use super::database::{ReadAnswer, ReadLimits, Refusal, Row};
use super::ground::{Ground, Statement};
use super::lanes_table::{Owner, Time};
use super::variant::Variant;

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
pub enum Work {
    Lane(i16, HashSet<usize>),
    Event(Row, Ticket),
}

/// A question to the database and its answer.
#[derive(Debug)]
pub enum Reading {
    Read(ReadPlan, ReadAnswer),
    Find(Vec<i64>, Vec<i64>),
    Part(PartPlan, Vec<Row>, bool),
}

#[derive(Debug)]
struct PutAside {
    ticket: Ticket,
    id: i64,
    refused: bool,
}

#[derive(Debug)]
pub struct Session {
    pub owner: Owner,
    pub lanes: HeldLanes,
    pub reading: Option<Reading>,
    /// The lanes that began a detour.
    pub together: Vec<i16>,
    pub next_balance: Time,
    pub lease_until: Time,
    // The sender's.
    pub pipe: VecDeque<Work>,
    parked: HashMap<i16, HashSet<usize>>,
    suspects: HashSet<i64>,
    single: bool,
    alone: Option<Ticket>,
    pub producer: Producer,
    // The outcomes.
    acknowledged: Vec<Ticket>,
    put_aside: Vec<PutAside>,
    /// Rows that were refused, perhaps for their company.
    pub refused: HashSet<i64>,
    pub failed: bool,
}

impl Session {
    pub fn start(ground: &mut Ground, owner: Owner, suspects: HashSet<i64>) -> Result<Self, Stop> {
        let mut session = Self {
            owner,
            lanes: HeldLanes::new(DetourLimits { detours: 2, held_rows: 4, part_rows: 2 }),
            reading: None,
            together: Vec::new(),
            next_balance: 0,
            lease_until: 0,
            pipe: VecDeque::new(),
            parked: HashMap::new(),
            single: !suspects.is_empty(),
            suspects,
            alone: None,
            producer: Producer::default(),
            acknowledged: Vec::new(),
            put_aside: Vec::new(),
            refused: HashSet::new(),
            failed: false,
        };
        session.keep_leases(ground)?;
        Ok(session)
    }

    pub fn is_full(&self) -> bool {
        self.lanes.in_flight() >= IN_FLIGHT_MAX
    }

    /// Whether it was begun to find out which record is refused, and has.
    pub fn has_cleared_its_suspects(&self) -> bool {
        self.single && self.suspects.is_empty()
    }

    /// Asks for rows; the answer is taken in another step.
    pub fn read(&mut self, ground: &mut Ground, limits: ReadLimits) {
        self.reading = match self.lanes.next_step() {
            None => return,
            Some(Step::Read(plan)) => {
                if self.lanes.exhausted().is_some_and(|seen| seen.as_str() == ground.database.snapshot()) {
                    return;
                }
                let mut answer = ground.database.read(&plan, limits);
                ground.variant.distort(&mut answer);
                Some(Reading::Read(plan, answer))
            }
            Some(Step::Find(plan)) => Some(self.find(ground, &plan)),
            Some(Step::Part(plan)) => {
                let (mut rows, mut cut) = ground.database.part(&plan, limits);
                ground.variant.distort_part(&mut rows, &mut cut);
                Some(Reading::Part(plan, rows, cut))
            }
        };
    }

    fn find(&mut self, ground: &mut Ground, plan: &FindPlan) -> Reading {
        if !self.together.is_empty() && self.lanes.is_amid_read() {
            ground.count("detour begun");
        }
        let (mut hashes, transactions) = ground.database.find(plan);
        ground.variant.distort_hashes(&mut hashes);
        Reading::Find(hashes, transactions)
    }

    pub fn accept(&mut self, ground: &mut Ground) {
        match self.reading.take() {
            None => {}
            Some(Reading::Find(hashes, transactions)) => {
                self.lanes.found(&hashes, &transactions);
                self.lanes.all_found();
            }
            Some(Reading::Read(plan, answer)) => self.accept_read(ground, &plan, answer),
            Some(Reading::Part(plan, rows, cut)) => {
                let keys: Vec<RowKey> = rows.iter().map(|row| row.key).collect();
                let accepted = self.lanes.accept_part(&PartAnswer { rows: &keys, cut });
                ground.note(|| format!("  part {plan:?}: {:?}, cut {cut}", ids(&rows)));
                ground.count(if matches!(plan, PartPlan::Late { .. }) { "late part" } else { "held part" });
                self.hand_out(rows, accepted);
            }
        }
        if !self.lanes.is_amid_read() {
            self.together.clear();
        }
    }

    fn accept_read(&mut self, ground: &mut Ground, plan: &ReadPlan, answer: ReadAnswer) {
        let ReadAnswer { snapshot, rows, late, late_cut, fresh_cut } = answer;
        let was_on_detour = self.lanes.is_amid_read();
        let keys: Vec<RowKey> = rows.iter().map(|row| row.key).collect();
        let snapshot = Snapshot::parse(snapshot).expect("the database's own");
        let accepted = self.lanes.accept(plan, &Answer { snapshot, rows: &keys, late, late_cut, fresh_cut });
        if late_cut {
            self.together = plan.lanes.iter().map(|(lane, _)| *lane).collect();
        }
        ground.note(|| format!("  read {plan:?}: {:?}, late {late}, cut {late_cut} {fresh_cut}", ids(&rows)));
        for (happened, what) in [
            (accepted.late > 0, "late rows"),
            (late_cut, "late rows cut off"),
            (late_cut && was_on_detour, "late rows cut off on a detour"),
            (fresh_cut, "new rows cut off"),
            (was_on_detour && accepted.tickets.iter().any(Option::is_some), "published beside a detour"),
            (was_on_detour && !late_cut && accepted.tickets.iter().any(Option::is_none), "held back"),
        ] {
            if happened {
                ground.count(what);
            }
        }
        let mut rows = rows;
        let mut accepted = accepted;
        ground.variant.order(&mut rows, late);
        ground.variant.order(&mut accepted.tickets, late);
        self.hand_out(rows, accepted);
    }

    fn hand_out(&mut self, rows: Vec<Row>, accepted: Accepted) {
        let events = rows.into_iter().zip(accepted.tickets);
        self.pipe.extend(events.filter_map(|(row, ticket)| Some(Work::Event(row, ticket?))));
    }

    /// The sender takes one piece of work, if it may.
    pub fn hand_over(&mut self, ground: &mut Ground, under_lease: bool) {
        if self.failed || self.alone.is_some() {
            return;
        }
        match self.pipe.pop_front() {
            None => {}
            Some(Work::Lane(lane, keys)) => {
                self.parked.insert(lane, keys);
            }
            Some(Work::Event(row, ticket)) => {
                if self.parked.get(&row.key.lane).is_some_and(|keys| keys.contains(&row.aggregate)) {
                    self.put_aside.push(PutAside { ticket, id: row.key.id, refused: false });
                } else if row.refusal == Refusal::Sender {
                    self.refuse(row, ticket);
                } else if under_lease && ground.now + LEASE_NEEDED >= self.lease_until {
                    ground.count("waited for the lease");
                    self.pipe.push_front(Work::Event(row, ticket));
                } else {
                    self.enqueue(ground, row, ticket);
                }
            }
        }
    }

    fn enqueue(&mut self, ground: &mut Ground, row: Row, ticket: Ticket) {
        if self.suspects.remove(&row.key.id) {
            ground.count("sent alone");
            self.alone = Some(ticket);
        }
        let token = self.lanes.get_mut(ticket.lane()).map_or(0, |lane| lane.token);
        self.producer.enqueue(Queued { ticket, row, token, deadline: ground.now + MESSAGE_TIMEOUT });
    }

    fn refuse(&mut self, row: Row, ticket: Ticket) {
        self.parked.entry(row.key.lane).or_default().insert(row.aggregate);
        self.put_aside.push(PutAside { ticket, id: row.key.id, refused: true });
    }

    /// The producer sends a request.
    pub fn transmit(&mut self, ground: &mut Ground, partition: usize) {
        let count = if self.single { 1 } else { 1 + ground.pick(3) };
        let goes_on = ground.variant == Variant::GoesOnAfterAFailure;
        match self.producer.send(partition, count, ground.now) {
            Sent::Written(records) => ground.write(records, false),
            Sent::TimedOut => {
                ground.count("record timed out");
                self.failed = true;
                if goes_on {
                    self.producer.give_up(partition, ground.now);
                } else {
                    self.producer.stop(partition);
                }
            }
            Sent::Refused(records) => match records[..] {
                [only] if self.alone == Some(only.ticket) => {
                    ground.count("refused alone");
                    self.alone = None;
                    self.refuse(only.row, only.ticket);
                }
                _ => {
                    ground.count("batch refused");
                    self.refused.extend(records.iter().map(|record| record.row.key.id));
                    self.failed = true;
                    if !goes_on {
                        self.producer.stop(partition);
                    }
                }
            },
        }
    }

    /// An acknowledgement arrives; they do so in any order.
    pub fn hear(&mut self, ground: &mut Ground) {
        let awaiting = &mut self.producer.awaiting;
        if awaiting.is_empty() {
            return;
        }
        let ticket = awaiting.swap_remove(ground.pick(awaiting.len()));
        if self.alone == Some(ticket) {
            self.alone = None;
        }
        self.acknowledged.push(ticket);
    }

    /// The session takes what has come.
    pub fn collect(&mut self, ground: &mut Ground) -> Result<(), Stop> {
        for ticket in self.acknowledged.drain(..) {
            self.lanes.acknowledge(ticket);
        }
        self.park(ground)?;
        if self.failed { Err(Stop::Delivery) } else { Ok(()) }
    }

    fn park(&mut self, ground: &mut Ground) -> Result<(), Stop> {
        let put_aside = std::mem::take(&mut self.put_aside);
        for lane in self.lanes.iter_mut() {
            let of_lane = || put_aside.iter().filter(|aside| aside.ticket.lane() == relay::lanes::index(lane.lane));
            let rows: Vec<(i64, bool)> = of_lane().map(|aside| (aside.id, aside.refused)).collect();
            if rows.is_empty() {
                continue;
            }
            let statement = ground.statement();
            if statement == Statement::Lost {
                return Err(Stop::Database);
            }
            let held = ground.table.park(&ground.database, lane.lane, lane.token, &rows);
            if statement == Statement::Unanswered {
                return Err(Stop::Database);
            }
            if !held {
                return Err(Stop::LaneLost);
            }
            ground.count("parked");
            let tickets: Vec<Ticket> = of_lane().map(|aside| aside.ticket).collect();
            for ticket in tickets {
                lane.progress.acknowledge(ticket.sequence());
            }
        }
        Ok(())
    }
}

fn ids(rows: &[Row]) -> Vec<i64> {
    rows.iter().map(|row| row.key.id).collect()
}
