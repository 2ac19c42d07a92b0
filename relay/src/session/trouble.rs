//! Topics that take no records: their types wait, and all others go on.

use std::sync::Arc;
use std::time::Duration;

use super::sender::{Looked, Work};
use super::stream::LOOK_OF_ALL;
use super::waiting::{Waiting, WaitingTopic};
use super::{Session, SessionError, in_time};
use crate::lanes::{HeldLane, TypeIndex};
use crate::outbox;
use crate::outbox::waiting::CursorOfType;
use crate::publisher::outcomes::{Cause, Failure, Outcomes, Trouble};

/// How long brokers get to answer when a topic has not: if none does, it is not the topic.
const BROKERS_ANSWER: Duration = Duration::from_secs(2);

/// Types that are set aside at once: other events wait meanwhile.
const SET_ASIDE_MAX: usize = 20;

/// Characters of a reason that are kept.
const REASON_CHARS_MAX: usize = 500;

impl Session<'_> {
    /// Lets types wait of which the stream's sender says that their topic takes nothing, and of which nothing is in flight.
    pub(super) async fn set_aside_types(&mut self) -> Result<(), SessionError> {
        let found = self.main.outcomes.take_set_aside(SET_ASIDE_MAX);
        let silent = found.iter().map(|(_, trouble)| trouble).find(|of| matches!(of.cause, Cause::TimedOut(_)));
        if let Some(trouble) = silent {
            self.ask_brokers(trouble).await?;
        }
        for (type_index, trouble) in found {
            self.set_aside(&[type_index], &trouble).await?;
        }
        Ok(())
    }

    /// The stream of all events has ended. If it was for a topic, the topic's types wait, and the others go on by a new producer.
    pub(super) async fn replace_producer(&mut self, failure: Failure) -> Result<(), SessionError> {
        let troubles = match failure {
            Failure::Kafka(error) => return Err(SessionError::Delivery(error)),
            Failure::Topics(troubles) => troubles,
            Failure::SmallerBatches(bytes) => {
                tracing::warn!(bytes, "a topic takes smaller batches only: publishing with such from now on");
                self.constraints.shrink_batches(bytes);
                Vec::new()
            }
        };
        let next = self.streams.start(&self.constraints, LOOK_OF_ALL, self.spare.take())?;
        let (outcomes, window) = std::mem::replace(&mut self.main, next).close().end().await;
        // Nothing is sent by the old one any more. What it has done is final.
        self.constraints.window = window;
        self.take_last_outcomes(&outcomes).await?;
        let refused = outcomes.take_refused().into_iter().filter(|ticket| !ticket.is_retry());
        let suspects: Vec<(i16, i64)> = refused.filter_map(|ticket| self.lanes.row_of(ticket)).collect();
        for trouble in &troubles {
            if self.retrying && matches!(trouble.cause, Cause::Refused) {
                // It was a parked event, which is tried alone next time.
                continue;
            }
            self.ask_brokers(trouble).await?;
            let types = self.types_of_topic(&trouble.topic);
            self.set_aside(&types, trouble).await?;
            for (_, waiting) in self.waiting.iter_mut().filter(|(of, _)| types.contains(of)) {
                waiting.suspect(&trouble.cause, &suspects);
            }
        }
        for (type_index, topic) in outcomes.take_open_topics() {
            if !self.waiting.contains_key(&type_index) {
                let aggregate_type = self.types.name(type_index).to_owned();
                self.main.pipe.send(Work::Looked(Looked { type_index, aggregate_type, topic: Ok(topic) }));
            }
        }
        self.lanes.restart();
        self.finding = None;
        self.tell_of_parked_keys().await
    }

    fn types_of_topic(&self, topic: &str) -> Vec<TypeIndex> {
        let goes_there = |name: &str| self.streams.topic_of(name).is_some_and(|of| of == topic);
        self.types.iter().filter(|(_, name)| goes_there(name)).map(|(index, _)| index).collect()
    }

    /// A topic of which nothing was heard may be well, and all brokers away: then nothing waits for the topic, and all begins again.
    async fn ask_brokers(&self, trouble: &Trouble) -> Result<(), SessionError> {
        let Cause::TimedOut(why) = &trouble.cause else { return Ok(()) };
        let answer = self.streams.topics.answer(&trouble.topic, BROKERS_ANSWER).await;
        answer.map_err(|error| {
            tracing::debug!(messaging.destination.name = trouble.topic, why, "no broker answers");
            SessionError::Delivery(error)
        })
    }

    /// Lets these types wait in all lanes, and writes so into Postgres.
    async fn set_aside(&mut self, types: &[TypeIndex], trouble: &Trouble) -> Result<(), SessionError> {
        let reason: String = trouble.reason().chars().take(REASON_CHARS_MAX).collect();
        let topic = WaitingTopic { name: trouble.topic.clone(), reason };
        let lanes: Vec<i16> = self.lanes.iter().map(|lane| lane.lane).collect();
        let mut begun = Vec::new();
        for type_index in types {
            if self.wait_in(*type_index, &lanes, &topic).await? {
                begun.push(*type_index);
            }
        }
        self.unsettled = true;
        if !begun.is_empty() {
            let begun: Vec<&str> = begun.into_iter().map(|type_index| self.types.name(type_index)).collect();
            tracing::warn!(
                messaging.destination.name = topic.name,
                reason = topic.reason,
                types = ?begun.get(..20).unwrap_or(&begun),
                count = begun.len(),
                "a topic takes no records: its events wait, all others go on"
            );
        }
        Ok(())
    }

    /// Lets the types that wait in other lanes wait in lanes that were just taken, too. The sender has closed the way to their topics: it
    /// would throw their events away, and the lanes would never get past them.
    pub(super) async fn join_waiting(&mut self, lanes: &[i16]) -> Result<(), SessionError> {
        let waiting = self.waiting.iter().map(|(type_index, waiting)| (*type_index, waiting.topic().clone()));
        for (type_index, topic) in waiting.collect::<Vec<_>>() {
            self.wait_in(type_index, lanes, &topic).await?;
        }
        Ok(())
    }

    /// Lets a type wait in those of these lanes in which it flows, and writes so into Postgres. Returns whether there are any.
    async fn wait_in(
        &mut self,
        type_index: TypeIndex,
        lanes: &[i16],
        topic: &WaitingTopic,
    ) -> Result<bool, SessionError> {
        let of_lane = |lane: &HeldLane| CursorOfType {
            lane: lane.lane,
            token: lane.token,
            aggregate_type: self.types.name(type_index),
            cursor: lane.progress.cursor_of(type_index),
        };
        let flows = |lane: &&HeldLane| lanes.contains(&lane.lane) && !lane.waiting.contains(&type_index);
        let cursors: Vec<CursorOfType<'_>> = self.lanes.iter().filter(flows).map(of_lane).collect();
        if cursors.is_empty() {
            return Ok(false);
        }
        let held = outbox::waiting::begin_waiting(&mut self.connection, &cursors, &topic.name, &topic.reason);
        let held = in_time(self.streams.config.limits.lease(), held).await?;
        if let Some(lost) = cursors.iter().find(|cursor| !held.contains(&cursor.lane)) {
            return Err(SessionError::LaneLost(lost.lane));
        }
        let cursors: Vec<_> = cursors.into_iter().map(|of| (of.lane, of.cursor)).collect();
        let numbers: Vec<i16> = cursors.iter().map(|(lane, _)| *lane).collect();
        let before = self.flowed.remove(&type_index);
        let waiting = self
            .waiting
            .entry(type_index)
            .or_insert_with(|| Waiting::new(topic.clone(), before, self.constraints.window));
        for (number, cursor) in cursors {
            waiting.lanes.insert(number, cursor);
            if let Some(lane) = self.lanes.get_mut(crate::lanes::index(number)) {
                lane.waiting.push(type_index);
                lane.progress.set_aside(type_index);
            }
        }
        self.tell_try(type_index, &numbers).await?;
        Ok(true)
    }

    /// Keys that are parked, for a stream that has just begun.
    pub(super) async fn tell_of_parked_keys(&mut self) -> Result<(), SessionError> {
        let lanes: Vec<i16> = self.lanes.iter().map(|lane| lane.lane).collect();
        for (lane, keys) in self.parked_keys(&lanes).await? {
            self.main.pipe.send(Work::Lane(lane, keys));
        }
        Ok(())
    }

    /// Takes what the ended stream has heard, and parks what it has put aside.
    async fn take_last_outcomes(&mut self, ended: &Arc<Outcomes>) -> Result<(), SessionError> {
        let new = std::mem::replace(&mut self.main.outcomes, Arc::clone(ended));
        self.take_acknowledged();
        let parked = self.park().await;
        self.main.outcomes = new;
        parked
    }
}
