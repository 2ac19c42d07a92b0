//! What the core asks of the database, and what it is told. Pure.

use std::sync::Arc;

use super::{Snapshot, Ticket, TypeIndex};

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
    /// Hash of aggregate type and id, as the database makes it; 0 if the plan did not ask for it.
    pub key_hash: i64,
}

/// What is to be done next.
#[derive(Debug, Clone)]
pub enum Step {
    /// Look for new rows, and for late ones.
    Read(ReadPlan),
    /// Find the aggregates and transactions of a detour, before anything else is read.
    Find(FindPlan),
    /// Read the next part of a detour.
    Part(PartPlan),
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
    /// Whether the hash of each row's aggregate is needed.
    pub with_hashes: bool,
}

/// The rows of a detour: those that the plan of its read calls late and that are visible in `through`.
#[derive(Debug, Clone)]
pub struct FindPlan {
    /// The plan of the read that found too many late rows.
    pub read: ReadPlan,
    /// The snapshot of that read.
    pub through: Arc<Snapshot>,
}

/// A part of a detour.
#[derive(Debug, Clone)]
pub enum PartPlan {
    /// The next late rows, by id, with an id above `after`.
    Late {
        /// Lane and position of each lane that takes part.
        lanes: Vec<(i16, i64)>,
        /// The transactions that wrote the rows.
        transactions: Arc<[i64]>,
        /// Where the part before has ended.
        after: i64,
    },
    /// Rows that were held back, in this order: lane and id.
    Held(Vec<(i16, i64)>),
}

/// What was read.
#[derive(Debug)]
pub struct Answer<'a> {
    /// The statement's own snapshot: the next `seen`.
    pub snapshot: Snapshot,
    /// The last id that was given out, or one before it. Of the rows up to it, those that are not in the snapshot are of transactions that
    /// are not.
    pub last_id: i64,
    /// The rows at or below the positions, by id; then those above them, by id within each lane.
    pub rows: &'a [RowKey],
    /// How many of them are of the first kind.
    pub late: usize,
    /// Whether there may be more rows of the first kind.
    pub late_cut: bool,
    /// Whether there may be more rows of the second kind.
    pub fresh_cut: bool,
}

/// A part of a detour that was read.
#[derive(Debug)]
pub struct PartAnswer<'a> {
    /// The rows, in the order of the plan.
    pub rows: &'a [RowKey],
    /// Whether there may be more.
    pub cut: bool,
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
