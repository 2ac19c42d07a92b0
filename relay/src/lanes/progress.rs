//! Which cursor of a lane may be settled, while acknowledgements come in any order. Pure.
//!
//! A lane's rows are handed to the producer in reads, each late rows first and then new ones. The settleable cursor moves only
//! over a contiguous run of acknowledged rows:
//! - inside the late rows of a read it stays at the end of the read before: the new snapshot would call the rest of them seen;
//! - inside the new rows it is (id of the last acknowledged one, the read's snapshot): rows beyond it will be read as new ones.
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
}

#[derive(Debug)]
struct Slot {
    id: i64,
    occurred_us: i64,
    type_index: TypeIndex,
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
}

impl Progress {
    /// The progress of a lane that was taken at `cursor`.
    #[must_use]
    pub const fn new(cursor: Cursor) -> Self {
        Self { cursor, base: 0, slots: VecDeque::new(), reads: VecDeque::new(), fresh: None }
    }

    /// A late row of the read under way is about to be handed to the producer. Returns its sequence number.
    pub fn push_late(&mut self, row: &RowKey) -> u64 {
        debug_assert!(self.fresh.is_none(), "of one key, late rows come before new ones");
        self.push(row)
    }

    /// A new row of the read under way, after its late ones. Returns its sequence number.
    pub fn push_fresh(&mut self, row: &RowKey) -> u64 {
        let sequence = self.push(row);
        self.fresh.get_or_insert(sequence);
        sequence
    }

    fn push(&mut self, row: &RowKey) -> u64 {
        let RowKey { id, occurred_us, type_index, .. } = *row;
        self.slots.push_back(Slot { id, occurred_us, type_index, acknowledged: false });
        self.next() - 1
    }

    /// All rows of the read are known; once they are all acknowledged, the lane is at `cursor`.
    pub fn end_read(&mut self, cursor: Cursor) {
        let end = self.next();
        self.reads.push_back(Read { fresh: self.fresh.take().unwrap_or(end), end, cursor });
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

    /// The cursor that may be settled.
    #[must_use]
    pub const fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// The cursor of the rows of one aggregate type: all rows of the type that it covers are acknowledged. It may be ahead of
    /// [`Self::cursor`], which waits for rows of the other types too.
    #[must_use]
    pub fn cursor_of(&self, type_index: TypeIndex) -> Cursor {
        let open = |slot: &Slot| slot.type_index == type_index && !slot.acknowledged;
        let place = self.slots.iter().position(open).unwrap_or(self.slots.len());
        let last = place.checked_sub(1).and_then(|before| self.slots.get(before)).map(|slot| slot.id);
        let mut cursor = self.cursor.clone();
        for read in &self.reads {
            match read.cursor_at(self.base + place as u64, last, &cursor) {
                Reached::End(at) => cursor = at,
                Reached::Within(at) => return at,
            }
        }
        cursor
    }

    /// The rows of this aggregate type wait elsewhere from now on: they are dealt with as far as the lane's own cursor goes.
    pub fn set_aside(&mut self, type_index: TypeIndex) {
        for slot in self.slots.iter_mut().filter(|slot| slot.type_index == type_index) {
            slot.acknowledged = true;
        }
        self.advance();
    }

    fn advance(&mut self) {
        let mut last = None;
        while self.slots.front().is_some_and(|slot| slot.acknowledged) {
            last = self.slots.pop_front().map(|slot| slot.id);
            self.base += 1;
        }
        while let Some(read) = self.reads.front() {
            match read.cursor_at(self.base, last, &self.cursor) {
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
}

/// How far a run of acknowledged rows goes in a read, and the cursor there.
enum Reached {
    /// Through all of it.
    End(Cursor),
    /// Not to its end.
    Within(Cursor),
}

impl Read {
    /// The cursor when all rows before sequence number `base` are dealt with. `last` is the id of the last of them, if there was one since
    /// `before`, which is the cursor up to then.
    fn cursor_at(&self, base: u64, last: Option<i64>, before: &Cursor) -> Reached {
        if base >= self.end {
            return Reached::End(self.cursor.clone());
        }
        if base < self.fresh {
            return Reached::Within(before.clone());
        }
        // With none of its new rows acknowledged, the position is still that of the read before.
        let position = if base > self.fresh { last.unwrap_or(before.position) } else { before.position };
        Reached::Within(Cursor { position, seen: self.cursor.seen.clone() })
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
        RowKey { id, txid: 1, lane: 0, occurred_us: 0, type_index }
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
