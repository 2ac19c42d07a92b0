//! Up to which id every row has been handed out, whatever transaction wrote it. Pure.

use std::collections::HashMap;

use super::snapshot::Snapshot;

/// A row's id is drawn just before its transaction may be given its id: between the two, that many other ids are drawn at most.
const DRAWN_BETWEEN_MAX: i64 = 10_000;

/// For each transaction that is running, an id below which it has written nothing.
///
/// A transaction that is running now and had no id at the look before has drawn the ids of its rows since, so they are above what was
/// visible then.
#[derive(Debug, Default)]
pub struct Low {
    running: HashMap<i64, i64>,
    /// Below the first id that is still there. A partition is only dropped when nobody who has written into it is still running.
    dropped: i64,
    before: Option<(i64, i64)>,
}

impl Low {
    /// Nothing is known yet, but that ids begin at `first_id`.
    #[must_use]
    pub fn new(first_id: i64) -> Self {
        Self { dropped: first_id - 1, ..Self::default() }
    }

    /// Takes note of a look at the outbox, at which `position` was the highest visible id. Returns the id up to which every row has been
    /// handed out to whoever has read all that `snapshot` sees.
    pub fn note(&mut self, snapshot: &Snapshot, position: i64) -> i64 {
        let (xmax_before, position_before) = self.before.unwrap_or((i64::MAX, 0));
        let dropped = self.dropped;
        self.running.retain(|txid, _| snapshot.running.binary_search(txid).is_ok());
        for txid in &snapshot.running {
            // What was running before the first look may have written anything.
            let from = if *txid >= xmax_before { (position_before - DRAWN_BETWEEN_MAX).max(dropped) } else { dropped };
            self.running.entry(*txid).or_insert(from);
        }
        self.before = Some((snapshot.xmax, position));
        // Also of those that have no id yet, one may have drawn a row's.
        let lowest = self.running.values().copied().min().unwrap_or(i64::MAX);
        lowest.min((position - DRAWN_BETWEEN_MAX).max(dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_holds_the_mark_where_it_began() {
        let mut low = Low::new(1);
        let mut note = |text, position| low.note(&Snapshot::parse(text).expect("a snapshot"), position);
        assert_eq!(note("5:20:5", 100_000), 0, "nobody knows what 5 has written");
        assert_eq!(note("21:21:", 200_000), 190_000);
        assert_eq!(note("22:30:22", 300_000), 190_000);
        assert_eq!(note("22:40:22,35", 900_000), 190_000, "22 is still running");
        assert_eq!(note("35:50:35", 1_000_000), 290_000, "35 began after the look before");
        assert_eq!(note("50:50:", 1_000_000), 990_000);
        let mut low = Low::new(501);
        assert_eq!(
            low.note(&Snapshot::parse("5:20:5").expect("a snapshot"), 100_000),
            500,
            "what is dropped, 5 has not written into"
        );
    }
}
