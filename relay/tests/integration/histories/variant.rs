//! Ways to get it wrong: each is a small change around the relay's core, and each must be caught.

use relay::lanes::{Cursor, HeldLane};

use super::database::Row;
use super::reads::ReadAnswer;

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
    /// The transactions of some of a detour's rows are taken for those of all.
    TakesSomeTransactionsForAll,
    /// Once a detour's transactions are known, its aggregates are taken to be known too.
    TakesTransactionsForAggregates,
    /// The rows of a part are sent in the wrong order.
    PartReversed,
    /// That new rows were cut off is forgotten.
    FreshCutForgotten,
    /// The new rows of a read are sent before its late ones.
    FreshBeforeLate,
    /// A producer that has given up a record sends the younger ones until its session ends.
    GoesOnAfterAFailure,
    /// A producer does not introduce itself, and its conclusions are taken for acknowledgements.
    TrustsConclusions,
    /// A producer does not introduce itself, and its conclusions are not believed.
    IntroducesNothing,
    /// A producer introduces itself to a partition once, however long it rests.
    IntroducesItselfOnce,
    /// A type waits from where its lane has been read, not from what of it is acknowledged.
    WaitsFromTheReading,
    /// A type that waits is read by its lane all the same.
    ReadsWhatWaits,
    /// A relay that takes a lane does not look for what waits in it.
    ForgetsWhatWaits,
    /// A type that waits does not wait in a lane that is taken later.
    TakesALaneForItself,
    /// The sender of a type that is being tried does not hear of keys that are parked in a lane that is taken later.
    TellsNoTry,
    /// A record that can never be sent parks its key ahead of earlier ones that are held back.
    RefusesAheadOfOthers,
    /// A record that was sent alone and refused stays in flight for ever.
    RefusedStaysInFlight,
    /// The way to a topic is looked for again while events are held back for it.
    ResumesWhatIsOpen,
    /// A type flows again although it is not known which of its records was refused.
    FlowsWithSuspects,
    /// A type flows again although rows were passed over that it has not been brought up to.
    FlowsBeforeItIsLevel,
    /// A type flows again before all of it is acknowledged.
    FlowsUnacknowledged,
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
