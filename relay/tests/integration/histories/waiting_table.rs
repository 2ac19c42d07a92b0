//! `relay_waiting`, and the statements of `relay/src/outbox/waiting.rs` on it. Each is fenced by the tokens of the lanes.

use relay::lanes::Cursor;

use super::database::Row;
use super::lanes_table::{LaneRow, LanesTable};
use super::variant::Variant;

/// A cursor of a type in a lane that is held under a token.
#[derive(Debug, Clone)]
pub struct CursorOfType {
    pub lane: i16,
    pub token: i64,
    pub of: usize,
    pub cursor: Cursor,
}

impl LanesTable {
    fn is_held(&self, of: &CursorOfType) -> bool {
        self.token_of(of.lane) == of.token
    }

    /// `waiting_types`: types that wait in these lanes.
    pub fn waiting_types(&self, lanes: &[i16]) -> Vec<(i16, usize, Cursor)> {
        let of_lanes = self.waiting.iter().filter(|((lane, _), _)| lanes.contains(lane));
        of_lanes.map(|((lane, of), cursor)| (*lane, *of, cursor.clone())).collect()
    }

    /// `begin_waiting`: whether all of the lanes are still held.
    pub fn begin_waiting(&mut self, cursors: &[CursorOfType]) -> bool {
        for of in cursors.iter().filter(|of| self.token_of(of.lane) == of.token).cloned().collect::<Vec<_>>() {
            self.waiting.entry((of.lane, of.of)).or_insert(of.cursor);
        }
        cursors.iter().all(|of| self.is_held(of))
    }

    /// `settle_waiting`.
    pub fn settle_waiting(&mut self, cursors: &[CursorOfType]) {
        for of in cursors {
            let is_held = self.is_held(of);
            let Some(before) = self.waiting.get_mut(&(of.lane, of.of)).filter(|_| is_held) else { continue };
            if before.position > of.cursor.position {
                continue;
            }
            let xmax = |cursor: &Cursor| cursor.seen.as_ref().map_or(0, |seen| seen.xmax());
            if xmax(&of.cursor) < xmax(before) {
                self.went_back = Some(format!("type {} in lane {} from {before:?} to {:?}", of.of, of.lane, of.cursor));
            }
            *before = of.cursor.clone();
        }
    }

    /// `end_waiting`: how many cursors were deleted.
    pub fn end_waiting(&mut self, cursors: &[CursorOfType]) -> usize {
        let held: Vec<&CursorOfType> = cursors.iter().filter(|of| self.is_held(of)).collect();
        held.into_iter().filter(|of| self.waiting.remove(&(of.lane, of.of)).is_some()).count()
    }

    /// Whether the settled cursors cover the row: that of its lane, and that of its type, if it waits there.
    pub fn covers(&self, row: &Row) -> bool {
        let covers = |cursor: &Cursor| cursor.covers(row.key.id, row.key.txid);
        let own = self.lanes.iter().find(|lane| lane.lane == row.key.lane).map(LaneRow::cursor);
        own.is_some_and(|own| covers(&own))
            && (self.variant == Variant::ForgetsWhatWaits
                || self.waiting.get(&(row.key.lane, row.key.type_index.place())).is_none_or(covers))
    }
}
