//! Events of one aggregate type that wait for their topic, while all others flow. Pure.
//!
//! When a topic takes no records, the events of its types must not hold up the lanes that they are in. Each such type then has a cursor of
//! its own in each lane, kept in the table `relay_waiting`: the type's rows that it covers are published, all later ones wait. The lane goes
//! on and passes over them. Once the topic takes records again, the rows between the type's cursor and the lane's are read in passes
//! and published in their order. When a pass has brought the type to where the lane is, and all of it is acknowledged, the cursor is
//! deleted, and the lane reads the type's rows again.
//!
//! A pass reads up to the lane's cursor as it was when the pass began (`through`), in parts, by id: rows at or below `start.position` that
//! were not visible in `start.seen` come first, as late rows do in a lane's own reads, and then the rows above it. A row that was not
//! visible in `through.seen` is left to the next pass, or to the lane, for which it is late.

use super::{Cursor, Progress, RowKey, Ticket, index};

/// Ids that one part of a pass looks through at most: with few rows of the type among them, this bounds the time that a part takes.
pub const IDS_MAX: i64 = 400_000;

/// One aggregate type in all the lanes in which it waits and that this relay holds.
#[derive(Debug, Default)]
pub struct WaitingType {
    lanes: Vec<WaitingLane>,
}

/// One aggregate type in one lane.
#[derive(Debug)]
struct WaitingLane {
    lane: i16,
    /// Rows of the type that this covers have been handed out.
    start: Cursor,
    pass: Option<Pass>,
    progress: Progress,
}

/// A pass that is under way.
#[derive(Debug)]
struct Pass {
    through: Cursor,
    /// Ids up to here have been looked through.
    reached: i64,
}

/// What to read of one lane: the rows of the type with an id in (`after`, `to`] that `start` does not cover and that were visible in
/// `through`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// `outbox.lane`.
    pub lane: i16,
    /// Below the first id.
    pub after: i64,
    /// The last id.
    pub to: i64,
    /// What was handed out before the pass.
    pub start: Cursor,
    /// What the lane had handed out when the pass began.
    pub through: Cursor,
}

impl WaitingType {
    /// The type waits in a lane, from this cursor on.
    pub fn insert(&mut self, lane: i16, cursor: Cursor) {
        self.remove(lane);
        self.lanes.push(WaitingLane { lane, start: cursor.clone(), pass: None, progress: Progress::new(cursor) });
    }

    /// The lane is another relay's now, or the type waits in it no more.
    pub fn remove(&mut self, lane: i16) {
        self.lanes.retain(|waiting| waiting.lane != lane);
    }

    /// Whether it waits in no lane that this relay holds.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Lanes in which it waits, with the cursors that may be settled.
    pub fn cursors(&self) -> impl Iterator<Item = (i16, &Cursor)> {
        self.lanes.iter().map(|waiting| (waiting.lane, waiting.progress.cursor()))
    }

    /// Records that Kafka has yet to acknowledge.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.lanes.iter().map(|waiting| waiting.progress.in_flight()).sum()
    }

    /// The same in one lane.
    #[must_use]
    pub fn in_flight_of(&self, lane: i16) -> usize {
        self.lanes.iter().filter(|waiting| waiting.lane == lane).map(|waiting| waiting.progress.in_flight()).sum()
    }

    /// Kafka, or `relay_parked`, has this record. Returns when it occurred, in microseconds since 1970; none if that was known before.
    pub fn acknowledge(&mut self, ticket: Ticket) -> Option<i64> {
        let mut lanes = self.lanes.iter_mut();
        lanes.find(|waiting| index(waiting.lane) == ticket.lane())?.progress.acknowledge(ticket.sequence())
    }

    /// Lane and outbox id of a record that is not acknowledged.
    #[must_use]
    pub fn row_of(&self, ticket: Ticket) -> Option<(i16, i64)> {
        let waiting = self.lanes.iter().find(|waiting| index(waiting.lane) == ticket.lane())?;
        Some((waiting.lane, waiting.progress.id_of(ticket.sequence())?))
    }

    /// The producer is gone: all that was not acknowledged is to be read again.
    pub fn restart(&mut self) {
        for waiting in &mut self.lanes {
            waiting.start = waiting.progress.cursor().clone();
            waiting.pass = None;
            waiting.progress = Progress::new(waiting.start.clone());
        }
    }

    /// Cursors from which a pass would begin, in lanes that are behind their own reading. `own` are the lanes' cursors of reading. Late rows
    /// are to be looked for below these.
    pub fn behind<'a>(&'a self, own: &'a [(i16, Cursor)]) -> impl Iterator<Item = &'a Cursor> {
        let behind = |waiting: &&WaitingLane| waiting.pass.is_none() && waiting.is_behind(own).is_some();
        self.lanes.iter().filter(behind).map(|waiting| &waiting.start)
    }

    /// Begins a pass in each lane that is behind. `first_late` is the lowest id of a row that may be late for one of
    /// [`Self::behind`]; none if there is no such row.
    pub fn begin_pass(&mut self, own: &[(i16, Cursor)], first_late: Option<i64>) {
        for waiting in self.lanes.iter_mut().filter(|waiting| waiting.pass.is_none()) {
            if let Some(through) = waiting.is_behind(own) {
                let position = waiting.start.position;
                let reached = first_late.map_or(position, |first| position.min(first - 1));
                waiting.pass = Some(Pass { through, reached });
            }
        }
    }

    /// The next part of each pass that is under way.
    #[must_use]
    pub fn parts(&self) -> Vec<Part> {
        let part = |waiting: &WaitingLane| {
            let Pass { through, reached } = waiting.pass.as_ref()?;
            Some(Part {
                lane: waiting.lane,
                after: *reached,
                to: through.position.min(reached.saturating_add(IDS_MAX)),
                start: waiting.start.clone(),
                through: through.clone(),
            })
        };
        self.lanes.iter().filter_map(part).collect()
    }

    /// Takes the rows of these parts, by id within each lane. A lane of which `rows_max` rows came may have more of them. Unless all rows came
    /// (`complete`), so may the lane of the last row, and lanes without a row were perhaps not read. Returns a ticket for each row, and
    /// none for one of a lane that is gone.
    pub fn accept(&mut self, parts: &[Part], rows: &[RowKey], rows_max: usize, complete: bool) -> Vec<Option<Ticket>> {
        let mut tickets = Vec::with_capacity(rows.len());
        for row in rows {
            let waiting = self.lanes.iter_mut().find(|waiting| waiting.lane == row.lane && waiting.pass.is_some());
            tickets.push(waiting.map(|waiting| {
                let is_late = row.id <= waiting.start.position;
                let progress = &mut waiting.progress;
                let sequence = if is_late { progress.push_late(row) } else { progress.push_fresh(row) };
                Ticket::new(index(row.lane), sequence)
            }));
        }
        let last_lane = rows.last().map(|row| row.lane).filter(|_| !complete);
        for part in parts {
            let mut of_lane = rows.iter().filter(|row| row.lane == part.lane);
            let (count, last) = (of_lane.clone().count(), of_lane.next_back());
            if last.is_none() && !complete {
                continue;
            }
            let cut_at = last.filter(|_| count >= rows_max || last_lane == Some(part.lane)).map(|row| row.id);
            if let Some(waiting) = self.lanes.iter_mut().find(|waiting| waiting.lane == part.lane) {
                waiting.reach(cut_at.unwrap_or(part.to));
            }
        }
        tickets
    }

    /// Whether all rows have been handed out that the lanes have passed over.
    #[must_use]
    pub fn is_level(&self, own: &[(i16, Cursor)]) -> bool {
        let is_there = |waiting: &WaitingLane| {
            waiting.pass.is_none() && own.iter().any(|(lane, at)| *lane == waiting.lane && *at == waiting.start)
        };
        self.lanes.iter().all(is_there)
    }
}

impl WaitingLane {
    /// The lane's own cursor, if the type is behind it. A lane that reads again from its settled cursor, after a failure, may be behind the
    /// type for a moment.
    fn is_behind(&self, own: &[(i16, Cursor)]) -> Option<Cursor> {
        let (_, through) = own.iter().find(|(lane, _)| *lane == self.lane)?;
        let newer = match (&self.start.seen, &through.seen) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(start), Some(through)) => through.includes(start),
        };
        (newer && through.position >= self.start.position && *through != self.start).then(|| through.clone())
    }

    /// All rows of the pass up to this id have been handed out.
    fn reach(&mut self, id: i64) {
        let Some(Pass { through, reached }) = &mut self.pass else { return };
        *reached = id;
        if id < self.start.position {
            // Some late rows are still to come: until then only the old cursor is true.
            return;
        }
        let cursor = Cursor { position: id, seen: through.seen.clone() };
        let at_its_end = id >= through.position;
        self.progress.end_read(cursor.clone());
        if at_its_end {
            (self.start, self.pass) = (cursor, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::lanes::{Snapshot, TypeIndex};

    fn at(position: i64, seen: &str) -> Cursor {
        Cursor { position, seen: Some(Arc::new(Snapshot::parse(seen.to_owned()).unwrap())) }
    }

    fn row(id: i64) -> RowKey {
        RowKey { id, txid: 1, lane: 3, occurred_us: 0, type_index: TypeIndex::default(), key_hash: 0 }
    }

    fn settled(waiting: &WaitingType) -> Cursor {
        waiting.cursors().next().unwrap().1.clone()
    }

    #[test]
    fn a_pass_in_parts_settles_behind_its_late_rows_and_ends_where_the_lane_is() {
        let mut waiting = WaitingType::default();
        waiting.insert(3, at(100, "10:20:15"));
        let own = [(3, at(1_000_000, "30:40:"))];
        assert_eq!(waiting.behind(&own).count(), 1);
        waiting.begin_pass(&own, Some(50));
        let parts = waiting.parts();
        assert_eq!((parts[0].after, parts[0].to), (49, 49 + IDS_MAX));
        // The late rows 50 and 60 fill the first part.
        let tickets = waiting.accept(&parts, &[row(50), row(60)], 2, true);
        waiting.acknowledge(tickets[0].unwrap());
        waiting.acknowledge(tickets[1].unwrap());
        assert_eq!(settled(&waiting), at(100, "10:20:15"), "another late row may follow");
        let parts = waiting.parts();
        assert_eq!((parts[0].after, parts[0].to), (60, 60 + IDS_MAX));
        let tickets = waiting.accept(&parts, &[row(200)], 2, true);
        assert_eq!(settled(&waiting), at(100, "30:40:"), "the late rows are through");
        waiting.acknowledge(tickets[0].unwrap());
        assert_eq!(settled(&waiting), at(60 + IDS_MAX, "30:40:"));
        while !waiting.parts().is_empty() {
            assert!(!waiting.is_level(&own));
            let parts = waiting.parts();
            waiting.accept(&parts, &[], 2, true);
        }
        assert_eq!((settled(&waiting), waiting.in_flight()), (own[0].1.clone(), 0));
        assert!(waiting.is_level(&own));
        assert!(!waiting.is_level(&[(3, at(1_000_001, "30:41:"))]), "the lane has read on");
    }

    #[test]
    fn a_read_that_was_cut_off_reaches_no_further_than_its_last_row() {
        let mut waiting = WaitingType::default();
        let own = [(3, at(300, "30:30:")), (4, at(300, "30:30:")), (5, at(300, "30:30:"))];
        for (lane, _) in &own {
            waiting.insert(*lane, at(100, "20:20:"));
        }
        waiting.begin_pass(&own, None);
        let rows = [row(150), row(160), RowKey { lane: 4, ..row(155) }];
        waiting.accept(&waiting.parts(), &rows, 9, false);
        let parts = waiting.parts();
        assert_eq!(parts.iter().map(|part| (part.lane, part.after)).collect::<Vec<_>>(), [(4, 155), (5, 100)]);
    }

    #[test]
    fn a_lane_that_begins_again_behind_the_type_is_waited_for() {
        let mut waiting = WaitingType::default();
        waiting.insert(3, at(100, "20:20:"));
        for own in [at(90, "20:20:"), at(100, "19:19:"), at(100, "20:20:"), Cursor::START] {
            assert_eq!(waiting.behind(&[(3, own.clone())]).count(), 0, "{own:?}");
        }
        assert!(waiting.is_level(&[(3, at(100, "20:20:"))]));
        assert!(!waiting.is_level(&[(3, at(90, "20:20:"))]));
    }

    #[test]
    fn after_a_failure_what_was_not_acknowledged_is_read_again() {
        let mut waiting = WaitingType::default();
        waiting.insert(3, at(100, "20:20:"));
        let own = [(3, at(300, "30:30:"))];
        waiting.begin_pass(&own, None);
        let tickets = waiting.accept(&waiting.parts(), &[row(150), row(200)], 9, true);
        waiting.acknowledge(tickets[0].unwrap());
        waiting.restart();
        assert_eq!((settled(&waiting), waiting.in_flight()), (at(150, "30:30:"), 0));
        waiting.begin_pass(&own, None);
        assert_eq!(waiting.parts()[0].after, 150);
    }
}
