//! Events that are held back in memory, in their order, until they may be sent.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::SystemTime;

use crate::batch::{Event, OwnedEvent};
use crate::lanes::{RowKey, Ticket};

/// An event that is held back.
#[derive(Debug)]
pub(super) struct HeldEvent {
    pub row: RowKey,
    pub ticket: Ticket,
    pub read_at: SystemTime,
    event: OwnedEvent,
}

impl HeldEvent {
    pub(super) fn new(row: RowKey, ticket: Ticket, read_at: SystemTime, event: &Event<'_>) -> Self {
        Self { row, ticket, read_at, event: OwnedEvent::from(event) }
    }

    pub(super) fn event(&self) -> Event<'_> {
        self.event.as_event()
    }

    fn bytes(&self) -> usize {
        self.event.bytes()
    }
}

/// Queues of events, by what they wait for.
#[derive(Debug)]
pub(super) struct Held<K> {
    queues: HashMap<K, VecDeque<HeldEvent>>,
    bytes: usize,
}

impl<K> Default for Held<K> {
    fn default() -> Self {
        Self { queues: HashMap::new(), bytes: 0 }
    }
}

impl<K: Copy + Eq + Hash> Held<K> {
    pub(super) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether events wait for this, so that a later one must too.
    pub(super) fn waits_for(&self, what: K) -> bool {
        // Almost always nothing waits.
        !self.queues.is_empty() && self.queues.contains_key(&what)
    }

    pub(super) fn push(&mut self, what: K, held: HeldEvent) {
        self.bytes += held.bytes();
        self.queues.entry(what).or_default().push_back(held);
    }

    /// Takes the first event that waits for this.
    pub(super) fn pop(&mut self, what: K) -> Option<HeldEvent> {
        let queue = self.queues.get_mut(&what)?;
        let held = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&what);
        }
        self.bytes -= held.as_ref().map_or(0, HeldEvent::bytes);
        held
    }

    /// The first event that waits for this.
    pub(super) fn first(&self, what: K) -> Option<&HeldEvent> {
        self.queues.get(&what)?.front()
    }

    /// Throws away those that do not match.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(K, &HeldEvent) -> bool) {
        for (what, queue) in &mut self.queues {
            queue.retain(|held| keep(*what, held));
        }
        self.queues.retain(|_, queue| !queue.is_empty());
        self.bytes = self.queues.values().flatten().map(HeldEvent::bytes).sum();
    }

    /// What is waited for.
    pub(super) fn keys(&self) -> Vec<K> {
        self.queues.keys().copied().collect()
    }
}
