//! A Postgres in a few hundred lines: transactions that commit in any order, snapshots, and the outbox under them.

use std::collections::HashSet;

use relay::lanes::{RowKey, TypeIndex};

/// Aggregates, numbered from 0.
pub const AGGREGATES: usize = 7;

/// Aggregate types, numbered from 0.
pub const TYPES: usize = 2;

/// The lanes in use, so that several aggregates share one.
pub const LANES_USED: [i16; 3] = [0, 5, 15];

/// Ids of one partition.
const PARTITION_IDS: i64 = 8;

const FIRST_TXID: i64 = 100;

/// The lane of an aggregate.
pub fn lane_of(aggregate: usize) -> i16 {
    LANES_USED[aggregate % LANES_USED.len()]
}

/// The aggregate type of an aggregate.
pub fn type_of(aggregate: usize) -> usize {
    aggregate % TYPES
}

/// The hash of an aggregate's type and id.
pub fn hash_of(aggregate: usize) -> i64 {
    i64::try_from(aggregate).expect("few aggregates") + 1
}

/// Who refuses a row's record for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    Nobody,
    Sender,
    Broker,
}

#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub key: RowKey,
    pub aggregate: usize,
    pub version: i64,
    pub refusal: Refusal,
    /// Its savepoint was rolled back.
    pub(super) undone: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Running,
    Committed,
    RolledBack,
}

/// A running transaction.
#[derive(Debug, Default)]
struct Transaction {
    /// Given out when it first writes.
    txid: Option<i64>,
    locked: Vec<usize>,
    /// Its rows.
    ids: Vec<i64>,
    /// It has been told to stay open.
    held: bool,
}

#[derive(Debug)]
pub struct Database {
    /// Every row that was ever inserted; the id of a row is its index plus one.
    rows: Vec<Row>,
    running: Vec<Transaction>,
    outcomes: Vec<Outcome>,
    latest_completed: i64,
    versions: [i64; AGGREGATES],
    /// Rows up to this id are dropped.
    pub(super) dropped: i64,
}

impl Database {
    pub fn new() -> Self {
        Self {
            rows: Vec::new(),
            running: Vec::new(),
            outcomes: Vec::new(),
            latest_completed: FIRST_TXID - 1,
            versions: [0; AGGREGATES],
            dropped: 0,
        }
    }

    pub fn rows_inserted(&self) -> usize {
        self.rows.len()
    }

    pub fn transactions(&self) -> usize {
        self.running.len()
    }

    /// Indexes of the transactions that may go on.
    pub fn active(&self, held_too: bool) -> Vec<usize> {
        (0..self.running.len()).filter(|number| held_too || !self.running[*number].held).collect()
    }

    pub fn begin(&mut self) {
        self.running.push(Transaction::default());
    }

    pub fn hold(&mut self, number: usize) {
        self.running[number].held = true;
    }

    /// Aggregates that nobody else has locked.
    pub fn lockable(&self, number: usize) -> Vec<usize> {
        let others: HashSet<usize> = (self.running.iter().enumerate())
            .filter(|(other, _)| *other != number)
            .flat_map(|(_, transaction)| transaction.locked.iter().copied())
            .collect();
        (0..AGGREGATES).filter(|aggregate| !others.contains(aggregate)).collect()
    }

    /// Locks an aggregate: the first half of the append rule. The first write gives the transaction its id, long before a row has its own.
    pub fn lock(&mut self, number: usize, aggregate: usize) {
        let next = FIRST_TXID + i64::try_from(self.outcomes.len()).expect("few transactions");
        let transaction = &mut self.running[number];
        if transaction.txid.is_none() {
            transaction.txid = Some(next);
            self.outcomes.push(Outcome::Running);
        }
        if !transaction.locked.contains(&aggregate) {
            transaction.locked.push(aggregate);
        }
    }

    pub fn locked(&self, number: usize) -> &[usize] {
        &self.running[number].locked
    }

    /// Inserts the next event of an aggregate that is locked.
    pub fn insert(&mut self, number: usize, aggregate: usize, refusal: Refusal) -> i64 {
        let transaction = &self.running[number];
        let own = transaction.ids.iter().filter_map(|id| self.row(*id));
        let own = own.filter(|row| row.aggregate == aggregate && !row.undone).count();
        let version = self.versions[aggregate] + i64::try_from(own).expect("few rows") + 1;
        let id = i64::try_from(self.rows.len()).expect("few rows") + 1;
        let txid = transaction.txid.expect("who has locked something has an id");
        let (lane, type_index, key_hash) =
            (lane_of(aggregate), TypeIndex::from(type_of(aggregate)), hash_of(aggregate));
        let key = RowKey { id, txid, lane, occurred_us: 0, type_index, key_hash };
        self.rows.push(Row { key, aggregate, version, refusal, undone: false });
        self.running[number].ids.push(id);
        id
    }

    /// Rolls back to a savepoint before the last row, if there is one.
    pub fn roll_back_to_savepoint(&mut self, number: usize) -> Option<i64> {
        let id = self.running[number].ids.pop()?;
        self.row_mut(id).undone = true;
        Some(id)
    }

    pub fn end(&mut self, number: usize, commit: bool) -> Option<i64> {
        let Transaction { txid, ids, .. } = self.running.remove(number);
        // Without a write it has no id, and no snapshot tells of its end.
        let txid = txid?;
        self.outcomes[Self::slot(txid)] = if commit { Outcome::Committed } else { Outcome::RolledBack };
        self.latest_completed = self.latest_completed.max(txid);
        for row in ids.iter().map(|id| self.rows[Self::place(*id)]).filter(|row| commit && !row.undone) {
            self.versions[row.aggregate] = self.versions[row.aggregate].max(row.version);
        }
        Some(txid)
    }

    fn slot(txid: i64) -> usize {
        usize::try_from(txid - FIRST_TXID).expect("an id that was given out")
    }

    fn place(id: i64) -> usize {
        usize::try_from(id - 1).expect("an id that was given out")
    }

    fn row(&self, id: i64) -> Option<&Row> {
        self.rows.get(Self::place(id))
    }

    fn row_mut(&mut self, id: i64) -> &mut Row {
        &mut self.rows[Self::place(id)]
    }

    /// `pg_current_snapshot()`.
    pub fn snapshot(&self) -> String {
        let xmax = self.latest_completed + 1;
        let mut xip: Vec<i64> = self.running.iter().filter_map(|open| open.txid).filter(|txid| *txid < xmax).collect();
        xip.sort_unstable();
        let xmin = xip.first().copied().unwrap_or(xmax);
        let xip: Vec<String> = xip.iter().map(ToString::to_string).collect();
        format!("{xmin}:{xmax}:{}", xip.join(","))
    }

    fn is_committed(&self, row: &Row) -> bool {
        !row.undone && self.outcomes[Self::slot(row.key.txid)] == Outcome::Committed
    }

    /// All rows that were committed, also those dropped since.
    pub fn committed(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| self.is_committed(row))
    }

    /// A row as a statement would find it now.
    pub fn visible(&self, id: i64) -> Option<&Row> {
        self.row(id).filter(|row| id > self.dropped && self.is_committed(row))
    }

    /// The rows of the oldest partition that is still there, once all of its ids are given out; also rows that nobody can see yet.
    pub fn oldest_partition(&self) -> Option<&[Row]> {
        let end = self.dropped + PARTITION_IDS;
        let (from, to) = (Self::place(self.dropped + 1), Self::place(end + 1));
        self.rows.get(from..to)
    }

    /// Whether a writer still has a lock on the partition that this row is in.
    pub fn is_running(&self, row: &Row) -> bool {
        self.outcomes[Self::slot(row.key.txid)] == Outcome::Running
    }

    /// Whether a statement could see the row.
    pub fn is_visible(&self, row: &Row) -> bool {
        row.key.id > self.dropped && self.is_committed(row)
    }

    pub fn drop_oldest_partition(&mut self) {
        self.dropped += PARTITION_IDS;
    }
}
