//! A Postgres snapshot: which transactions had ended when it was taken. Pure.

/// Which transactions had ended, by their ids (`pg_snapshot`).
///
/// Snapshots of one server are ordered: a later one sees all that an earlier one does. Transaction ids stay far below `i64::MAX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Every transaction id from here on had not ended.
    pub xmax: i64,
    /// Ids below `xmax` that had not ended either, rising.
    pub running: Vec<i64>,
}

impl Snapshot {
    /// Reads Postgres' text form, `xmin:xmax:xip,xip,...`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split(':');
        let _xmin: i64 = fields.next()?.parse().ok()?;
        let xmax = fields.next()?.parse().ok()?;
        let ids = fields.next()?.split(',').filter(|id| !id.is_empty());
        let running = ids.map(|id| id.parse().ok()).collect::<Option<Vec<i64>>>()?;
        if fields.next().is_some() { None } else { Self::new(xmax, running) }
    }

    /// One of these parts, if they make one.
    #[must_use]
    pub fn new(xmax: i64, running: Vec<i64>) -> Option<Self> {
        let rising = running.is_sorted_by(|a, b| a < b);
        let inside = running.first().is_none_or(|first| *first > 0) && running.last().is_none_or(|last| *last < xmax);
        (xmax > 0 && rising && inside).then_some(Self { xmax, running })
    }

    /// Whether what transaction `txid` has written could be seen in it.
    #[must_use]
    pub fn sees(&self, txid: i64) -> bool {
        txid < self.xmax && self.running.binary_search(&txid).is_err()
    }

    /// Whether it sees all that `other` sees.
    #[must_use]
    pub fn sees_all_of(&self, other: &Self) -> bool {
        self.xmax >= other.xmax && self.running.iter().all(|txid| !other.sees(*txid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_running_or_yet_to_come_is_not_seen() {
        let seen = Snapshot::parse("10:20:10,14").expect("a snapshot");
        assert_eq!([9, 10, 13, 14, 19, 20].map(|txid| seen.sees(txid)), [true, false, true, false, true, false]);
        for text in ["", "1:2", "1:2:3:4", "a:2:", "1:2:x", "1:5:3,2", "1:5:5", "1:0:"] {
            assert_eq!(Snapshot::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_later_snapshot_sees_all_of_an_earlier_one() {
        let of = |text| Snapshot::parse(text).expect("a snapshot");
        let rising = [of("10:20:10,14"), of("10:20:10"), of("10:24:10,22"), of("24:24:")];
        for (place, earlier) in rising.iter().enumerate() {
            for (other, later) in rising.iter().enumerate() {
                assert_eq!(later.sees_all_of(earlier), other >= place, "{later:?} {earlier:?}");
            }
        }
    }
}
