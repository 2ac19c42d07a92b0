//! Ways to get it wrong: each is a small change around the relay's core, and each must be caught.

use relay::lanes::{Cursor, HeldLane};

use super::database::{ReadAnswer, Row};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// The relay as it is.
    Faithful,
    /// The cursor is an id alone: `id > last`.
    LastIdOnly,
    /// A settle names the lane and not the token.
    SettleWithoutToken,
    /// A partition is dropped when all positions are past it, whoever still writes into it.
    DropByPositionOnly,
    /// The new snapshot is settled while late rows of its read are not acknowledged.
    NewSnapshotTooEarly,
    /// A detour ends with its first part.
    DetourCutShort,
    /// The aggregates of a detour are not looked for, so that none of their rows is held back.
    AggregatesForgotten,
    /// The rows of a part are sent in the wrong order.
    PartReversed,
    /// That new rows were cut off is forgotten.
    FreshCutForgotten,
    /// The new rows of a read are sent before its late ones.
    FreshBeforeLate,
    /// A producer that has given up a record sends the younger ones until its session ends.
    GoesOnAfterAFailure,
}

impl Variant {
    /// What is written at a settle.
    pub fn cursor_to_settle(self, held: &HeldLane) -> Cursor {
        let mut cursor = held.progress.cursor().clone();
        if self == Self::NewSnapshotTooEarly {
            cursor.seen = held.read.seen.clone().or(cursor.seen);
        }
        cursor
    }

    /// What is made of the answer.
    pub fn distort(self, answer: &mut ReadAnswer) {
        match self {
            Self::LastIdOnly => {
                answer.rows.drain(..answer.late);
                (answer.late, answer.late_cut) = (0, false);
            }
            Self::FreshCutForgotten => answer.fresh_cut = false,
            _ => {}
        }
    }

    /// What is made of a part of a detour.
    pub fn distort_part(self, rows: &mut [Row], cut: &mut bool) {
        match self {
            Self::DetourCutShort => *cut = false,
            Self::PartReversed => rows.reverse(),
            _ => {}
        }
    }

    /// What is made of the hashes of a detour's aggregates.
    pub fn distort_hashes(self, hashes: &mut Vec<i64>) {
        if self == Self::AggregatesForgotten {
            hashes.clear();
        }
    }

    /// The order in which the rows of an answer are sent.
    pub fn order<T>(self, rows: &mut [T], late: usize) {
        if self == Self::FreshBeforeLate {
            rows.rotate_left(late.min(rows.len()));
        }
    }
}
