//! The lanes that a relay holds: what to read next, what of an answer is to be published, and what may be settled. Pure.
//!
//! Everything that decides whether an event is lost, repeated or overtaken is in here and in the two modules below it, without a
//! database, a broker or a clock, so that thousands of histories can be tried in a second (`tests/integration/histories`).

use std::sync::Arc;

use super::{Cursor, LANES, Progress, Snapshot, Ticket, TypeIndex, index};

/// Where a row was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowKey {
    /// `outbox.id`.
    pub id: i64,
    /// `outbox.txid`.
    pub txid: i64,
    /// `outbox.lane`.
    pub lane: i16,
    /// `outbox.occurred_at`, in microseconds since 1970. Nothing is decided by it.
    pub occurred_us: i64,
    /// `outbox.aggregate_type`, by number.
    pub type_index: TypeIndex,
}

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
        Self { lane, token, read: cursor.clone(), progress: Progress::new(cursor), draining: false, waiting: Vec::new() }
    }

    fn waits(&self, row: &RowKey) -> bool {
        // Almost always no type waits.
        self.waiting.contains(&row.type_index)
    }
}

/// What to read: one statement for all of the lanes.
#[derive(Debug, Clone)]
pub struct ReadPlan {
    /// Lane and position of each lane to read.
    pub lanes: Vec<(i16, i64)>,
    /// Lowest `xmax` of the lanes' snapshots: every row of a transaction from here on may be late. `i64::MAX` for none.
    pub late_from: i64,
    /// Transactions below `late_from` that ran in one of the snapshots.
    pub late_running: Vec<i64>,
    /// Going on with a read whose late rows were too many: only late rows, only those after this id, and only if visible in this
    /// snapshot.
    pub rest: Option<(i64, Snapshot)>,
}

/// What was read.
#[derive(Debug)]
pub struct Answer<'a> {
    /// The statement's own snapshot: the next `seen`.
    pub snapshot: Snapshot,
    /// The rows at or below the positions, by id; then those above them, by id within each lane.
    pub rows: &'a [RowKey],
    /// How many of them are of the first kind.
    pub late: usize,
    /// Whether there may be more rows of the first kind.
    pub late_cut: bool,
    /// Whether there may be more rows of the second kind.
    pub fresh_cut: bool,
}

/// What a look at the outbox found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// No new row.
    Nothing,
    /// All there was.
    All,
    /// As much as one read may bring: there is more.
    More,
}

/// What becomes of the rows of an answer.
#[derive(Debug)]
pub struct Accepted {
    /// In the order of the rows; none for a row that is not to be published: it was before, or its turn comes later.
    pub tickets: Vec<Option<Ticket>>,
    /// How many of the rows to be published had committed late.
    pub late: usize,
    /// What that amounts to.
    pub found: Found,
}

/// A read that is under way in parts.
#[derive(Debug)]
struct Rest {
    after: i64,
    through: Snapshot,
    lanes: Vec<i16>,
}

/// All lanes of a relay.
#[derive(Debug, Default)]
pub struct HeldLanes {
    lanes: [Option<HeldLane>; LANES],
    /// The snapshot of the last read, when that read found all there was.
    exhausted: Option<Snapshot>,
    rest: Option<Rest>,
}

impl HeldLanes {
    /// Adds a lane that was taken.
    pub fn insert(&mut self, lane: HeldLane) {
        self.exhausted = None;
        self.leave_rest(lane.lane);
        if let Some(slot) = self.lanes.get_mut(index(lane.lane)) {
            *slot = Some(lane);
        }
    }

    /// Forgets a lane that was given back.
    pub fn remove(&mut self, lane: i16) {
        self.leave_rest(lane);
        if let Some(slot) = self.lanes.get_mut(index(lane)) {
            *slot = None;
        }
    }

    /// A lane that is given back between two parts of a read, and perhaps taken again, starts from its settled cursor: it has seen
    /// none of the earlier parts, and taking part in the last one would make it believe that it has.
    fn leave_rest(&mut self, lane: i16) {
        if let Some(rest) = &mut self.rest {
            rest.lanes.retain(|other| *other != lane);
            if rest.lanes.is_empty() {
                self.rest = None;
            }
        }
    }

    /// Whether a read is under way in parts.
    #[must_use]
    pub const fn is_amid_read(&self) -> bool {
        self.rest.is_some()
    }

    /// Whether a lane can be given back without a repeat: all of it is acknowledged, and its settled cursor tells of all of it. Amid a read
    /// in parts it does not: whoever takes the lane would publish the earlier parts again.
    #[must_use]
    pub fn can_be_given_back(&self, lane: &HeldLane) -> bool {
        let amid_read = self.rest.as_ref().is_some_and(|rest| rest.lanes.contains(&lane.lane));
        lane.progress.in_flight() == 0 && !amid_read
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
        (self.exhausted, self.rest) = (None, None);
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

    /// What to read next; none without a lane to read.
    #[must_use]
    pub fn plan(&self) -> Option<ReadPlan> {
        let lanes: Vec<(i16, i64)> = self.readable().map(|lane| (lane.lane, lane.read.position)).collect();
        if lanes.is_empty() {
            return None;
        }
        let seen = || self.readable().filter_map(|lane| lane.read.seen.as_deref());
        let late_from = seen().map(Snapshot::xmax).min().unwrap_or(i64::MAX);
        let mut late_running: Vec<i64> =
            seen().flat_map(Snapshot::xip).copied().filter(|txid| *txid < late_from).collect();
        late_running.sort_unstable();
        late_running.dedup();
        let rest = self.rest.as_ref().map(|rest| (rest.after, rest.through.clone()));
        Some(ReadPlan { lanes, late_from, late_running, rest })
    }

    /// The lanes that take part in the next read: those of a read that is under way must see it through.
    fn readable(&self) -> impl Iterator<Item = &HeldLane> {
        let only = self.rest.as_ref().map(|rest| &rest.lanes);
        self.iter().filter(move |lane| only.map_or(!lane.draining, |only| only.contains(&lane.lane)))
    }

    /// Takes an answer to the plan just made: says which rows are to be published, in their order, and notes where the lanes stand.
    pub fn accept(&mut self, plan: &ReadPlan, answer: &Answer<'_>) -> Accepted {
        let (elders, fresh) = answer.rows.split_at(answer.late.min(answer.rows.len()));
        let more = answer.late_cut || answer.fresh_cut || self.rest.is_some();
        // Going on with a read means to read as of its own snapshot.
        let seen = Arc::new(self.rest.take().map_or_else(|| answer.snapshot.clone(), |rest| rest.through));
        if answer.late_cut {
            let after = elders.last().map_or(0, |row| row.id);
            let lanes = plan.lanes.iter().map(|(lane, _)| *lane).collect();
            self.rest = Some(Rest { after, through: seen.as_ref().clone(), lanes });
        }
        self.exhausted = (!more).then(|| seen.as_ref().clone());

        let mut tickets = Vec::with_capacity(answer.rows.len());
        for row in elders {
            let due = |lane: &&mut HeldLane| !lane.waits(row) && !lane.read.covers(row.id, row.txid);
            let lane = self.get_mut(index(row.lane)).filter(due);
            tickets
                .push(lane.map(|lane| Ticket::new(index(row.lane), lane.progress.push_late(row))));
        }
        let published_late = tickets.iter().flatten().count();
        if answer.late_cut {
            // The new rows of this read are read again once the late ones are through: of one key, late rows come before new ones. The
            // cursors stay, and with them the old snapshot, which tells the rest of the late rows from those that were published.
            tickets.resize(answer.rows.len(), None);
        } else {
            for row in fresh {
                let ticket = self.get_mut(index(row.lane)).and_then(|lane| {
                    lane.read.position = row.id;
                    (!lane.waits(row)).then(|| Ticket::new(index(row.lane), lane.progress.push_fresh(row)))
                });
                tickets.push(ticket);
            }
            for (number, _) in &plan.lanes {
                let Some(lane) = self.get_mut(index(*number)) else { continue };
                lane.read.seen = Some(Arc::clone(&seen));
                lane.progress.end_read(lane.read.clone());
            }
        }
        let found = match (more, tickets.iter().any(Option::is_some)) {
            (true, _) => Found::More,
            (false, true) => Found::All,
            (false, false) => Found::Nothing,
        };
        Accepted { tickets, late: published_late, found }
    }
}
