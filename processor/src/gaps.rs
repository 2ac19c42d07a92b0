//! Offsets at the end of a partition that hold no record: those of aborted transactions, and the markers that end a transaction.
//!
//! No record comes from there that would move the position. Left where it is, it would be behind the end for ever, and when retention
//! takes those offsets it would be where there is nothing any more, as if records had been lost. So where a position stays behind, the
//! brokers are asked what is there.

use rdkafka::Statistics;
use rdkafka::statistics::Partition;

use crate::lag::assigned;

/// Offsets of a partition, of which it is, or is to be, known that they hold no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gap {
    /// The first of them.
    pub(crate) from: i64,
    /// The one after the last.
    pub(crate) end: i64,
}

/// Where a partition ends for readers of what is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// Topic of the partition.
    pub(crate) topic: String,
    /// Its number.
    pub(crate) partition: i32,
    /// The offset after the last one that is decided: behind it there may be records of open transactions.
    pub(crate) offset: i64,
}

/// The ends of the partitions that this member has, as far as its client knows them.
pub(crate) fn ends(statistics: &Statistics) -> Vec<End> {
    let known = assigned(statistics).filter(|(_, partition)| partition.ls_offset > 0);
    let end = |(topic, partition): (&str, &Partition)| End {
        topic: topic.to_owned(),
        partition: partition.partition,
        offset: partition.ls_offset,
    };
    known.map(end).collect()
}

/// Tells where the position of one partition stays behind, though there is nothing to do.
#[derive(Debug, Default)]
pub(crate) struct GapWatch {
    /// Where it was behind at the last look.
    behind_at: Option<i64>,
    is_asked: bool,
}

impl GapWatch {
    /// Takes a look, every few seconds. Returns what to ask the brokers about: what is behind a position that has been there for two looks.
    pub(crate) fn look(&mut self, position: i64, end: i64) -> Option<Gap> {
        let was_behind_at = self.behind_at.take();
        if position >= end || self.is_asked {
            return None;
        }
        self.behind_at = Some(position);
        if was_behind_at != Some(position) {
            return None;
        }
        self.is_asked = true;
        Some(Gap { from: position, end })
    }

    /// The brokers have answered, or cannot.
    pub(crate) const fn answered(&mut self) {
        self.is_asked = false;
        self.behind_at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_asked_about_when_it_has_stayed_behind_for_two_looks() {
        let mut watch = GapWatch::default();
        assert_eq!(watch.look(5, 5), None, "at the end");
        assert_eq!(watch.look(5, 9), None, "it may be about to move");
        assert_eq!(watch.look(7, 9), None, "it has moved");
        assert_eq!(watch.look(7, 12), Some(Gap { from: 7, end: 12 }));
        assert_eq!(watch.look(7, 12), None, "asked once at a time");
        watch.answered();
        assert_eq!(watch.look(7, 12), None);
        assert_eq!(watch.look(7, 12), Some(Gap { from: 7, end: 12 }));
    }
}
