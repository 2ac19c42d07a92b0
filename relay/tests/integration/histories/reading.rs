//! The part of a session that reads: `relay/src/session/reading.rs`.

use std::sync::Arc;

use relay::lanes::plan::{Accepted, Answer, FindPlan, PartAnswer, PartPlan, ReadPlan, Step};
use relay::lanes::{RowKey, Snapshot, Ticket, index};

use super::database::Row;
use super::ground::Ground;
use super::reads::{ReadAnswer, ReadLimits};
use super::sender::{Event, Work};
use super::session::Session;
use super::variant::Variant;

/// A question to the database and its answer.
#[derive(Debug)]
pub enum Reading {
    Read(ReadPlan, ReadAnswer),
    Find(FoundPage),
    Part(PartPlan, Vec<Row>, bool),
}

/// Some rows of a detour: hashes of their aggregates, and their transactions, or those of all rows.
#[derive(Debug)]
pub struct FoundPage {
    hashes: Vec<i64>,
    transactions: Vec<i64>,
    are_all: bool,
    is_last: bool,
}

/// A find under way: what its next page brings.
#[derive(Debug)]
pub struct Finding {
    through: Arc<Snapshot>,
    rest: Vec<(i64, i64)>,
}

impl Session {
    /// Asks for rows; the answer is taken in another step.
    pub fn read(&mut self, ground: &mut Ground, limits: ReadLimits) {
        self.lanes.allow_in_flight(ground.pick(10));
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
        // In two pages: between them, parts may be read if all transactions are known by then.
        let finding = self.finding.take().filter(|finding| Arc::ptr_eq(&finding.through, &plan.through));
        let is_last = finding.is_some();
        let mut page = finding.map_or_else(|| ground.database.find(plan), |finding| finding.rest);
        let rest = if is_last { Vec::new() } else { page.split_off(ground.pick(page.len() + 1)) };
        let (mut hashes, mut transactions): (Vec<i64>, Vec<i64>) = page.into_iter().unzip();
        let are_all = !is_last && ground.chance(500);
        if are_all && ground.variant != Variant::TakesSomeTransactionsForAll {
            transactions.extend(rest.iter().map(|(_, transaction)| *transaction));
        }
        ground.variant.distort_hashes(&mut hashes);
        self.finding = (!is_last).then(|| Finding { through: Arc::clone(&plan.through), rest });
        // If they are, the second one comes only when a read has brought something.
        let is_last = is_last || (are_all && ground.variant == Variant::TakesTransactionsForAggregates);
        Reading::Find(FoundPage { hashes, transactions, are_all, is_last })
    }

    pub fn accept(&mut self, ground: &mut Ground) {
        match self.reading.take() {
            None => {}
            Some(Reading::Find(FoundPage { hashes, transactions, are_all, is_last })) => {
                self.lanes.found(&hashes, &transactions, are_all);
                if is_last {
                    self.lanes.all_found();
                }
            }
            Some(Reading::Read(plan, answer)) => self.accept_read(ground, &plan, answer),
            Some(Reading::Part(plan, rows, cut)) => {
                if self.finding.is_some() {
                    ground.count("part ahead of the aggregates");
                }
                let keys: Vec<RowKey> = rows.iter().map(|row| row.key).collect();
                let accepted = self.lanes.accept_part(&PartAnswer { rows: &keys, cut });
                ground.note(|| format!("  part {plan:?}: {:?}, cut {cut}", ids(&rows)));
                ground.count(if matches!(plan, PartPlan::Late { .. }) { "late part" } else { "held part" });
                self.hand_out(rows, accepted);
            }
        }
        if !self.lanes.is_amid_read() {
            self.together.clear();
            self.finding = None;
        }
    }

    fn accept_read(&mut self, ground: &mut Ground, plan: &ReadPlan, answer: ReadAnswer) {
        let ReadAnswer { snapshot, last_id, rows, late, late_cut, fresh_cut } = answer;
        let was_on_detour = self.lanes.is_amid_read();
        let keys: Vec<RowKey> = rows.iter().map(|row| row.key).collect();
        let snapshot = Snapshot::parse(snapshot).expect("the database's own");
        let is_found = self.finding.is_none();
        let accepted = self.lanes.accept(plan, &Answer { snapshot, last_id, rows: &keys, late, late_cut, fresh_cut });
        if late_cut {
            self.together = plan.lanes.iter().map(|(lane, _)| *lane).collect();
        }
        ground.note(|| format!("  read {plan:?}: {:?}, late {late}, cut {late_cut} {fresh_cut}", ids(&rows)));
        for (happened, what) in [
            (accepted.late > 0, "late rows"),
            (late_cut, "late rows cut off"),
            (late_cut && was_on_detour, "late rows cut off on a detour"),
            (fresh_cut, "new rows cut off"),
            (passed_over(self, plan, &keys), "ids passed over"),
            (was_on_detour && accepted.tickets.iter().any(Option::is_some), "published beside a detour"),
            (!is_found && keys.is_empty(), "read beside a detour brings nothing"),
            (!is_found && !keys.is_empty(), "aggregates needed"),
            (was_on_detour && is_found && !late_cut && accepted.tickets.iter().any(Option::is_none), "held back"),
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
        let events = self.events(rows, accepted.tickets);
        self.main.pipe.extend(events);
    }

    /// Rows with a ticket, for a sender.
    pub fn events(&self, rows: Vec<Row>, tickets: Vec<Option<Ticket>>) -> Vec<Work> {
        let token = |row: &Row| {
            self.lanes.iter().find(|lane| index(lane.lane) == index(row.key.lane)).map_or(0, |lane| lane.token)
        };
        let events = rows.into_iter().zip(tickets);
        events
            .filter_map(|(row, ticket)| Some(Work::Event(Event { row, ticket: ticket?, token: token(&row) })))
            .collect()
    }
}

pub fn ids(rows: &[Row]) -> Vec<i64> {
    rows.iter().map(|row| row.key.id).collect()
}

/// Whether a lane stands behind all rows that it was given.
fn passed_over(session: &Session, plan: &ReadPlan, rows: &[RowKey]) -> bool {
    let highest = |lane: i16, position: i64| {
        rows.iter().filter(|row| row.lane == lane).map(|row| row.id).max().map_or(position, |id| id.max(position))
    };
    plan.lanes.iter().any(|(lane, position)| {
        session.lanes.iter().any(|held| held.lane == *lane && held.read.position > highest(*lane, *position))
    })
}
