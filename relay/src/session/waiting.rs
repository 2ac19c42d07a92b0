//! Types that wait for their topic: trying the topic again, and bringing them up to where the others are.
//!
//! Each try has a stream of its own, so that whatever comes of it concerns no other type. It begins with a few events. Once a broker has
//! acknowledged one, the rest follows in passes ([`crate::lanes::waiting`]). A try that fails is made again later.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::backoff::Backoff;
use shared::spans;

use super::reading::READ_BYTES_MAX;
use super::sender::Work;
use super::stream::{Ending, LOOK_OF_ONE, PublishConstraints, Stream};
use super::{Session, SessionError, in_time, since_1970};
use crate::lanes::{Cursor, HeldLane, Snapshot, TypeIndex, WaitingType, index};
use crate::outbox;
use crate::outbox::waiting::{CursorOfType, PartsLimits};
use crate::publisher::outcomes::{Cause, Failure, Outcomes, Trouble};

/// Types that are tried at the same time: each has threads and connections of its own.
const TRIES_MAX: usize = 8;

/// Events of a type that may be under way.
const IN_FLIGHT_MAX: usize = 2_000;

/// Rows of each lane in one part: at first, and once the topic has taken something.
const ROWS_FIRST: i64 = 1;
const ROWS: i64 = 200;

/// How long the lanes' own reading rests for a type that has nearly caught up, and how often that may be.
const READS_REST: Duration = Duration::from_millis(100);
const READS_REST_AGAIN: Duration = Duration::from_secs(1);

/// Between two tries.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// A type that has flowed for so long has got over its trouble.
const FLOWED_LONG: Duration = Duration::from_mins(1);

/// How long a stream that sends suspects one at a time looks for them.
const SUSPICION_MAX: Duration = Duration::from_secs(30);

/// A topic that takes no records, and why.
#[derive(Debug, Clone)]
pub(super) struct WaitingTopic {
    pub name: String,
    pub reason: String,
}

/// A type that waits.
pub(super) struct Waiting {
    topic: WaitingTopic,
    pub lanes: WaitingType,
    state: State,
    constraints: PublishConstraints,
    backoff: Backoff,
    next_try: Instant,
    next_rest: Instant,
    /// Whether Kafka has acknowledged something since the cursors were last written.
    unsettled: bool,
}

enum State {
    /// Until the next try.
    Resting,
    Trying(Try),
    /// A try that has failed.
    Ending(Ending, Option<Failure>),
}

struct Try {
    stream: Stream,
    begun: Instant,
    /// Whether a broker has acknowledged something.
    flows: bool,
}

/// A type that waited and flows again. If it has to wait again soon, the next try takes its time.
pub(super) struct Flowed {
    at: Instant,
    backoff: Backoff,
    constraints: PublishConstraints,
}

/// What became of a look at the types that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// None is being tried.
    Idle,
    /// Some are: look again soon.
    Busy,
}

impl Waiting {
    /// `before` tells of a time when it waited before. `window` is how many bytes may be in flight at first: what was learned by the stream that
    /// met the trouble, since a broker that throttles would be silent for longer with each further byte.
    pub(super) fn new(topic: WaitingTopic, before: Option<Flowed>, window: u64) -> Self {
        let now = Instant::now();
        let before = before.filter(|flowed| flowed.at.elapsed() < FLOWED_LONG);
        let flapped = before.is_some();
        let (mut backoff, constraints) = before.map_or_else(
            || (Backoff::new(BACKOFF_FIRST, BACKOFF_MAX), PublishConstraints::default()),
            |flowed| (flowed.backoff, flowed.constraints),
        );
        let constraints = PublishConstraints { window: constraints.window.min(window), ..constraints };
        Self {
            topic,
            lanes: WaitingType::default(),
            state: State::Resting,
            constraints,
            next_try: if flapped { now + backoff.random_delay() } else { now },
            backoff,
            next_rest: now,
            unsettled: false,
        }
    }

    /// If a broker has refused a batch, the next try finds out for which of these rows.
    pub(super) fn suspect(&mut self, cause: &Cause, rows: &[(i16, i64)]) {
        if matches!(cause, Cause::Refused) {
            self.constraints.suspects.extend(rows);
        }
    }

    pub(super) fn extend_lease(&self, until: Instant) {
        if let State::Trying(Try { stream, .. }) = &self.state {
            stream.lease.extend(until);
        }
    }

    /// The topic for which it waits.
    pub(super) const fn topic(&self) -> &WaitingTopic {
        &self.topic
    }

    /// Ends what is under way.
    pub(super) fn close(self) -> Option<Ending> {
        match self.state {
            State::Resting => None,
            State::Trying(Try { stream, .. }) => Some(stream.close()),
            State::Ending(ending, _) => Some(ending),
        }
    }

    const fn is_tried(&self) -> bool {
        !matches!(self.state, State::Resting)
    }

    /// Ends the try: what was not acknowledged is read again by the next one.
    fn end_try(&mut self, failure: Option<Failure>) {
        self.state = match std::mem::replace(&mut self.state, State::Resting) {
            State::Trying(Try { stream, .. }) => State::Ending(stream.close(), failure),
            other => other,
        };
    }

    /// Ends the try when it has failed, or has found out which of its suspects are refused.
    fn end_try_if_over(&mut self, outcomes: &Outcomes) {
        let State::Trying(attempt) = &self.state else { return };
        let set_aside: Vec<Trouble> =
            outcomes.take_set_aside(usize::MAX).into_iter().map(|(_, trouble)| trouble).collect();
        let failure = outcomes.failure().or_else(|| (!set_aside.is_empty()).then_some(Failure::Topics(set_aside)));
        let is_careful = !self.constraints.suspects.is_empty();
        let is_cleared = is_careful && (outcomes.is_clear() || attempt.begun.elapsed() > SUSPICION_MAX);
        if failure.is_some() || (is_cleared && self.lanes.in_flight() == 0) {
            self.end_try(failure);
        }
    }

    /// What a failed try means for the next one.
    fn learn(&mut self, failure: Option<Failure>, outcomes: &Outcomes) {
        let refused = outcomes.take_refused();
        match failure {
            // Its suspects were looked into.
            None => self.constraints.suspects.clear(),
            Some(Failure::SmallerBatches(bytes)) => self.constraints.shrink_batches(bytes),
            Some(Failure::Topics(troubles)) => {
                let suspects: Vec<_> = refused.iter().filter_map(|ticket| self.lanes.row_of(*ticket)).collect();
                for Trouble { cause, .. } in troubles {
                    self.suspect(&cause, &suspects);
                    if matches!(cause, Cause::TimedOut(_) | Cause::Unavailable(_)) {
                        self.next_try = Instant::now() + self.backoff.random_delay();
                    }
                }
            }
            Some(Failure::Kafka(_)) => self.next_try = Instant::now() + self.backoff.random_delay(),
        }
    }
}

impl Session<'_> {
    /// Whether the events of a type wait for their topic.
    pub(super) fn waits(&self, lane: i16, aggregate_type: &str) -> bool {
        let of_name = |of: &TypeIndex| self.types.name(*of) == aggregate_type;
        self.lanes.iter().any(|held| held.lane == lane && held.waiting.iter().any(of_name))
    }

    /// Takes over what waits in lanes that were just taken.
    pub(super) async fn take_waiting(&mut self, lanes: &[i16]) -> Result<(), SessionError> {
        let rows = outbox::waiting::waiting_types(&mut self.connection, lanes);
        for row in in_time(self.streams.config.limits.lease(), rows).await? {
            let (type_index, lane) = (self.types.index(&row.aggregate_type), row.lane);
            let seen = row.seen.map(Snapshot::parse).transpose()?.map(Arc::new);
            let topic = WaitingTopic { name: row.topic, reason: row.reason };
            let waiting =
                self.waiting.entry(type_index).or_insert_with(|| Waiting::new(topic, None, self.constraints.window));
            waiting.lanes.insert(row.lane, Cursor { position: row.position, seen });
            if let Some(lane) = self.lanes.get_mut(index(row.lane)) {
                lane.waiting.push(type_index);
            }
            self.tell_try(type_index, &[lane]).await?;
        }
        Ok(())
    }

    /// The sender of a type that is being tried has to know the parked keys of a lane before it sees the lane's first events.
    pub(super) async fn tell_try(&mut self, type_index: TypeIndex, lanes: &[i16]) -> Result<(), SessionError> {
        let is_trying = |waiting: &Waiting| matches!(waiting.state, State::Trying(_));
        if !self.waiting.get(&type_index).is_some_and(is_trying) {
            return Ok(());
        }
        for (lane, keys) in self.parked_keys(lanes).await? {
            if let Some(Waiting { state: State::Trying(attempt), .. }) = self.waiting.get(&type_index) {
                attempt.stream.pipe.send(Work::Lane(lane, keys));
            }
        }
        Ok(())
    }

    /// Writes how far the types that wait have been brought.
    pub(super) async fn settle_waiting(&mut self) -> Result<(), SessionError> {
        let mut cursors = Vec::new();
        for (type_index, waiting) in self.waiting.iter().filter(|(_, waiting)| waiting.unsettled) {
            let aggregate_type = self.types.name(*type_index);
            for (number, cursor) in waiting.lanes.cursors() {
                let Some(held) = self.lanes.iter().find(|lane| lane.lane == number) else { continue };
                cursors.push(CursorOfType { lane: number, token: held.token, aggregate_type, cursor: cursor.clone() });
            }
        }
        if cursors.is_empty() {
            return Ok(());
        }
        let settled = outbox::waiting::settle_waiting(&mut self.connection, &cursors);
        in_time(self.streams.config.limits.lease(), settled).await?;
        self.waiting.values_mut().for_each(|waiting| waiting.unsettled = false);
        Ok(())
    }

    /// Goes on with the types that wait: begins tries, reads for them, and lets those flow again that have caught up.
    ///
    /// # Errors
    /// When Postgres fails, or a lane was lost.
    pub async fn serve_waiting(&mut self) -> Result<Served, SessionError> {
        self.ending.retain(|ending| !ending.has_ended());
        if self.waiting.is_empty() {
            return Ok(Served::Idle);
        }
        self.collect_waiting().await?;
        self.begin_tries().await?;
        let tried = self.types_that_wait(Waiting::is_tried);
        for type_index in &tried {
            self.bring_up(*type_index).await?;
        }
        Ok(if tried.is_empty() { Served::Idle } else { Served::Busy })
    }

    fn types_that_wait(&self, which: impl Fn(&Waiting) -> bool) -> Vec<TypeIndex> {
        self.waiting.iter().filter(|(_, waiting)| which(waiting)).map(|(index, _)| *index).collect()
    }

    /// Takes what came of the tries.
    pub(super) async fn collect_waiting(&mut self) -> Result<(), SessionError> {
        for type_index in self.types_that_wait(Waiting::is_tried) {
            let Some(waiting) = self.waiting.get_mut(&type_index) else { continue };
            match std::mem::replace(&mut waiting.state, State::Resting) {
                State::Trying(attempt) => {
                    let outcomes = Arc::clone(&attempt.stream.outcomes);
                    waiting.state = State::Trying(attempt);
                    self.take_outcomes(type_index, &outcomes).await?;
                    let Some(waiting) = self.waiting.get_mut(&type_index) else { continue };
                    waiting.end_try_if_over(&outcomes);
                }
                State::Ending(ending, failure) if ending.has_ended() => {
                    let (outcomes, window) = ending.end().await;
                    self.take_outcomes(type_index, &outcomes).await?;
                    let Some(waiting) = self.waiting.get_mut(&type_index) else { continue };
                    waiting.constraints.window = window;
                    waiting.learn(failure, &outcomes);
                    waiting.lanes.restart();
                }
                other => waiting.state = other,
            }
        }
        Ok(())
    }

    /// Takes what Kafka has acknowledged of a type, and writes what it refuses into `relay_parked`.
    async fn take_outcomes(&mut self, type_index: TypeIndex, outcomes: &Outcomes) -> Result<(), SessionError> {
        let parked = outcomes.take_parked();
        self.write_parked(&parked).await?;
        outcomes.take_acknowledged(&mut self.acknowledged);
        let Some(waiting) = self.waiting.get_mut(&type_index) else { return Ok(()) };
        let now = spans::now();
        for acknowledged in &self.acknowledged {
            if let Some(occurred_us) = waiting.lanes.acknowledge(acknowledged.ticket) {
                self.acknowledged_age.observe(since_1970(occurred_us), now, acknowledged.trace_id);
            }
        }
        for parked in &parked {
            waiting.lanes.acknowledge(parked.ticket);
        }
        self.streams.metrics.published.inc_by(self.acknowledged.len() as u64);
        if let State::Trying(attempt) = &mut waiting.state {
            attempt.flows |= !self.acknowledged.is_empty();
        }
        let any = !self.acknowledged.is_empty() || !parked.is_empty();
        waiting.unsettled |= any;
        self.unsettled |= any;
        Ok(())
    }

    async fn begin_tries(&mut self) -> Result<(), SessionError> {
        let now = Instant::now();
        let left = TRIES_MAX.saturating_sub(self.types_that_wait(Waiting::is_tried).len());
        let is_due = |waiting: &Waiting| !waiting.is_tried() && waiting.next_try <= now;
        for type_index in self.types_that_wait(is_due).into_iter().take(left) {
            let Some(waiting) = self.waiting.get(&type_index) else { continue };
            let lanes: Vec<i16> = waiting.lanes.cursors().map(|(lane, _)| lane).collect();
            if lanes.is_empty() {
                // All of its lanes are other relays' now. A lane that is taken later is read for this type, too.
                self.waiting.remove(&type_index);
                self.main.pipe.send(Work::Resume(type_index));
                continue;
            }
            let stream = self.streams.start(&waiting.constraints, LOOK_OF_ONE, None)?;
            if let Some(waiting) = self.waiting.get_mut(&type_index) {
                waiting.state = State::Trying(Try { stream, begun: now, flows: false });
            }
            self.tell_try(type_index, &lanes).await?;
        }
        Ok(())
    }

    /// Reads the next part of a type that is being tried, or lets it flow again.
    async fn bring_up(&mut self, type_index: TypeIndex) -> Result<(), SessionError> {
        let reading = self.lanes.iter().filter(|lane| !lane.draining);
        let own: Vec<(i16, Cursor)> = reading.map(|lane| (lane.lane, lane.read.clone())).collect();
        self.read_waiting_part(type_index, &own).await?;
        let Some(waiting) = self.waiting.get_mut(&type_index) else { return Ok(()) };
        if self.lanes.is_amid_read() || !matches!(waiting.state, State::Trying(_)) || !waiting.lanes.is_level(&own) {
            return Ok(());
        }
        if !waiting.constraints.suspects.is_empty() {
            // They are still to be looked into: the stream of all events would meet the same refusal again.
            return Ok(());
        }
        if waiting.lanes.in_flight() == 0 {
            return self.let_flow(type_index).await;
        }
        let now = Instant::now();
        if now >= waiting.next_rest {
            waiting.next_rest = now + READS_REST_AGAIN;
            self.reads_rest_until = now + READS_REST;
        }
        Ok(())
    }

    async fn read_waiting_part(&mut self, type_index: TypeIndex, own: &[(i16, Cursor)]) -> Result<(), SessionError> {
        let limit = self.streams.config.limits.lease();
        let Some(waiting) = self.waiting.get_mut(&type_index) else { return Ok(()) };
        let State::Trying(attempt) = &waiting.state else { return Ok(()) };
        let in_flight = waiting.lanes.in_flight();
        let is_full = in_flight >= if attempt.flows { IN_FLIGHT_MAX } else { 1 };
        if is_full || attempt.stream.pipe.is_full() || attempt.stream.outcomes.is_clear() {
            return Ok(());
        }
        let lane_rows = if attempt.flows { ROWS } else { ROWS_FIRST };
        let behind: Vec<Cursor> = waiting.lanes.behind(own).cloned().collect();
        if !behind.is_empty() {
            let first_late = outbox::waiting::first_late_id(&mut self.connection, behind.iter());
            waiting.lanes.begin_pass(own, in_time(limit, first_late).await?);
        }
        let parts = waiting.lanes.parts();
        if parts.is_empty() {
            return Ok(());
        }
        let (mut batch, aggregate_type) = (attempt.stream.pipe.empty_batch(), self.types.name(type_index));
        let limits = PartsLimits { lane_rows, bytes: READ_BYTES_MAX };
        let read = outbox::waiting::read_parts(&mut self.connection, aggregate_type, &parts, limits, &mut batch);
        let complete = in_time(limit, read).await?;
        batch.read_at = Some(spans::now());
        batch.number_types(&mut self.types);
        batch.tickets = waiting.lanes.accept(&parts, batch.keys(), usize::try_from(lane_rows).unwrap_or(1), complete);
        waiting.unsettled = true;
        if batch.is_empty() {
            attempt.stream.pipe.give_back(batch);
            return Ok(());
        }
        in_time(limit, outbox::large::fetch(&mut self.connection, &mut batch)).await?;
        if let Some(Waiting { state: State::Trying(attempt), .. }) = self.waiting.get(&type_index) {
            attempt.stream.pipe.send(Work::Batch(batch));
        }
        Ok(())
    }

    /// A type is where its lanes are, and Kafka has all of it: the lanes read its rows again.
    async fn let_flow(&mut self, type_index: TypeIndex) -> Result<(), SessionError> {
        let Some(waiting) = self.waiting.remove(&type_index) else { return Ok(()) };
        let aggregate_type = self.types.name(type_index).to_owned();
        let lanes: Vec<i16> = waiting.lanes.cursors().map(|(lane, _)| lane).collect();
        let of_lane = |lane: &HeldLane| CursorOfType {
            lane: lane.lane,
            token: lane.token,
            aggregate_type: &aggregate_type,
            cursor: lane.read.clone(),
        };
        let cursors: Vec<_> = self.lanes.iter().filter(|lane| lanes.contains(&lane.lane)).map(of_lane).collect();
        let ended = outbox::waiting::end_waiting(&mut self.connection, &cursors);
        let ended = in_time(self.streams.config.limits.lease(), ended).await?;
        if usize::try_from(ended) != Ok(lanes.len()) {
            return Err(SessionError::LaneLost(lanes.first().copied().unwrap_or(-1)));
        }
        for lane in self.lanes.iter_mut() {
            lane.waiting.retain(|of| *of != type_index);
        }
        // The stream of all events does not know yet what was parked meanwhile.
        for (lane, mut keys) in self.parked_keys(&lanes).await? {
            keys.retain(|(of, _)| *of == aggregate_type);
            self.main.pipe.send(Work::Parked(lane, keys));
        }
        self.main.pipe.send(Work::Resume(type_index));
        tracing::info!(
            messaging.destination.name = waiting.topic.name,
            r#type = aggregate_type,
            reason = waiting.topic.reason,
            "a topic takes records again: what waited is published, and its events flow with all others"
        );
        self.flowed.insert(
            type_index,
            Flowed { at: Instant::now(), backoff: waiting.backoff, constraints: waiting.constraints.clone() },
        );
        self.ending.extend(waiting.close());
        Ok(())
    }
}
