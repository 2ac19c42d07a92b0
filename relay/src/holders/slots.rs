//! Replication slots that stand still while the server goes on: nobody reads them, or whoever does is stuck.
//!
//! Postgres 15 does not say since when a slot stands still, so this is found out by looking twice.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::AGAIN;
use crate::metrics::Upkeep;
use crate::outbox::slots::ReplicationSlot;

/// A slot that holds fewer transactions than this costs nothing yet. One that is read stands still on an idle server as well.
const TRANSACTIONS_MIN: i64 = 1_000;

/// The same for its log: a slot that is read may be behind by a few files of 16 MiB.
const WAL_BYTES_MIN: i64 = 64 * 1024 * 1024;

/// The slots that are there, by their names.
#[derive(Debug, Default)]
pub(super) struct Slots(HashMap<String, Known>);

#[derive(Debug)]
struct Known {
    slot: ReplicationSlot,
    /// Since when it has been at its place.
    since: Instant,
    logged: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// It has not moved for so long.
    Still(ReplicationSlot, Duration),
    /// It was logged, and has moved or is gone.
    Over(ReplicationSlot),
}

impl Slots {
    /// What is to be logged, now that the slots are these: those that have stood still for `age` and hold much, once and now and then, and
    /// those of them that have moved or are gone.
    pub(super) fn update(&mut self, slots: Vec<ReplicationSlot>, age: Duration, now: Instant) -> Vec<Line> {
        let mut before = std::mem::take(&mut self.0);
        let mut lines = Vec::new();
        for slot in slots {
            let same = before.remove(&slot.name).and_then(|known| {
                if known.slot.place == slot.place {
                    return Some((known.since, known.logged));
                }
                lines.extend(known.over());
                None
            });
            let (since, mut logged) = same.unwrap_or((now, None));
            let still = now.duration_since(since);
            if still >= age && holds_much(&slot) && logged.is_none_or(|logged| now.duration_since(logged) >= AGAIN) {
                logged = Some(now);
                lines.push(Line::Still(slot.clone(), still));
            }
            self.0.insert(slot.name.clone(), Known { slot, since, logged });
        }
        lines.extend(before.into_values().filter_map(Known::over));
        lines
    }
}

impl Known {
    fn over(self) -> Option<Line> {
        self.logged.map(|_| Line::Over(self.slot))
    }
}

fn transactions(slot: &ReplicationSlot) -> i64 {
    slot.xmin_age.max(slot.catalog_xmin_age).unwrap_or(0)
}

fn holds_much(slot: &ReplicationSlot) -> bool {
    transactions(slot) >= TRANSACTIONS_MIN || slot.wal_bytes.unwrap_or(0) >= WAL_BYTES_MIN
}

/// Sets the gauges.
pub(super) fn measure(slots: &[ReplicationSlot], metrics: &Upkeep) {
    metrics.slot_transactions.set(slots.iter().map(transactions).max().unwrap_or(0));
    metrics.slot_wal_bytes.set(slots.iter().filter_map(|slot| slot.wal_bytes).max().unwrap_or(0));
}

pub(super) fn log(line: &Line) {
    match line {
        Line::Still(slot, still) => tracing::warn!(
            db.slot.name = slot.name,
            db.slot.kind = slot.kind,
            db.slot.active = slot.active,
            db.session.pid = slot.pid,
            db.session.database = slot.database,
            db.slot.transactions = slot.xmin_age,
            db.slot.catalog_transactions = slot.catalog_xmin_age,
            db.slot.wal_bytes = slot.wal_bytes,
            db.slot.still_secs = still.as_secs(),
            "a replication slot stands still: Postgres cannot clean up behind it and keeps its log; if nobody is to read it any more, pg_drop_replication_slot(name) ends that"
        ),
        Line::Over(slot) => {
            tracing::info!(db.slot.name = slot.name, "the replication slot that stood still has moved or is gone");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(place: &str, xmin_age: i64) -> ReplicationSlot {
        ReplicationSlot {
            name: "standby".to_owned(),
            kind: "physical".to_owned(),
            database: None,
            active: false,
            pid: None,
            xmin_age: Some(xmin_age),
            catalog_xmin_age: None,
            wal_bytes: Some(0),
            place: place.to_owned(),
        }
    }

    #[test]
    fn a_slot_is_logged_when_it_stands_still_and_when_that_is_over() {
        let (mut slots, start, age) = (Slots::default(), Instant::now(), Duration::from_mins(1));
        let after = |secs| start + Duration::from_secs(secs);
        let (held, moved) = (slot("1", 5_000), slot("2", 5_000));
        assert_eq!(slots.update(vec![held.clone()], age, start), []);
        assert_eq!(slots.update(vec![held.clone()], age, after(59)), []);
        let line = Line::Still(held.clone(), Duration::from_mins(1));
        assert_eq!(slots.update(vec![held.clone()], age, after(60)), [line]);
        assert_eq!(slots.update(vec![held.clone()], age, after(359)), []);
        let line = Line::Still(held.clone(), Duration::from_mins(6));
        assert_eq!(slots.update(vec![held.clone()], age, after(360)), [line]);
        assert_eq!(slots.update(vec![moved.clone()], age, after(400)), [Line::Over(held)]);
        let line = Line::Still(moved.clone(), Duration::from_mins(1));
        assert_eq!(slots.update(vec![moved.clone()], age, after(460)), [line]);
        assert_eq!(slots.update(vec![], age, after(461)), [Line::Over(moved)]);
    }

    #[test]
    fn a_slot_that_moves_or_holds_little_is_not_logged() {
        let (mut slots, start, age) = (Slots::default(), Instant::now(), Duration::from_mins(1));
        for secs in 0..200 {
            let now = start + Duration::from_secs(secs);
            assert_eq!(slots.update(vec![slot(&secs.to_string(), 5_000)], age, now), []);
        }
        let mut slots = Slots::default();
        for secs in 0..200 {
            assert_eq!(slots.update(vec![slot("1", 999)], age, start + Duration::from_secs(secs)), []);
        }
    }
}
