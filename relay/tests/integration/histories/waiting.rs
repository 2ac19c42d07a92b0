//! Types that wait for their topic: `relay/src/session/waiting.rs`.

use std::collections::HashSet;

use relay::lanes::{Cursor, RowKey, TypeIndex, WaitingType, index};

use super::database::type_of;
use super::ground::Ground;
use super::lanes_table::Time;
use super::reading::ids;
use super::reads::ReadLimits;
use super::sender::Work;
use super::session::{Session, Stop};
use super::stream::{Cause, Stream};
use super::variant::Variant;
use super::waiting_table::CursorOfType;

/// Records of a type that may be under way.
const IN_FLIGHT_MAX: usize = 6;

/// How long a stream that sends suspects one at a time looks for them.
const SUSPICION_MAX: Time = 60;

#[derive(Debug)]
pub struct Waiting {
    pub lanes: WaitingType,
    pub attempt: Option<Try>,
    /// Rows of which one or more will be refused.
    pub suspects: HashSet<i64>,
    pub next_try: Time,
}

#[derive(Debug)]
pub struct Try {
    pub stream: Stream,
    pub begun: Time,
    /// Whether a broker has acknowledged something.
    pub flows: bool,
}

impl Waiting {
    pub fn new(now: Time) -> Self {
        Self { lanes: WaitingType::default(), attempt: None, suspects: HashSet::new(), next_try: now }
    }

    pub fn stream(&mut self) -> Option<&mut Stream> {
        self.attempt.as_mut().map(|attempt| &mut attempt.stream)
    }

    /// The type waits in this lane, too. If it is being tried, the sender has to know what is parked there.
    pub fn insert(&mut self, ground: &Ground, lane: i16, cursor: Cursor) {
        self.lanes.insert(lane, cursor);
        if ground.variant != Variant::TellsNoTry
            && let Some(stream) = self.stream()
        {
            stream.pipe.push_back(Work::Lane(lane, ground.table.parked_keys(lane)));
        }
    }

    pub fn into_stream(self) -> Option<Stream> {
        self.attempt.map(|attempt| attempt.stream)
    }

    /// Why it waits decides what the next try looks like, and when it is.
    pub fn look_into(&mut self, ground: &mut Ground, cause: Cause, suspects: &[i64]) {
        match cause {
            Cause::Refused => self.suspects.extend(suspects),
            Cause::Unconfirmed => {}
            Cause::TimedOut | Cause::Unavailable => self.next_try = ground.now + ground.pick(20) as Time,
        }
    }

    /// Whether the try has failed, or has found out which of its suspects are refused.
    pub fn is_over(&self, now: Time) -> bool {
        self.attempt.as_ref().is_some_and(|Try { stream, begun, .. }| {
            let is_careful = !self.suspects.is_empty();
            let is_cleared = is_careful && (stream.has_cleared_its_suspects() || now > begun + SUSPICION_MAX);
            let has_failed = stream.outcomes.failure.is_some() || !stream.outcomes.set_aside.is_empty();
            has_failed || (is_cleared && self.lanes.in_flight() == 0)
        })
    }
}

impl Session {
    /// Takes over what waits in lanes that were just taken.
    pub fn take_waiting(&mut self, ground: &mut Ground, lanes: &[i16]) -> Result<(), Stop> {
        for (lane, of, cursor) in ground.ask(|ground| ground.table.waiting_types(lanes))? {
            if ground.variant == Variant::ForgetsWhatWaits {
                continue;
            }
            ground.count("taken over while waiting");
            ground.note(|| format!("  type {of} waits in lane {lane} from {cursor:?}"));
            self.waiting.entry(of).or_insert_with(|| Waiting::new(ground.now)).insert(ground, lane, cursor);
            if let Some(lane) = self.lanes.get_mut(index(lane)) {
                lane.waiting.push(TypeIndex::from(of));
            }
        }
        Ok(())
    }

    /// The cursors of a type in the lanes in which it waits.
    pub fn cursors_of(&self, of: usize) -> Vec<CursorOfType> {
        let Some(waiting) = self.waiting.get(&of) else { return Vec::new() };
        let token = |number: i16| Some(self.lanes.iter().find(|lane| lane.lane == number)?.token);
        let cursors = waiting
            .lanes
            .cursors()
            .filter_map(|(lane, cursor)| Some(CursorOfType { lane, token: token(lane)?, of, cursor: cursor.clone() }));
        cursors.collect()
    }

    /// In the middle of the late rows of a pass, no cursor tells of those that are published: the relay that takes the lane publishes them again.
    pub fn note_late_rows_that_come_again(&self, ground: &mut Ground, lanes: &[i16]) {
        for (of, waiting) in &self.waiting {
            let amid_late_rows = waiting.lanes.parts().into_iter().filter(|part| part.after < part.start.position);
            let lanes: Vec<i16> = amid_late_rows.map(|part| part.lane).filter(|lane| lanes.contains(lane)).collect();
            ground.again.extend(self.cursors_of(*of).into_iter().filter(|cursor| lanes.contains(&cursor.lane)));
        }
    }

    /// Writes how far the types that wait have been brought.
    pub fn settle_waiting(&mut self, ground: &mut Ground) -> Result<(), Stop> {
        let cursors: Vec<CursorOfType> = self.waiting.keys().flat_map(|of| self.cursors_of(*of)).collect();
        if cursors.is_empty() { Ok(()) } else { ground.ask(|ground| ground.table.settle_waiting(&cursors)) }
    }

    /// One thing that is done for types that wait.
    pub fn serve_waiting(&mut self, ground: &mut Ground) -> Result<(), Stop> {
        match ground.pick(3) {
            0 => self.collect_waiting(ground),
            1 => self.begin_tries(ground),
            _ => self.bring_up_all(ground),
        }
    }

    /// All that can be done for them now.
    pub fn catch_up(&mut self, ground: &mut Ground) -> Result<(), Stop> {
        self.begin_tries(ground)?;
        for _ in 0..3 {
            self.bring_up_all(ground)?;
            self.send_all(ground);
            self.collect_waiting(ground)?;
        }
        Ok(())
    }

    pub fn bring_up_all(&mut self, ground: &mut Ground) -> Result<(), Stop> {
        for of in self.waiting.keys().copied().collect::<Vec<_>>() {
            self.bring_up(ground, of)?;
        }
        Ok(())
    }

    /// Begins a pass, reads a part of it, or lets the type flow again.
    fn bring_up(&mut self, ground: &mut Ground, of: usize) -> Result<(), Stop> {
        let reading = self.lanes.iter().filter(|lane| !lane.draining);
        let own: Vec<(i16, Cursor)> = reading.map(|lane| (lane.lane, lane.read.clone())).collect();
        self.read_part(ground, of, &own)?;
        let Some(waiting) = self.waiting.get(&of).filter(|waiting| waiting.attempt.is_some()) else { return Ok(()) };
        let (level, quiet) = (waiting.lanes.is_level(&own), waiting.lanes.in_flight() == 0);
        let is_level = level || (ground.variant == Variant::FlowsBeforeItIsLevel && ground.chance(50));
        // With suspects, the lanes would meet the same refusal again.
        if self.lanes.is_amid_read()
            || !is_level
            || !(waiting.suspects.is_empty() || ground.variant == Variant::FlowsWithSuspects)
        {
            return Ok(());
        }
        if quiet || ground.variant == Variant::FlowsUnacknowledged {
            return self.let_flow(ground, of);
        }
        self.reads_rest_until = ground.now + 3;
        Ok(())
    }

    fn read_part(&mut self, ground: &mut Ground, of: usize, own: &[(i16, Cursor)]) -> Result<(), Stop> {
        let Some(waiting) = self.waiting.get_mut(&of) else { return Ok(()) };
        let Some(attempt) = &waiting.attempt else { return Ok(()) };
        let is_full = waiting.lanes.in_flight() >= if attempt.flows { IN_FLIGHT_MAX } else { 1 };
        if is_full || attempt.stream.has_cleared_its_suspects() {
            return Ok(());
        }
        let lane_rows = if attempt.flows { 1 + ground.pick(4) } else { 1 };
        let behind: Vec<Cursor> = waiting.lanes.behind(own).cloned().collect();
        if !behind.is_empty() {
            let first_late = ground.ask(|ground| ground.database.first_late_id(&behind))?;
            waiting.lanes.begin_pass(own, first_late);
            // Others may do something before the part is read.
            return Ok(());
        }
        let parts = waiting.lanes.parts();
        if parts.is_empty() {
            return Ok(());
        }
        let rows_max = if ground.chance(300) { 1 + ground.pick(3) } else { usize::MAX };
        let limits = ReadLimits { late_rows: 0, lane_rows, rows: rows_max };
        let (rows, complete) = ground.ask(|ground| ground.database.read_parts(TypeIndex::from(of), &parts, limits))?;
        let keys: Vec<RowKey> = rows.iter().map(|row| row.key).collect();
        let tickets = waiting.lanes.accept(&parts, &keys, lane_rows, complete);
        ground.note(|| format!("  parts of type {of} {parts:?}: {:?}, complete {complete}", ids(&rows)));
        if !rows.is_empty() {
            ground.count(if waiting.lanes.parts().is_empty() { "brought up" } else { "brought up in parts" });
        }
        let events = self.events(rows, tickets);
        if let Some(stream) = self.waiting.get_mut(&of).and_then(Waiting::stream) {
            stream.pipe.extend(events);
        }
        Ok(())
    }

    /// A type is where its lanes are, and Kafka has all of it: the lanes read its rows again.
    fn let_flow(&mut self, ground: &mut Ground, of: usize) -> Result<(), Stop> {
        let cursors = self.cursors_of(of);
        let Some(waiting) = self.waiting.remove(&of) else { return Ok(()) };
        if let Some(stream) = waiting.into_stream() {
            stream.close(ground);
        }
        if ground.ask(|ground| ground.table.end_waiting(&cursors))? != cursors.len() {
            return Err(Stop::LaneLost);
        }
        if !cursors.is_empty() {
            ground.count("flows again");
            ground.note(|| format!("  type {of} flows again"));
        }
        for lane in self.lanes.iter_mut() {
            lane.waiting.retain(|waits| *waits != TypeIndex::from(of));
        }
        for CursorOfType { lane, .. } in &cursors {
            let parked = ground.table.parked_keys(*lane).into_iter().filter(|aggregate| type_of(*aggregate) == of);
            self.main.pipe.push_back(Work::Parked(*lane, parked.collect()));
        }
        self.main.pipe.push_back(Work::Resume(of));
        Ok(())
    }
}
