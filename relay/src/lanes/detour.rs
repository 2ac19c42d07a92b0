//! Detours: more late rows than one read may bring, published in parts while new rows of other aggregates flow. Pure.
//!
//! A bulk transaction that commits late can leave millions of rows at or below the positions. The read that finds too many of them hands
//! out none. It begins a detour instead: the late rows that are visible in its snapshot become a set of their own, and the lanes' cursors
//! go on as if that set had been read. What keeps order per aggregate meanwhile is a filter of the set's aggregates: a row of such an aggregate
//! is held back until the detour has ended. Only its lane and id are kept; it is read a second time. To fill the filter, the relay has to look
//! at all rows of the set. So it waits until a read brings a row: it discards that read, fills the filter, and reads again. If no other
//! transaction writes meanwhile, the relay looks at the set only once.
//!
//! [`super::Progress`] keeps events from being lost: no cursor that tells of the set is settled before all of the set, and all that was held
//! back, is acknowledged. A crash therefore repeats, and loses nothing.
//!
//! A further bulk begins a further detour. They are published one after the other, each with the rows that were held back while it was the
//! newest: an aggregate may have rows in the first one, then held back, and then in the second one.

use std::collections::VecDeque;
use std::sync::Arc;

use super::held::LaneLimits;
use super::key_filter::KeyFilter;
use super::plan::{FindPlan, PartPlan, ReadPlan, RowKey};
use super::{Cursor, Snapshot};

#[derive(Debug)]
struct Detour {
    /// The read that began it.
    read: ReadPlan,
    /// Its snapshot.
    through: Arc<Snapshot>,
    /// The lanes that take part, each as it was read until then: this tells which rows of the set are its own.
    lanes: Vec<(i16, Cursor)>,
    aggregates: Aggregates,
    stage: Stage,
    /// Rows that were held back while this was the newest detour, in their order.
    held: VecDeque<(i16, i64)>,
}

/// Whether the aggregates of the set are in the filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aggregates {
    /// They are not, and need not be: nothing was read that may be of one.
    NotNeeded,
    /// They are looked for before anything else is read.
    Needed,
    Known,
}

#[derive(Debug)]
enum Stage {
    /// These transactions have rows in the set, and others may.
    Unknown { transactions: Vec<i64> },
    /// Late rows up to this id were handed out.
    Late { transactions: Arc<[i64]>, after: i64 },
    /// All late rows were handed out, and what was held back comes next.
    Held,
}

/// The detours under way.
#[derive(Debug, Default)]
pub(super) struct Detours {
    limits: LaneLimits,
    /// In the order in which they began; only the last one may still be looked for.
    list: VecDeque<Detour>,
    /// The aggregates of all of them.
    filter: Option<KeyFilter>,
    /// A read has found too many late rows for which there was no room in the list.
    must_wait: bool,
}

impl Detours {
    pub(super) fn new(limits: LaneLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn contains(&self, lane: i16) -> bool {
        self.list.iter().any(|detour| detour.takes(lane))
    }

    /// Whether no read may begin before a detour has ended.
    pub(super) fn block_reads(&self) -> bool {
        self.must_wait || self.list.iter().map(|detour| detour.held.len()).sum::<usize>() >= self.limits.held_rows
    }

    /// Begins a detour, if there is room for one.
    pub(super) fn begin(&mut self, read: &ReadPlan, through: &Arc<Snapshot>, lanes: Vec<(i16, Cursor)>) -> bool {
        self.must_wait = self.list.len() >= self.limits.detours;
        if !self.must_wait {
            self.filter.get_or_insert_default();
            self.list.push_back(Detour {
                read: read.clone(),
                through: Arc::clone(through),
                lanes,
                aggregates: Aggregates::NotNeeded,
                stage: Stage::Unknown { transactions: Vec::new() },
                held: VecDeque::new(),
            });
        }
        !self.must_wait
    }

    /// The detour whose transactions or aggregates are to be found, before anything else is read.
    pub(super) fn to_find(&self) -> Option<FindPlan> {
        let is_unknown =
            |detour: &&Detour| detour.aggregates == Aggregates::Needed || matches!(detour.stage, Stage::Unknown { .. });
        let newest = self.list.back().filter(is_unknown)?;
        Some(FindPlan { read: newest.read.clone(), through: Arc::clone(&newest.through) })
    }

    /// Rows were read beside a detour. Whether they have to be read again after its aggregates were found.
    pub(super) fn need_aggregates(&mut self) -> bool {
        let Some(newest) = self.list.back_mut().filter(|detour| detour.aggregates != Aggregates::Known) else {
            return false;
        };
        newest.aggregates = Aggregates::Needed;
        true
    }

    /// Some rows of the newest detour: the hashes of their aggregates, and their transactions, or all that it has. Rows that are not of the
    /// set do no harm.
    pub(super) fn found(&mut self, key_hashes: &[i64], transactions: &[i64], are_all: bool) {
        if let (Some(filter), Some(newest)) = (&mut self.filter, self.list.back_mut()) {
            for hash in key_hashes {
                filter.insert(*hash);
            }
            if let Stage::Unknown { transactions: known } = &mut newest.stage {
                // One that has committed since is another read's.
                known.extend(transactions.iter().filter(|txid| !newest.through.is_late(**txid)));
            }
            if are_all {
                newest.know_transactions();
            }
        }
    }

    /// All rows of the newest detour were looked at.
    pub(super) fn all_found(&mut self) {
        if let Some(newest) = self.list.back_mut() {
            newest.aggregates = Aggregates::Known;
            newest.know_transactions();
        }
    }

    /// The next part of the first detour.
    pub(super) fn part(&self) -> Option<PartPlan> {
        let first = self.list.front()?;
        match &first.stage {
            Stage::Unknown { .. } => None,
            Stage::Late { transactions, after } => Some(PartPlan::Late {
                lanes: first.lanes.iter().map(|(lane, cursor)| (*lane, cursor.position)).collect(),
                transactions: Arc::clone(transactions),
                after: *after,
            }),
            Stage::Held => Some(PartPlan::Held(first.held.iter().take(self.limits.part_rows).copied().collect())),
        }
    }

    /// Whether the row is one of the first detour.
    pub(super) fn is_of_part(&self, row: &RowKey) -> bool {
        self.list.front().is_some_and(|first| match first.stage {
            Stage::Unknown { .. } => false,
            Stage::Late { .. } => {
                first.lanes.iter().any(|(lane, cursor)| *lane == row.lane && !cursor.covers(row.id, row.txid))
            }
            Stage::Held => first.takes(row.lane),
        })
    }

    /// A part was handed out. Returns the lanes of the first detour if it has ended.
    pub(super) fn advance(&mut self, rows: &[RowKey], cut: bool) -> Option<Vec<i16>> {
        let first = self.list.front_mut()?;
        match &mut first.stage {
            Stage::Unknown { .. } => return None,
            Stage::Late { after, .. } if cut => *after = rows.last().map_or(*after, |row| row.id),
            // If its aggregates are not known by now, nothing was held back behind it, and it ends here.
            Stage::Late { .. } => first.stage = Stage::Held,
            Stage::Held => drop(first.held.drain(..rows.len().min(first.held.len()))),
        }
        if !matches!(first.stage, Stage::Held) || !first.held.is_empty() {
            return None;
        }
        let lanes = first.lanes.iter().map(|(lane, _)| *lane).collect();
        self.list.pop_front();
        self.forget_filter();
        Some(lanes)
    }

    /// Holds the row back if its aggregate may be one of a detour. Whether it did.
    pub(super) fn hold_back(&mut self, row: &RowKey) -> bool {
        let (Some(filter), Some(newest)) = (&self.filter, self.list.back_mut()) else { return false };
        let held = newest.takes(row.lane) && filter.may_contain(row.key_hash);
        if held {
            newest.held.push_back((row.lane, row.id));
        }
        held
    }

    /// A lane that is given back, and perhaps taken again, starts from its settled cursor, and takes part in none of this any more.
    pub(super) fn leave(&mut self, lane: i16) {
        for detour in &mut self.list {
            detour.lanes.retain(|(other, _)| *other != lane);
            detour.held.retain(|(other, _)| *other != lane);
        }
        self.list.retain(|detour| !detour.lanes.is_empty());
        self.forget_filter();
    }

    /// All lanes start from their settled cursors.
    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.forget_filter();
    }

    fn forget_filter(&mut self) {
        self.must_wait = false;
        if self.list.is_empty() {
            self.filter = None;
        }
    }
}

impl Detour {
    /// No further transaction has rows in the set: its parts can be read.
    fn know_transactions(&mut self) {
        if let Stage::Unknown { transactions } = &mut self.stage {
            let mut transactions = std::mem::take(transactions);
            transactions.sort_unstable();
            transactions.dedup();
            self.stage = Stage::Late { transactions: transactions.into(), after: 0 };
        }
    }

    fn takes(&self, lane: i16) -> bool {
        self.lanes.iter().any(|(other, _)| *other == lane)
    }
}
