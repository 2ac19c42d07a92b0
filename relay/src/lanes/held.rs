//! The lanes that a relay holds: what to read next, what of an answer is to be published, and what may be settled. Pure.
//!
//! Everything that decides whether an event is lost, repeated or overtaken is in here and in the two modules below it, without a
//! database, a broker or a clock, so that thousands of histories can be tried in a second (`tests/integration/histories`).

use std::sync::Arc;

use super::detour::Detours;
use super::plan::{Accepted, Answer, Found, PartAnswer, ReadPlan, RowKey, Step};
use super::{Cursor, LANES, Progress, Snapshot, Ticket, TypeIndex, index};

/// A lane that this relay holds, as of its lease.
#[derive(Debug)]
pub struct HeldLane {
    /// Which one, 0 to 15.
    pub lane: i16,
    /// Its fencing token: a write to its row must name it.
    pub token: i64,
    /// Where the next read goes on: all up to here has been handed to the producer.
    pub read: Cursor,
    /// What of it Kafka has acknowledged.
    pub progress: Progress,
    /// Whether it is to be given to another relay: nothing more is read, and once all is acknowledged it is released.
    pub draining: bool,
    /// Aggregate types whose rows are passed over, since they wait for their topic: see [`super::waiting`].
    pub waiting: Vec<TypeIndex>,
}

impl HeldLane {
    /// A lane as it was taken, at its settled cursor.
    #[must_use]
    pub fn new(lane: i16, token: i64, cursor: Cursor) -> Self {
        Self {
            lane,
            token,
            read: cursor.clone(),
            progress: Progress::new(cursor),
            draining: false,
            waiting: Vec::new(),
        }
    }

    /// All rows of this lane that are visible and above its position have been read. Those up to the last id that are not visible yet will
    /// be late ones, wherever the position is. So a lane in which little happens goes on to that id; else each read would walk over what
    /// lies between, such as a million rows that a transaction is still writing.
    ///
    /// Not if it is only a little behind, since late rows cost more. But always if a type waits in it: the type may have been brought up to
    /// where the lane stood before its producer was replaced, and it flows again once the lane stands there.
    fn pass_over(&mut self, last_id: i64, behind_ids: i64) {
        let behind_max = if self.waiting.is_empty() { behind_ids } else { 0 };
        if last_id.saturating_sub(self.read.position) > behind_max {
            self.read.position = last_id;
        }
    }

    fn waits(&self, row: &RowKey) -> bool {
        // Almost always no type waits.
        self.waiting.contains(&row.type_index)
    }
}

/// What lanes may take.
#[derive(Debug, Clone, Copy)]
pub struct LaneLimits {
    /// Detours at a time; with as many, reading waits if there are again too many late rows.
    pub detours: usize,
    /// Rows that are held back; with as many, reading waits for the detours. One read may go beyond it.
    pub held_rows: usize,
    /// Rows that were held back and are read in one part.
    pub part_rows: usize,
    /// Ids that a lane may be behind the last one without a row of its own: then it passes over them.
    pub behind_ids: i64,
}

impl Default for LaneLimits {
    fn default() -> Self {
        Self { detours: 8, held_rows: 100_000, part_rows: 4_000, behind_ids: 1_000 }
    }
}

/// All lanes of a relay.
#[derive(Debug, Default)]
pub struct HeldLanes {
    limits: LaneLimits,
    /// Not in here, since the session that holds this is moved about.
    lanes: Box<[Option<HeldLane>; LANES]>,
    /// The snapshot of the last read, when that read found all there was.
    exhausted: Option<Snapshot>,
    detours: Detours,
    /// Parts of detours and other reads take turns.
    part_is_next: bool,
    /// Rows of the last part.
    part_rows: usize,
    /// Rows of parts that may be in flight when the next one is read: see [`Self::allow_in_flight`].
    in_flight_max: usize,
}

impl HeldLanes {
    /// No lanes yet.
    #[must_use]
    pub fn new(limits: LaneLimits) -> Self {
        Self { limits, detours: Detours::new(limits), ..Self::default() }
    }

    /// Adds a lane that was taken.
    pub fn insert(&mut self, lane: HeldLane) {
        self.exhausted = None;
        self.detours.leave(lane.lane);
        if let Some(slot) = self.lanes.get_mut(index(lane.lane)) {
            *slot = Some(lane);
        }
    }

    /// Forgets a lane that was given back.
    pub fn remove(&mut self, lane: i16) {
        self.detours.leave(lane);
        if let Some(slot) = self.lanes.get_mut(index(lane)) {
            *slot = None;
        }
    }

    /// Whether a read is under way in parts: a detour has not ended.
    #[must_use]
    pub fn is_amid_read(&self) -> bool {
        !self.detours.is_empty()
    }

    /// Whether a lane can be given back without a repeat: all of it is acknowledged, and its settled cursor tells of all of it. On a detour
    /// it does not: the relay that takes the lane would publish what was published since the detour began again.
    #[must_use]
    pub fn can_be_given_back(&self, lane: &HeldLane) -> bool {
        lane.progress.in_flight() == 0 && !self.detours.contains(lane.lane)
    }

    /// The lanes.
    pub fn iter(&self) -> impl Iterator<Item = &HeldLane> {
        self.lanes.iter().flatten()
    }

    /// The lanes, to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut HeldLane> {
        self.lanes.iter_mut().flatten()
    }

    /// The lane with this index.
    pub fn get_mut(&mut self, index: usize) -> Option<&mut HeldLane> {
        self.lanes.get_mut(index).and_then(Option::as_mut)
    }

    /// Records that Kafka has yet to acknowledge.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.iter().map(|lane| lane.progress.in_flight()).sum()
    }

    /// Kafka, or `relay_parked`, has this record. Returns when it occurred, in microseconds since 1970; none if that was known before.
    pub fn acknowledge(&mut self, ticket: Ticket) -> Option<i64> {
        self.get_mut(ticket.lane())?.progress.acknowledge(ticket.sequence())
    }

    /// The producer is gone: all that was not acknowledged is to be read again, from the settleable cursors on.
    pub fn restart(&mut self) {
        (self.exhausted, self.part_is_next, self.part_rows) = (None, false, 0);
        self.detours.clear();
        for lane in self.iter_mut() {
            lane.read = lane.progress.cursor().clone();
            lane.progress = Progress::new(lane.read.clone());
        }
    }

    /// Lane and outbox id of a record that is not acknowledged.
    #[must_use]
    pub fn row_of(&self, ticket: Ticket) -> Option<(i16, i64)> {
        let lane = self.lanes.get(ticket.lane())?.as_ref()?;
        Some((lane.lane, lane.progress.id_of(ticket.sequence())?))
    }

    /// The snapshot in which all there was has been read. While it is the current one, there is nothing to read: this spares an idle
    /// database the read, and keeps a relay from walking over the rows of a bulk transaction that is still running.
    #[must_use]
    pub const fn exhausted(&self) -> Option<&Snapshot> {
        self.exhausted.as_ref()
    }

    /// What to do next; none if there is no lane to read, or only acknowledgements can be waited for.
    pub fn next_step(&mut self) -> Option<Step> {
        // New rows wait for it.
        if let Some(find) = self.detours.to_find() {
            return Some(Step::Find(find));
        }
        let is_turn = std::mem::replace(&mut self.part_is_next, false);
        let other = if self.detours.block_reads() { None } else { self.plan().map(Step::Read) };
        if (is_turn || other.is_none())
            && self.has_part()
            && let Some(part) = self.detours.part()
        {
            return Some(Step::Part(part));
        }
        self.part_is_next = true;
        other
    }

    /// Whether there is a detour whose next part does not have to wait for acknowledgements.
    #[must_use]
    pub fn has_part(&self) -> bool {
        let in_flight = || self.iter().map(|lane| lane.progress.detour_in_flight()).sum::<usize>();
        !self.detours.is_empty() && in_flight() <= self.in_flight_max.clamp(self.part_rows / 2, self.part_rows * 2)
    }

    /// With more rows of parts in flight, the next part waits, so that no new row waits long behind them: so many as Kafka takes in a
    /// moment. They are half of a part at least, and two parts at the most.
    pub const fn allow_in_flight(&mut self, rows: usize) {
        self.in_flight_max = rows;
    }

    /// What to read next; none without a lane to read.
    fn plan(&self) -> Option<ReadPlan> {
        let readable = || self.iter().filter(|lane| !lane.draining);
        let lanes: Vec<(i16, i64)> = readable().map(|lane| (lane.lane, lane.read.position)).collect();
        if lanes.is_empty() {
            return None;
        }
        let seen = || readable().filter_map(|lane| lane.read.seen.as_deref());
        let late_from = seen().map(Snapshot::xmax).min().unwrap_or(i64::MAX);
        let mut late_running: Vec<i64> =
            seen().flat_map(Snapshot::xip).copied().filter(|txid| *txid < late_from).collect();
        late_running.sort_unstable();
        late_running.dedup();
        Some(ReadPlan { lanes, late_from, late_running, with_hashes: !self.detours.is_empty() })
    }

    /// Takes an answer to the plan just made: says which rows are to be published, in their order, and notes where the lanes stand.
    pub fn accept(&mut self, plan: &ReadPlan, answer: &Answer<'_>) -> Accepted {
        let seen = Arc::new(answer.snapshot.clone());
        let nothing = || Accepted { tickets: vec![None; answer.rows.len()], late: 0, found: Found::More };
        if (answer.late_cut || !answer.rows.is_empty()) && self.detours.need_aggregates() {
            return nothing();
        }
        if answer.late_cut {
            self.begin_detour(plan, &seen);
            return nothing();
        }
        self.exhausted = (!answer.fresh_cut).then(|| answer.snapshot.clone());
        let (elders, fresh) = answer.rows.split_at(answer.late.min(answer.rows.len()));
        let mut tickets = Vec::with_capacity(answer.rows.len());
        for row in elders {
            tickets.push(self.accept_late(row));
        }
        let late = tickets.iter().flatten().count();
        for row in fresh {
            tickets.push(self.accept_fresh(row));
        }
        for (number, _) in &plan.lanes {
            let behind_ids = self.limits.behind_ids;
            let Some(held) = self.get_mut(index(*number)) else { continue };
            if !answer.fresh_cut {
                held.pass_over(answer.last_id, behind_ids);
            }
            held.read.seen = Some(Arc::clone(&seen));
            held.progress.end_read(held.read.clone());
        }
        let found = match (answer.fresh_cut, tickets.iter().any(Option::is_some)) {
            (true, _) => Found::More,
            (false, true) => Found::All,
            (false, false) => Found::Nothing,
        };
        Accepted { tickets, late, found }
    }

    fn accept_late(&mut self, row: &RowKey) -> Option<Ticket> {
        let due = |lane: &&mut HeldLane| !lane.waits(row) && !lane.read.covers(row.id, row.txid);
        let lane = self.lanes.get_mut(index(row.lane))?.as_mut().filter(due)?;
        if self.detours.hold_back(row) {
            return None;
        }
        Some(Ticket::new(index(row.lane), lane.progress.push_late(row)))
    }

    fn accept_fresh(&mut self, row: &RowKey) -> Option<Ticket> {
        let lane = self.lanes.get_mut(index(row.lane))?.as_mut()?;
        lane.read.position = row.id;
        if lane.waits(row) {
            return None;
        }
        if self.detours.hold_back(row) {
            return None;
        }
        Some(Ticket::new(index(row.lane), lane.progress.push_fresh(row)))
    }

    /// The late rows of this read become a detour, and the lanes go on as if they had been read. Its new rows are read again after the
    /// aggregates of the detour are known.
    fn begin_detour(&mut self, plan: &ReadPlan, seen: &Arc<Snapshot>) {
        let held = |number: i16| self.lanes.get(index(number)).and_then(Option::as_ref);
        let cursors =
            plan.lanes.iter().filter_map(|(number, _)| Some((*number, held(*number)?.read.clone()))).collect();
        if !self.detours.begin(plan, seen, cursors) {
            return;
        }
        self.exhausted = None;
        for (number, _) in &plan.lanes {
            let Some(held) = self.get_mut(index(*number)) else { continue };
            held.read.seen = Some(Arc::clone(seen));
            held.progress.begin_detour(held.read.clone());
        }
    }

    /// Some rows that the find just planned has brought: the hashes of their aggregates, and their transactions, or those of all rows.
    pub fn found(&mut self, key_hashes: &[i64], transactions: &[i64], are_all: bool) {
        self.detours.found(key_hashes, transactions, are_all);
    }

    /// The find just planned has brought all rows.
    pub fn all_found(&mut self) {
        self.detours.all_found();
    }

    /// Takes an answer to the part just planned: says which rows are to be published, in their order.
    pub fn accept_part(&mut self, answer: &PartAnswer<'_>) -> Accepted {
        let mut tickets = Vec::with_capacity(answer.rows.len());
        for row in answer.rows {
            let is_of_part = self.detours.is_of_part(row);
            let lane = self.get_mut(index(row.lane)).filter(|lane| is_of_part && !lane.waits(row));
            tickets.push(lane.map(|lane| Ticket::new(index(row.lane), lane.progress.push_detour(row))));
        }
        for number in self.detours.advance(answer.rows, answer.cut).unwrap_or_default() {
            if let Some(lane) = self.get_mut(index(number)) {
                lane.progress.end_detour();
            }
        }
        let late = tickets.iter().flatten().count();
        self.part_rows = late;
        Accepted { tickets, late, found: Found::More }
    }
}
