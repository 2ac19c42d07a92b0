//! A lane's cursor, `(position, seen)`: what has been handed out, in a form that a late commit cannot slip past.
//!
//! Ids are given out when a row is inserted and rows become visible when their transaction commits, so a row with a lower id can
//! appear after a higher one was read. `id > position` alone would lose it. The cursor therefore remembers the snapshot of its
//! last read as well: a row at or below `position` was handed out if and only if its transaction was visible in `seen`.
//!
//! A cursor stays true when its server crashes, or a standby takes its place. It is written after the read, so in the server's log it comes
//! behind the end of every transaction that was visible in `seen`, behind whatever gave out the ids up to `position`, and behind the end of
//! the highest transaction below `xmax`. Where the cursor is, all of these are; so no id at or below `position` is given out anew, and no
//! transaction id below `xmax` either. Those that were running then and left no trace will never be heard of again.
//! If the standby had not received all of the log, it has an older cursor, true of the rows that it has: some events are published again.
//! What that cannot mend are events of lost rows that were published before: see "Fail-over" in ARCHITECTURE.md.

use std::fmt;
use std::sync::Arc;

/// A Postgres snapshot (`pg_snapshot`): which transactions had ended, by their ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    text: String,
    /// Every transaction id from here on had not ended.
    xmax: i64,
    /// Ids below `xmax` that had not ended either, in ascending order.
    xip: Vec<i64>,
}

/// A text that is no snapshot.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a pg_snapshot")]
pub struct BadSnapshot(String);

impl Snapshot {
    /// Reads Postgres' text form, `xmin:xmax:xip,xip,...`.
    ///
    /// # Errors
    /// When it is not of that form.
    pub fn parse(text: String) -> Result<Self, BadSnapshot> {
        match Self::fields(&text) {
            Some((xmax, xip)) => Ok(Self { text, xmax, xip }),
            None => Err(BadSnapshot(text)),
        }
    }

    fn fields(text: &str) -> Option<(i64, Vec<i64>)> {
        let mut fields = text.split(':');
        let _xmin: i64 = fields.next()?.parse().ok()?;
        let xmax = fields.next()?.parse().ok()?;
        let mut xip = Vec::new();
        for id in fields.next()?.split(',').filter(|id| !id.is_empty()) {
            xip.push(id.parse().ok()?);
        }
        xip.sort_unstable();
        fields.next().is_none().then_some((xmax, xip))
    }

    /// Whether a row of transaction `txid` could not be seen in this snapshot yet.
    #[must_use]
    pub fn is_late(&self, txid: i64) -> bool {
        txid >= self.xmax || self.xip.binary_search(&txid).is_ok()
    }

    /// Whether everything that was visible in `older` is visible in this one. Snapshots of one cluster follow each other, so this is
    /// the same as being as new.
    #[must_use]
    pub fn includes(&self, older: &Self) -> bool {
        self.xmax >= older.xmax && self.xip.iter().all(|txid| older.is_late(*txid))
    }

    /// First transaction id that had not been given out.
    #[must_use]
    pub const fn xmax(&self) -> i64 {
        self.xmax
    }

    /// Transactions that were running, by id in ascending order.
    #[must_use]
    pub fn xip(&self) -> &[i64] {
        &self.xip
    }

    /// Postgres' text form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// How far a lane is handed out. Cheap to clone: lanes that were read together share the snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Highest outbox id handed out; 0 when none was.
    pub position: i64,
    /// Snapshot of the read that reached `position`; none before the first read.
    pub seen: Option<Arc<Snapshot>>,
}

impl Cursor {
    /// The cursor of a lane of which nothing was read yet.
    pub const START: Self = Self { position: 0, seen: None };

    /// Whether the row was handed out before: if not, it is late or new.
    #[must_use]
    pub fn covers(&self, id: i64, txid: i64) -> bool {
        id <= self.position && self.seen.as_ref().is_some_and(|seen| !seen.is_late(txid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        Snapshot::parse(text.to_owned()).unwrap()
    }

    #[test]
    fn running_and_future_transactions_are_late() {
        let seen = snapshot("10:20:10,14");
        assert_eq!(
            [9, 10, 13, 14, 19, 20, 21].map(|txid| seen.is_late(txid)),
            [false, true, false, true, false, true, true]
        );
        assert!(!snapshot("5:5:").is_late(4));
        assert_eq!(seen.to_string(), "10:20:10,14");
    }

    #[test]
    fn a_newer_snapshot_includes_an_older_one() {
        let old = snapshot("10:20:10,14");
        for (newer, includes) in
            [("10:20:10,14", true), ("10:21:10,20", true), ("20:20:", true), ("10:20:10,15", false), ("5:19:", false)]
        {
            assert_eq!(snapshot(newer).includes(&old), includes, "{newer}");
        }
    }

    #[test]
    fn what_is_no_snapshot_is_refused() {
        for text in ["", "1:2", "1:2:3:4", "a:2:", "1:2:x"] {
            assert!(Snapshot::parse(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_cursor_covers_what_was_visible_at_or_below_its_position() {
        let cursor = Cursor { position: 100, seen: Some(Arc::new(snapshot("10:20:14"))) };
        assert!(cursor.covers(100, 13));
        assert!(!cursor.covers(101, 13), "new");
        assert!(!cursor.covers(50, 14) && !cursor.covers(50, 25), "late");
        assert!(!Cursor::START.covers(1, 1));
    }
}
