//! Which cursor of a lane may be settled, while acknowledgements come in any order. Pure.
//!
//! A lane's rows are handed to the producer in reads, each late rows first and then new ones. The settleable cursor moves only
//! over a contiguous run of acknowledged rows:
//! - inside the late rows of a read it stays at the end of the read before: the new snapshot would call the rest of them seen;
//! - inside the new rows it is (id of the last acknowledged one, the read's snapshot): rows beyond it will be read as new ones.
//!
//! After a crash the lane goes on from there: rows acknowledged beyond it are published a second time, with the same event ids.

use std::collections::VecDeque;

use super::Cursor;

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
    pub fn push_late(&mut self, id: i64, occurred_us: i64) -> u64 {
        debug_assert!(self.fresh.is_none(), "of one key, late rows come before new ones");
        self.push(id, occurred_us)
    }

    /// A new row of the read under way, after its late ones. Returns its sequence number.
    pub fn push_fresh(&mut self, id: i64, occurred_us: i64) -> u64 {
        let sequence = self.push(id, occurred_us);
        self.fresh.get_or_insert(sequence);
        sequence
    }

    fn push(&mut self, id: i64, occurred_us: i64) -> u64 {
        self.slots.push_back(Slot { id, occurred_us, acknowledged: false });
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

    fn advance(&mut self) {
        let mut last = None;
        while self.slots.front().is_some_and(|slot| slot.acknowledged) {
            last = self.slots.pop_front().map(|slot| slot.id);
            self.base += 1;
        }
        while let Some(read) = self.reads.front() {
            if self.base >= read.end {
                self.cursor = self.reads.pop_front().map_or(Cursor::START, |read| read.cursor);
                continue;
            }
            if self.base >= read.fresh {
                // With none of its new rows acknowledged, the position is still that of the read before.
                let position =
                    if self.base > read.fresh { last.unwrap_or(self.cursor.position) } else { self.cursor.position };
                self.cursor = Cursor { position, seen: read.cursor.seen.clone() };
            }
            break;
        }
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

    impl Progress {
        fn begin_read(&mut self, late: &[i64], fresh: &[i64], cursor: Cursor) -> u64 {
            let first = self.next();
            for id in late {
                self.push_late(*id, 0);
            }
            for id in fresh {
                self.push_fresh(*id, 0);
            }
            self.end_read(cursor);
            first
        }
    }

    #[test]
    fn late_rows_of_a_read_in_parts_move_nothing_before_its_end() {
        let mut progress = Progress::new(at(9, 10));
        progress.push_late(4, 0);
        progress.acknowledge(0);
        assert_eq!((progress.cursor(), progress.in_flight()), (&at(9, 10), 0));
        progress.push_late(6, 0);
        progress.push_fresh(11, 0);
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
}
