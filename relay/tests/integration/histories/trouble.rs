//! Topics that take no records: `relay/src/session/trouble.rs`.

use std::collections::HashSet;

use relay::lanes::{HeldLane, TypeIndex, index};

use super::database::TYPES;
use super::ground::Ground;
use super::sender::Work;
use super::session::{Session, Stop};
use super::stream::{Cause, Outcomes, Stream};
use super::variant::Variant;
use super::waiting::Waiting;
use super::waiting_table::CursorOfType;

impl Session {
    /// Lets types wait of which the sender says that their topic takes nothing.
    pub fn set_aside_types(&mut self, ground: &mut Ground) -> Result<(), Stop> {
        for of in std::mem::take(&mut self.main.outcomes.set_aside) {
            self.set_aside(ground, of)?;
        }
        Ok(())
    }

    /// The stream of all events has ended for a topic: its type waits, and the others go on by a new producer.
    pub fn replace_producer(&mut self, ground: &mut Ground, (of, cause): (usize, Cause)) -> Result<(), Stop> {
        ground.count("producer replaced");
        ground.note(|| format!("relay {}: a new producer, for topic {of}: {cause:?}", self.owner));
        let ended = std::mem::replace(&mut self.main, Stream::new(ground.variant, HashSet::new()));
        self.main.outcomes = ended.close(ground);
        self.take_main_outcomes(ground)?;
        let Outcomes { refused, .. } = std::mem::take(&mut self.main.outcomes);
        let suspects: Vec<i64> = refused.iter().filter_map(|ticket| Some(self.lanes.row_of(*ticket)?.1)).collect();
        if cause == Cause::TimedOut && ground.chance(500) {
            ground.count("no broker answers");
            return Err(Stop::Delivery);
        }
        self.set_aside(ground, of)?;
        if let Some(waiting) = self.waiting.get_mut(&of) {
            waiting.look_into(ground, cause, &suspects);
        }
        self.note_what_begins_again(ground);
        self.lanes.restart();
        self.together.clear();
        for lane in self.lanes.iter() {
            self.main.pipe.push_back(Work::Lane(lane.lane, ground.table.parked_keys(lane.lane)));
        }
        Ok(())
    }

    /// Of types that flow, what lies beyond the lanes' cursors comes again.
    fn note_what_begins_again(&self, ground: &mut Ground) {
        for lane in self.lanes.iter() {
            for of in (0..TYPES).filter(|of| !lane.waiting.contains(&TypeIndex::from(*of))) {
                let cursor = lane.progress.cursor().clone();
                ground.again.push(CursorOfType { lane: lane.lane, token: lane.token, of, cursor });
            }
        }
    }

    /// Lets a type wait in all lanes.
    fn set_aside(&mut self, ground: &mut Ground, of: usize) -> Result<(), Stop> {
        let lanes: Vec<i16> = self.lanes.iter().map(|lane| lane.lane).collect();
        self.wait_in(ground, of, &lanes)
    }

    /// Lets the types that wait in other lanes wait in these, too: the sender has closed the way to their topics.
    pub fn join_waiting(&mut self, ground: &mut Ground, lanes: &[i16]) -> Result<(), Stop> {
        if ground.variant == Variant::TakesALaneForItself {
            return Ok(());
        }
        for of in self.waiting.keys().copied().collect::<Vec<_>>() {
            self.wait_in(ground, of, lanes)?;
        }
        Ok(())
    }

    fn wait_in(&mut self, ground: &mut Ground, of: usize, lanes: &[i16]) -> Result<(), Stop> {
        let (type_index, variant) = (TypeIndex::from(of), ground.variant);
        let cursor_of = |lane: &HeldLane| match variant {
            Variant::WaitsFromTheReading => lane.read.clone(),
            _ => lane.progress.cursor_of(type_index),
        };
        let flows = |lane: &&HeldLane| lanes.contains(&lane.lane) && !lane.waiting.contains(&type_index);
        let cursors: Vec<CursorOfType> = (self.lanes.iter().filter(flows))
            .map(|lane| CursorOfType { lane: lane.lane, token: lane.token, of, cursor: cursor_of(lane) })
            .collect();
        if cursors.is_empty() {
            return Ok(());
        }
        if !ground.ask(|ground| ground.table.begin_waiting(&cursors))? {
            ground.count("lane lost");
            return Err(Stop::LaneLost);
        }
        ground.count("set aside");
        ground.note(|| format!("  type {of} waits from {cursors:?}"));
        ground.again.extend(cursors.iter().cloned());
        let waiting = self.waiting.entry(of).or_insert_with(|| Waiting::new(ground.now));
        for CursorOfType { lane: number, cursor, .. } in cursors {
            waiting.insert(ground, number, cursor);
            let Some(lane) = self.lanes.get_mut(index(number)) else { continue };
            if variant != Variant::ReadsWhatWaits {
                lane.waiting.push(type_index);
            }
            lane.progress.set_aside(type_index);
        }
        Ok(())
    }
}
