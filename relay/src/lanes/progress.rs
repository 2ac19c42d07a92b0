//! Which cursor of a lane may be settled, while acknowledgements come in any order. Pure.
//!
//! A lane's rows are handed to the producer in reads, each late rows first and then new ones. The settleable cursor moves only
//! over a contiguous run of acknowledged rows:
//! - inside the late rows of a read it stays at the end of the read before: the new snapshot would call the rest of them seen;
//! - inside the new rows it is (id of the last acknowledged one, the read's snapshot): rows beyond it will be read as new ones;
//! - from a detour on (see [`super::detour`]) it stays where it is until all rows of the detour are acknowledged, and all that were held
//!   back because of it: the snapshots of the reads after the detour began call them seen.
//!
//! After a crash the lane goes on from there: rows acknowledged beyond it are published a second time, with the same event ids.

use std::collections::VecDeque;

use super::{Cursor, RowKey, TypeIndex};

/// Acknowledgements of one lane since it was taken.
#[derive(Debug)]
pub struct Progress {
    cursor: Cursor,
    /// Sequence number of the first slot.
    base: u64,
    slots: VecDeque<Slot>,
    reads: VecDeque<Read>,
    /// Sequence number of the first new row of the read under way.
    fresh: Option<u64>,
    /// Id of the last new row in the contiguous run of acknowledged ones; counting those held back, as soon as their detour is acknowledged.
    position: i64,
    detours: Detours,
}

/// Detours by their numbers from 1, in the order in which they begin and end.
#[derive(Debug, Default)]
struct Detours {
    begun: u64,
    /// How many are acknowledged.
    done: u64,
    /// Of those that were handed out to their end, and are not acknowledged: the sequence number after their last row.
    ends: VecDeque<u64>,
    /// Rows that are not acknowledged.
    in_flight: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Late,
    Fresh,
    Detour,
}

#[derive(Debug)]
struct Slot {
    id: i64,
    occurred_us: i64,
    type_index: TypeIndex,
    kind: Kind,
    acknowledged: bool,
}

#[derive(Debug)]
struct Read {
    /// Sequence number of its first new row.
    fresh: u64,
    /// Sequence number after its last row.
    end: u64,
    /// The cursor when all of it is acknowledged.
    cursor: Cursor,
    /// How many detours must be acknowledged first.
    detours: u64,
}

impl Progress {
    /// The progress of a lane that was taken at `cursor`.
    #[must_use]
    pub fn new(cursor: Cursor) -> Self {
        Self {
            position: cursor.position,
            cursor,
            base: 0,
            slots: VecDeque::new(),
            reads: VecDeque::new(),
            fresh: None,
            detours: Detours::default(),
        }
    }

    /// A late row of the read under way is about to be handed to the producer. Returns its sequence number.
    pub fn push_late(&mut self, row: &RowKey) -> u64 {
        debug_assert!(self.fresh.is_none(), "of one key, late rows come before new ones");
        self.push(row, Kind::Late)
    }

    /// A new row of the read under way, after its late ones. Returns its sequence number.
    pub fn push_fresh(&mut self, row: &RowKey) -> u64 {
        let sequence = self.push(row, Kind::Fresh);
        self.fresh.get_or_insert(sequence);
        sequence
    }

    /// A row of a detour, or one that was held back because of it, between two reads. Returns its sequence number.
    pub fn push_detour(&mut self, row: &RowKey) -> u64 {
        debug_assert!(self.fresh.is_none(), "a detour goes on between two reads");
        self.detours.in_flight += 1;
        self.push(row, Kind::Detour)
    }

    fn push(&mut self, row: &RowKey, kind: Kind) -> u64 {
        let RowKey { id, occurred_us, type_index, .. } = *row;
        self.slots.push_back(Slot { id, occurred_us, type_index, kind, acknowledged: false });
        self.next() - 1
    }

    /// All rows of the read are known; once they are all acknowledged, and so are the detours that have begun, the lane is at `cursor`.
    pub fn end_read(&mut self, cursor: Cursor) {
        let (end, detours) = (self.next(), self.detours.begun);
        // Behind a detour, reads that are acknowledged wait. One of them is enough: the later one tells of the earlier one's rows too.
        let waits = |last: &mut Read| last.end <= self.base && last.detours == detours;
        if let Some(last) = self.reads.pop_back_if(waits) {
            self.position = self.position.max(last.cursor.position);
        }
        self.reads.push_back(Read { fresh: self.fresh.take().unwrap_or(end), end, cursor, detours });
        self.advance();
    }

    /// The late rows of a read become a detour, which the reads from here on leave out. Once it is acknowledged, the lane is at `cursor`.
    pub fn begin_detour(&mut self, cursor: Cursor) {
        self.detours.begun += 1;
        self.end_read(cursor);
    }

    /// All rows of the first detour that has not ended were handed to the producer, and all that were held back because of it.
    pub fn end_detour(&mut self) {
        self.detours.ends.push_back(self.next());
        self.advance();
    }

    fn next(&self) -> u64 {
        self.base + self.slots.len() as u64
    }

    /// The outbox id of row `sequence`, unless it has been acknowledged and passed over.
    #[must_use]
    pub fn id_of(&self, sequence: u64) -> Option<i64> {
        let index = usize::try_from(sequence.checked_sub(self.base)?).ok()?;
        self.slots.get(index).map(|slot| slot.id)
    }

    /// Row `sequence` has been acknowledged. Returns when it occurred, as it was given; a repeated acknowledgement changes nothing and
    /// returns none.
    pub fn acknowledge(&mut self, sequence: u64) -> Option<i64> {
        let index = usize::try_from(sequence.checked_sub(self.base)?).ok()?;
        let slot = self.slots.get_mut(index).filter(|slot| !slot.acknowledged)?;
        slot.acknowledged = true;
        let occurred_us = slot.occurred_us;
        if slot.kind == Kind::Detour {
            self.detours.in_flight = self.detours.in_flight.saturating_sub(1);
        }
        if index == 0 {
            self.advance();
        }
        Some(occurred_us)
    }

    /// How many rows have not been acknowledged, counting those that were acknowledged before an elder.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.len()
    }

    /// How many rows of detours have not been acknowledged.
    #[must_use]
    pub const fn detour_in_flight(&self) -> usize {
        self.detours.in_flight
    }

    /// The cursor that may be settled.
    #[must_use]
    pub const fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    fn advance(&mut self) {
        while let Some(slot) = self.slots.pop_front_if(|slot| slot.acknowledged) {
            self.base += 1;
            if slot.kind == Kind::Fresh {
                self.position = slot.id;
            }
        }
        while self.detours.ends.front().is_some_and(|end| *end <= self.base) {
            self.detours.ends.pop_front();
            self.detours.done += 1;
        }
        while let Some(read) = self.reads.front().filter(|read| read.detours <= self.detours.done) {
            match read.cursor_at(self.base, self.position, &self.cursor) {
                Reached::End(cursor) => {
                    self.cursor = cursor;
                    self.reads.pop_front();
                }
                Reached::Within(cursor) => {
                    self.cursor = cursor;
                    break;
                }
            }
        }
    }

    /// The cursor of the rows of one aggregate type: all rows of the type that it covers are acknowledged. It may be ahead of
    /// [`Self::cursor`], which waits for rows of the other types too.
    #[must_use]
    pub fn cursor_of(&self, type_index: TypeIndex) -> Cursor {
        if self.detours.begun > self.detours.done {
            // Of its rows in a detour, some may not even have been read.
            return self.cursor.clone();
        }
        let open = |slot: &Slot| slot.type_index == type_index && !slot.acknowledged;
        let place = self.slots.iter().position(open).unwrap_or(self.slots.len());
        let mut before = self.slots.iter().take(place).rev();
        let position = before.find(|slot| slot.kind == Kind::Fresh).map_or(self.position, |slot| slot.id);
        let mut cursor = self.cursor.clone();
        for read in &self.reads {
            match read.cursor_at(self.base + place as u64, position, &cursor) {
                Reached::End(at) => cursor = at,
                Reached::Within(at) => return at,
            }
        }
        cursor
    }

    /// The rows of this aggregate type wait elsewhere from now on: they are dealt with as far as the lane's own cursor goes.
    pub fn set_aside(&mut self, type_index: TypeIndex) {
        let open = |slot: &&mut Slot| slot.type_index == type_index && !slot.acknowledged;
        for slot in self.slots.iter_mut().filter(open) {
            slot.acknowledged = true;
            if slot.kind == Kind::Detour {
                self.detours.in_flight = self.detours.in_flight.saturating_sub(1);
            }
        }
        self.advance();
    }
}

/// How far a run of acknowledged rows goes in a read, and the cursor there.
enum Reached {
    /// Through all of it.
    End(Cursor),
    /// Not to its end.
    Within(Cursor),
}

impl Read {
    /// The cursor when all rows before sequence number `base` are dealt with. `position` is the id of the last new one of them, and `before`
    /// the cursor at the end of the read before.
    fn cursor_at(&self, base: u64, position: i64, before: &Cursor) -> Reached {
        if base >= self.end {
            return Reached::End(self.cursor.clone());
        }
        if base < self.fresh {
            return Reached::Within(before.clone());
        }
        // With none of its new rows acknowledged, the position is still that of the read before, which may have ended in a row that was
        // held back.
        Reached::Within(Cursor { position: position.max(before.position), seen: self.cursor.seen.clone() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::lanes::Snapshot;

    fn at(position: i64, xmax: i64) -> Cursor {
        let seen = Snapshot::parse(format!("1:{xmax}:")).unwrap();
        Cursor { position, seen: Some(Arc::new(seen)) }
    }

    /// Rows with an odd id are of one type, those with an even one of another.
    fn row(id: i64) -> RowKey {
        let type_index = TypeIndex::from(usize::from(id % 2 == 0));
        RowKey { id, txid: 1, lane: 0, occurred_us: 0, type_index, key_hash: 0 }
    }

    impl Progress {
        fn begin_read(&mut self, late: &[i64], fresh: &[i64], cursor: Cursor) -> u64 {
            let first = self.next();
            for id in late {
                self.push_late(&row(*id));
            }
            for id in fresh {
                self.push_fresh(&row(*id));
            }
            self.end_read(cursor);
            first
        }
    }

    #[test]
    fn late_rows_of_a_read_in_parts_move_nothing_before_its_end() {
        let mut progress = Progress::new(at(9, 10));
        progress.push_late(&row(4));
        progress.acknowledge(0);
        assert_eq!((progress.cursor(), progress.in_flight()), (&at(9, 10), 0));
        progress.push_late(&row(6));
        progress.push_fresh(&row(11));
        assert_eq!((progress.id_of(0), progress.id_of(1), progress.id_of(3)), (None, Some(6), None));
        progress.end_read(at(11, 20));
        progress.acknowledge(1);
        assert_eq!(progress.cursor(), &at(9, 20));
        progress.acknowledge(2);
        assert_eq!(progress.cursor(), &at(11, 20));
    }

    #[test]
    fn the_cursor_moves_over_a_contiguous_run_only() {
        let mut progress = Progress::new(at(0, 10));
        assert_eq!(progress.begin_read(&[], &[1, 2, 3], at(3, 20)), 0);
        progress.acknowledge(1);
        assert_eq!(progress.cursor(), &at(0, 20));
        progress.acknowledge(0);
        assert_eq!(progress.cursor(), &at(2, 20));
        progress.acknowledge(0);
        progress.acknowledge(2);
        assert_eq!((progress.cursor(), progress.in_flight()), (&at(3, 20), 0));
    }

    #[test]
    fn inside_late_rows_the_old_snapshot_stays() {
        let mut progress = Progress::new(at(9, 10));
        progress.begin_read(&[4, 6], &[11], at(11, 20));
        progress.acknowledge(0);
        progress.acknowledge(2);
        assert_eq!(progress.cursor(), &at(9, 10), "row 6 would be lost under the new snapshot");
        progress.acknowledge(1);
        assert_eq!(progress.cursor(), &at(11, 20));
    }

    #[test]
    fn after_the_late_rows_the_new_snapshot_holds_at_the_old_position() {
        let mut progress = Progress::new(at(9, 10));
        progress.begin_read(&[4], &[11], at(11, 20));
        progress.acknowledge(0);
        assert_eq!(progress.cursor(), &at(9, 20));
    }

    #[test]
    fn an_empty_read_moves_the_snapshot_once_its_elders_are_acknowledged() {
        let mut progress = Progress::new(at(0, 10));
        progress.begin_read(&[], &[], at(0, 20));
        assert_eq!(progress.cursor(), &at(0, 20));
        let first = progress.begin_read(&[], &[5], at(5, 30));
        progress.begin_read(&[], &[], at(5, 40));
        assert_eq!(progress.cursor(), &at(0, 30));
        progress.acknowledge(first);
        assert_eq!(progress.cursor(), &at(5, 40));
    }

    #[test]
    fn acknowledgements_of_two_reads_may_cross() {
        let mut progress = Progress::new(at(0, 10));
        progress.begin_read(&[], &[1, 2], at(2, 20));
        let second = progress.begin_read(&[], &[3, 4], at(4, 30));
        progress.acknowledge(second);
        progress.acknowledge(second + 1);
        progress.acknowledge(1);
        assert_eq!(progress.cursor(), &at(0, 20));
        progress.acknowledge(0);
        assert_eq!((progress.cursor(), progress.in_flight()), (&at(4, 30), 0));
    }

    #[test]
    fn behind_a_detour_nothing_moves_until_all_of_it_is_acknowledged() {
        let mut progress = Progress::new(at(9, 10));
        let before = progress.begin_read(&[], &[10], at(10, 20));
        progress.begin_detour(at(10, 25));
        let part = progress.push_detour(&row(3));
        let fresh = progress.begin_read(&[], &[11, 12], at(12, 30));
        progress.acknowledge(before);
        progress.acknowledge(part);
        progress.acknowledge(fresh);
        progress.acknowledge(fresh + 1);
        assert_eq!((progress.cursor(), progress.in_flight()), (&at(10, 20), 0), "row 5 is still to come");
        let part = progress.push_detour(&row(5));
        progress.begin_read(&[], &[13], at(13, 40));
        progress.end_detour();
        assert_eq!(progress.detour_in_flight(), 1);
        progress.acknowledge(part);
        // Row 13 was handed out before the detour had ended, so it is waited for as well.
        assert_eq!((progress.cursor(), progress.detour_in_flight()), (&at(10, 20), 0));
        progress.acknowledge(part + 1);
        assert_eq!(progress.cursor(), &at(13, 40));
    }

    #[test]
    fn after_a_detour_the_cursor_moves_over_new_rows_again_and_never_back() {
        let mut progress = Progress::new(at(9, 10));
        progress.begin_detour(at(9, 15));
        // The last row of the next read, 20, is held back: no slot is given to it yet.
        progress.begin_read(&[], &[], at(20, 20));
        let held = progress.push_detour(&row(20));
        progress.end_detour();
        let next = progress.begin_read(&[], &[21, 22], at(22, 30));
        assert_eq!(progress.cursor(), &at(9, 10));
        progress.acknowledge(held);
        assert_eq!(progress.cursor(), &at(20, 30));
        progress.acknowledge(next);
        assert_eq!(progress.cursor(), &at(21, 30));
    }

    #[test]
    fn detours_end_in_their_order() {
        let mut progress = Progress::new(at(9, 10));
        progress.begin_detour(at(9, 20));
        progress.begin_detour(at(9, 30));
        let first = progress.push_detour(&row(3));
        progress.end_detour();
        let second = progress.push_detour(&row(4));
        progress.acknowledge(second);
        assert_eq!(progress.cursor(), &at(9, 10));
        progress.acknowledge(first);
        assert_eq!(progress.cursor(), &at(9, 20), "the second one has not ended");
        progress.end_detour();
        assert_eq!(progress.cursor(), &at(9, 30));
    }

    #[test]
    fn a_type_that_waits_holds_up_no_other_and_loses_none_of_its_own() {
        let (odd, even) = (TypeIndex::from(0), TypeIndex::from(1));
        let mut progress = Progress::new(at(0, 10));
        progress.begin_read(&[], &[1, 2, 3, 4], at(4, 20));
        progress.begin_read(&[], &[5, 6], at(6, 30));
        for sequence in [0, 1, 3] {
            progress.acknowledge(sequence);
        }
        assert_eq!(progress.cursor(), &at(2, 20));
        assert_eq!(progress.cursor_of(odd), at(2, 20), "3 is open");
        assert_eq!(progress.cursor_of(even), at(5, 30), "6 is open; 5 is none of its rows");
        progress.set_aside(odd);
        assert_eq!((progress.cursor(), progress.in_flight()), (&at(5, 30), 1));
        progress.acknowledge(5);
        assert_eq!((progress.cursor(), progress.cursor_of(even)), (&at(6, 30), at(6, 30)));
    }

    #[test]
    fn a_type_that_waits_keeps_the_old_snapshot_while_a_late_row_of_it_is_open() {
        let odd = TypeIndex::from(0);
        let mut progress = Progress::new(at(9, 10));
        progress.begin_read(&[3, 4], &[12], at(12, 20));
        progress.acknowledge(1);
        assert_eq!(progress.cursor_of(odd), at(9, 10));
        assert_eq!(progress.cursor_of(TypeIndex::from(1)), at(9, 20));
    }
}
