//! Ways to get it wrong: each is a small change around the relay's core, and each must be caught.

use relay::lanes::held::ReadPlan;
use relay::lanes::{Cursor, HeldLane, HeldLanes};

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
    /// That late rows were cut off is forgotten.
    RestForgotten,
    /// A lane that was given back and taken again amid a read in parts takes part in the rest of it.
    RestRejoined,
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

    /// What is asked for. `together` are the lanes that began a read in parts.
    pub fn plan(self, lanes: &HeldLanes, together: &[i16]) -> Option<ReadPlan> {
        let mut plan = lanes.plan()?;
        if self == Self::RestRejoined && plan.rest.is_some() {
            for held in lanes.iter().filter(|held| together.contains(&held.lane)) {
                if plan.lanes.iter().all(|(lane, _)| *lane != held.lane) {
                    plan.lanes.push((held.lane, held.read.position));
                    let Some(seen) = &held.read.seen else { continue };
                    plan.late_running.extend_from_slice(seen.xip());
                    plan.late_from = plan.late_from.min(seen.xmax());
                }
            }
        }
        Some(plan)
    }

    /// What is made of the answer.
    pub fn distort(self, answer: &mut ReadAnswer) {
        match self {
            Self::LastIdOnly => {
                answer.rows.drain(..answer.late);
                (answer.late, answer.late_cut) = (0, false);
            }
            Self::RestForgotten => answer.late_cut = false,
            Self::FreshCutForgotten => answer.fresh_cut = false,
            _ => {}
        }
    }

    /// The order in which the rows of an answer are sent.
    pub fn order<T>(self, rows: &mut [(Row, T)], late: usize) {
        if self == Self::FreshBeforeLate {
            rows.rotate_left(late.min(rows.len()));
        }
    }
}
