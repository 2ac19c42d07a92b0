//! What the sender does with each event: hands it to the producer, holds it back, or puts it aside.
//!
//! Order by key: events of one key are of one type and go to one partition. An event is held back when its topic is being looked at, or
//! when its partition is not open; then all later ones of the type, or of the partition, are held back behind it.

mod slow_topics;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender as ChannelSender, channel};
use std::time::{Duration, Instant, SystemTime};

use shared::spans;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::held::{Held, HeldEvent};
use super::{Looked, Sender, Stop, Work};
use crate::batch::{Batch, Event};
use crate::lanes::{RowKey, Ticket, TypeIndex};
use crate::publisher::SendError;
use crate::publisher::destinations::{self, Destination, OpenTopic};
use crate::publisher::flow::FlowControl;
use crate::publisher::outcomes::{Cause, Failure, Outcomes, Parked, Trouble};
use crate::publisher::spans::{Origin, PublishSpan};
use crate::routes::Routes;

use slow_topics::{Answer, CHECKS_MAX, Checked};

/// Topics that are looked at or made at the same time.
const LOOKS_MAX: usize = 8;

/// Bytes of events that are held back.
const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Between two looks for topics in trouble.
const LOOK_FOR_TROUBLE: Duration = Duration::from_millis(50);

/// How long the other topics' records get to be acknowledged before the producer is given up for one topic.
const OTHERS_END: Duration = Duration::from_millis(300);

/// Between two tries to hand over a record while the producer's queue is full, or too much is in flight.
const FULL_WAIT: Duration = Duration::from_millis(1);

/// Where the events of a type go.
pub(super) enum Route {
    Unknown,
    /// Its topic is being looked at since then.
    Asked(Instant),
    Open(Destination),
    /// It can have no topic: its events are refused.
    Illegal(String),
    /// Its topic takes no records: its events wait, and are not ours to send.
    Closed,
}

/// See the module.
pub(super) struct Feeder {
    pub(super) sender: Sender,
    work: ChannelSender<Work>,
    handle: Handle,
    looks: JoinSet<()>,
    looks_left: Arc<Semaphore>,
    checks_left: Arc<Semaphore>,
    /// By lane, the keys whose events wait in `relay_parked`.
    parked: HashMap<i16, HashSet<(String, String)>>,
    /// By the type's number.
    routes: Vec<Route>,
    by_type: Held<TypeIndex>,
    by_flow: Held<usize>,
    checked: HashMap<String, Checked>,
    /// What brokers said of slow topics, by name; none if they did not answer. It does not come as work: while too much is in flight, this
    /// thread takes no work, and what is in flight may be of the topic that is asked about.
    answers: (ChannelSender<Answer>, Receiver<Answer>),
    next_look: Instant,
}

impl Feeder {
    pub(super) fn new(sender: Sender, work: ChannelSender<Work>, handle: Handle) -> Self {
        Self {
            sender,
            work,
            handle,
            looks: JoinSet::new(),
            looks_left: Arc::new(Semaphore::new(LOOKS_MAX)),
            checks_left: Arc::new(Semaphore::new(CHECKS_MAX)),
            parked: HashMap::new(),
            routes: Vec::new(),
            by_type: Held::default(),
            by_flow: Held::default(),
            checked: HashMap::new(),
            answers: channel(),
            next_look: Instant::now(),
        }
    }

    pub(super) fn outcomes(&self) -> Arc<Outcomes> {
        Arc::clone(&self.sender.outcomes)
    }

    /// Whether events wait that may be sent in a moment.
    pub(super) fn holds_events(&self) -> bool {
        !self.by_flow.is_empty()
    }

    /// Whether something is under way.
    pub(super) fn is_busy(&self) -> bool {
        !self.by_type.is_empty() || !self.sender.control.is_idle(self.sender.control.all())
    }

    pub(super) fn batch(&mut self, batch: &Batch) -> Result<(), Stop> {
        let read_at = batch.read_at.unwrap_or_else(spans::now);
        for (row, ticket, event) in batch.events() {
            self.offer(row, ticket, &event, read_at)?;
        }
        Ok(())
    }

    /// Sends an event, or holds it back.
    fn offer(&mut self, row: RowKey, ticket: Ticket, event: &Event<'_>, read_at: SystemTime) -> Result<(), Stop> {
        if let Some(reason) = event.unpublishable()
            && !self.is_behind_others(row.type_index, event)
        {
            self.refuse(row, ticket, event, reason.to_owned());
            return Ok(());
        }
        match self.routes.get(row.type_index.place()) {
            Some(Route::Open(to)) => {
                let flow = FlowControl::of_key(&to.flows, event.aggregate_id);
                if self.by_flow.waits_for(flow) || !self.sender.control.is_open(flow) {
                    self.by_flow.push(flow, HeldEvent::new(row, ticket, read_at, event));
                    return self.bound_held();
                }
                self.dispatch(row, ticket, event, read_at, flow)
            }
            Some(Route::Closed) => Ok(()),
            Some(Route::Illegal(reason)) => {
                let reason = reason.clone();
                self.refuse(row, ticket, event, reason);
                Ok(())
            }
            known => {
                let is_asked = matches!(known, Some(Route::Asked(_)));
                self.by_type.push(row.type_index, HeldEvent::new(row, ticket, read_at, event));
                if !is_asked {
                    self.ask(row.type_index, event.aggregate_type);
                }
                Ok(())
            }
        }
    }

    /// Whether earlier events of its key may be held back. It must not park the key ahead of them.
    fn is_behind_others(&self, type_index: TypeIndex, event: &Event<'_>) -> bool {
        match self.open(type_index) {
            Some(to) => self.by_flow.waits_for(FlowControl::of_key(&to.flows, event.aggregate_id)),
            None => self.by_type.waits_for(type_index),
        }
    }

    /// Sends an event whose partition is open, unless its key is parked.
    fn dispatch(
        &mut self,
        row: RowKey,
        ticket: Ticket,
        event: &Event<'_>,
        read_at: SystemTime,
        flow: usize,
    ) -> Result<(), Stop> {
        if self.is_parked(row.lane, event) {
            self.sender.outcomes.park(Parked { ticket, id: row.id, reason: None });
            return Ok(());
        }
        if let Some(reason) = event.unpublishable() {
            self.refuse(row, ticket, event, reason.to_owned());
            return Ok(());
        }
        let suspects = &mut self.sender.suspects;
        let alone = !suspects.is_empty() && suspects.remove(&(row.lane, row.id));
        let origin = Origin { id: row.id, lane: Some(row.lane), read_at };
        let refused = self.hand_over(ticket, row.type_index, event, alone, origin, flow)?;
        if alone && self.sender.suspects.is_empty() {
            self.sender.outcomes.clear();
        }
        if let Some(reason) = refused {
            self.refuse(row, ticket, event, reason);
        }
        Ok(())
    }

    /// Parks the key of an event that Kafka will never take.
    fn refuse(&mut self, row: RowKey, ticket: Ticket, event: &Event<'_>, reason: String) {
        let reason = if self.is_parked(row.lane, event) { None } else { Some(reason) };
        if let Some(reason) = &reason {
            tracing::error!(
                event.id = %event.event_id,
                outbox.id = row.id,
                reason,
                "Kafka refuses an event for good: its key is parked, see `outrider parked list`"
            );
            let key = (event.aggregate_type.to_owned(), event.aggregate_id.to_owned());
            self.parked.entry(row.lane).or_default().insert(key);
        }
        self.sender.outcomes.park(Parked { ticket, id: row.id, reason });
    }

    fn is_parked(&self, lane: i16, event: &Event<'_>) -> bool {
        // Almost always there is none.
        self.parked.get(&lane).is_some_and(|keys| {
            !keys.is_empty() && keys.contains(&(event.aggregate_type.to_owned(), event.aggregate_id.to_owned()))
        })
    }

    pub(super) fn take_lane(&mut self, lane: i16, keys: Vec<(String, String)>) {
        self.parked.insert(lane, keys.into_iter().collect());
    }

    pub(super) fn add_parked(&mut self, lane: i16, keys: Vec<(String, String)>) {
        self.parked.entry(lane).or_default().extend(keys);
    }

    pub(super) fn unpark(&mut self, lane: i16, key: &(String, String)) {
        if let Some(keys) = self.parked.get_mut(&lane) {
            keys.remove(key);
        }
    }

    /// Hands an event to the producer, with a span if its trace is recorded. Returns a reason if Kafka will never take it.
    pub(super) fn hand_over(
        &mut self,
        ticket: Ticket,
        type_index: TypeIndex,
        event: &Event<'_>,
        alone: bool,
        origin: Origin,
        flow: usize,
    ) -> Result<Option<String>, Stop> {
        let mut span = self.sender.publisher.spans().begin(event, origin);
        let had_span = span.is_some();
        // A parked event that is tried again was counted before.
        if origin.lane.is_some() {
            let trace_id = span.as_ref().map(PublishSpan::trace_id);
            self.sender.read_age.observe(event.occurred_at.into(), origin.read_at, trace_id);
        }
        let refused = self.try_to_hand_over(ticket, type_index, event, alone, flow, &mut span)?;
        // A span that went with its record has its end there.
        if let Some(reason) = &refused {
            let spans = self.sender.publisher.spans();
            let forced = || if had_span { None } else { spans.force(event, origin) };
            if let Some(span) = span.or_else(forced) {
                spans.refused(span, self.open(type_index).map_or("", |to| &to.topic), reason);
            }
        }
        Ok(refused)
    }

    /// Waits until less is in flight; for the event's outcome too, if it is to go alone.
    fn try_to_hand_over(
        &mut self,
        ticket: Ticket,
        type_index: TypeIndex,
        event: &Event<'_>,
        alone: bool,
        flow: usize,
        span: &mut Option<PublishSpan>,
    ) -> Result<Option<String>, Stop> {
        let bytes = event.payload.len() + event.aggregate_id.len();
        while !self.sender.control.has_room(flow, bytes) {
            self.wait_a_moment()?;
        }
        loop {
            let Sender { publisher, control, outcomes, lease, lease_needed, .. } = &mut self.sender;
            let Some(Route::Open(to)) = self.routes.get(type_index.place()) else { return Ok(None) };
            if bytes + event.headers.len() > to.bytes_max {
                return Ok(Some(format!("it is too large for max.message.bytes of the topic '{}'", to.topic)));
            }
            if !lease.allows(*lease_needed) {
                return Err(Stop::Closed);
            }
            if alone {
                outcomes.expect_alone(ticket);
            }
            match publisher.send(to, event, ticket, flow, span) {
                Ok(()) => {
                    control.sent(flow, bytes);
                    break;
                }
                Err(SendError::Refused(reason)) => return Ok(Some(reason)),
                Err(SendError::Broken(error)) => return Err(Stop::Failed(Failure::Kafka(error))),
                // Every record in the queue ends within the message time-out, so this does too.
                Err(SendError::QueueFull) => self.wait_a_moment()?,
            }
        }
        if !alone {
            return Ok(None);
        }
        let outcome = self.sender.outcomes.outcome_alone().ok_or(Stop::Closed)?;
        if outcome.is_err() {
            self.sender.control.refused(flow, bytes);
        }
        Ok(outcome.err().map(|code| format!("a broker said: {code}")))
    }

    pub(super) fn open(&self, type_index: TypeIndex) -> Option<&Destination> {
        match self.routes.get(type_index.place()) {
            Some(Route::Open(to)) => Some(to),
            _ => None,
        }
    }

    fn wait_a_moment(&mut self) -> Result<(), Stop> {
        if self.sender.lease.is_closed() {
            return Err(Stop::Closed);
        }
        std::thread::sleep(FULL_WAIT);
        self.look_for_trouble_if_due(Instant::now())
    }

    /// Waits while the events that are held back for their partitions are too many to hold more.
    fn bound_held(&mut self) -> Result<(), Stop> {
        while self.by_flow.bytes() > HELD_BYTES_MAX {
            self.wait_a_moment()?;
            self.send_held()?;
        }
        Ok(())
    }

    /// Sends what was held back and may be sent now, and looks for topics in trouble.
    pub(super) fn tick(&mut self, now: Instant) -> Result<(), Stop> {
        self.send_held()?;
        self.look_for_trouble_if_due(now)
    }

    fn send_held(&mut self) -> Result<(), Stop> {
        if self.by_flow.is_empty() {
            return Ok(());
        }
        for flow in self.by_flow.keys() {
            while self.sender.control.is_open(flow) {
                let Some(held) = self.by_flow.pop(flow) else { break };
                self.dispatch(held.row, held.ticket, &held.event(), held.read_at, flow)?;
            }
        }
        Ok(())
    }

    fn set_route(&mut self, type_index: TypeIndex, route: Route) {
        let place = type_index.place();
        if self.routes.len() <= place {
            self.routes.resize_with(place + 1, || Route::Unknown);
        }
        self.routes[place] = route;
    }

    /// Has the topic of a type looked at, beside the stream.
    pub(super) fn ask(&mut self, type_index: TypeIndex, aggregate_type: &str) {
        let topic = match self.sender.destinations.topic_of(aggregate_type) {
            Ok(topic) => topic,
            Err(illegal) => {
                self.set_route(type_index, Route::Illegal(illegal.to_string()));
                return self.refuse_held(type_index);
            }
        };
        self.set_route(type_index, Route::Asked(Instant::now()));
        let (topics, work, looks) = (self.sender.topics.clone(), self.work.clone(), Arc::clone(&self.looks_left));
        let (batch_bytes, aggregate_type) = (self.sender.batch_bytes, aggregate_type.to_owned());
        while self.looks.try_join_next().is_some() {}
        self.looks.spawn_on(
            async move {
                let _one = looks.acquire().await;
                let topic = destinations::open(&topics, &topic, batch_bytes).await;
                let _ = work.send(Work::Looked(Looked { type_index, aggregate_type, topic }));
            },
            &self.handle,
        );
    }

    /// The same, unless it is being looked at already.
    pub(super) fn ask_unless_asked(&mut self, type_index: TypeIndex, aggregate_type: &str) {
        if matches!(self.routes.get(type_index.place()), None | Some(Route::Unknown | Route::Illegal(_))) {
            self.ask(type_index, aggregate_type);
        }
    }

    fn refuse_held(&mut self, type_index: TypeIndex) {
        while let Some(held) = self.by_type.pop(type_index) {
            if let Some(Route::Illegal(reason)) = self.routes.get(type_index.place()) {
                let reason = reason.clone();
                self.refuse(held.row, held.ticket, &held.event(), reason);
            }
        }
    }

    /// The topics that are open, for the stream after this one: to look at them again may take a second when a broker stands still.
    pub(super) fn open_topics(&self) -> Vec<(TypeIndex, OpenTopic)> {
        let open = self.routes.iter().enumerate().filter_map(|(place, route)| match route {
            Route::Open(to) => Some((TypeIndex::from(place), to.topic())),
            _ => None,
        });
        open.collect()
    }

    /// The answer to [`Self::ask`], or what the stream before this one knew.
    pub(super) fn looked(&mut self, looked: Looked) -> Result<(), Stop> {
        let Looked { type_index, aggregate_type, topic } = looked;
        if !matches!(self.routes.get(type_index.place()), None | Some(Route::Unknown | Route::Asked(_))) {
            return Ok(());
        }
        match topic {
            Ok(topic) if self.sender.destinations.topic_of(&aggregate_type).as_ref() == Ok(&topic.name) => {
                let flows = self.sender.control.of_topic(&topic.name, topic.partitions);
                let to = self.sender.destinations.destination(&aggregate_type, &topic, flows);
                self.set_route(type_index, Route::Open(to));
                while let Some(held) = self.by_type.pop(type_index) {
                    self.offer(held.row, held.ticket, &held.event(), held.read_at)?;
                }
                Ok(())
            }
            // The routes have changed meanwhile.
            Ok(_) => {
                self.ask(type_index, &aggregate_type);
                Ok(())
            }
            Err(Failure::Topics(troubles)) => {
                for trouble in troubles {
                    self.set_aside(type_index, trouble);
                }
                Ok(())
            }
            Err(failure) => {
                self.let_others_end(&[]);
                Err(Stop::Failed(failure))
            }
        }
    }

    /// A type of which nothing is in flight is to wait. Its events are not ours any more.
    fn set_aside(&mut self, type_index: TypeIndex, trouble: Trouble) {
        self.set_route(type_index, Route::Closed);
        self.by_type.retain(|held, _| held != type_index);
        self.sender.outcomes.set_aside(type_index, trouble);
    }

    /// A type waits no more. If it waited in other lanes only, it is open, and events of it may be held back.
    pub(super) fn resume(&mut self, type_index: TypeIndex) {
        if matches!(self.routes.get(type_index.place()), Some(Route::Closed)) {
            self.set_route(type_index, Route::Unknown);
        }
    }

    pub(super) fn reroute(&mut self, routes: Routes) -> Result<(), Stop> {
        if !self.sender.destinations.reroute(routes) {
            return Ok(());
        }
        for route in self.routes.iter_mut().filter(|route| !matches!(route, Route::Closed | Route::Asked(_))) {
            *route = Route::Unknown;
        }
        // What is held back for a partition has no open topic any more: it is looked for again, ahead of what comes later.
        for flow in self.by_flow.keys() {
            while let Some(held) = self.by_flow.pop(flow) {
                self.offer(held.row, held.ticket, &held.event(), held.read_at)?;
            }
        }
        Ok(())
    }

    fn look_for_trouble_if_due(&mut self, now: Instant) -> Result<(), Stop> {
        if now < self.next_look {
            return Ok(());
        }
        self.next_look = now + LOOK_FOR_TROUBLE;
        self.look_for_long_looks(now);
        self.look_for_slow_topics(now)
    }

    /// Types whose topic could not be looked at or made in time.
    fn look_for_long_looks(&mut self, now: Instant) {
        let too_much = self.by_type.bytes() > HELD_BYTES_MAX;
        for type_index in self.by_type.keys() {
            let Some(Route::Asked(since)) = self.routes.get(type_index.place()) else { continue };
            if !too_much && now.saturating_duration_since(*since) < self.sender.look_max {
                continue;
            }
            let first = self.by_type.first(type_index).map(|held| held.event().aggregate_type.to_owned());
            if let Some(Ok(topic)) = first.map(|name| self.sender.destinations.topic_of(&name)) {
                let cause = Cause::TimedOut("could not be looked at or made in time".to_owned());
                self.set_aside(type_index, Trouble { topic, cause });
            }
        }
    }

    /// Waits until nothing is in flight to other topics than these, but not for long.
    fn let_others_end(&mut self, but: &[String]) {
        let begun = Instant::now();
        while begun.elapsed() < OTHERS_END && !self.sender.control.others_are_idle(but) {
            std::thread::sleep(FULL_WAIT);
        }
    }
}
