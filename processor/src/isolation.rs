//! What to try next with events of which some failed, so that each key keeps its order and no key hinders another. Pure.

use std::collections::HashMap;

use crate::handler::Failure;
use crate::record::Event;

/// Finds out which events of a batch can be applied.
///
/// An event that fails takes all later ones of its key along, in whatever set they are: to apply one of them would put it before its
/// elder. The elders, and the other keys, are tried on.
#[derive(Debug, Default)]
pub(crate) struct Isolation<'a> {
    /// Sets that are to be tried, the next one last.
    todo: Vec<Vec<Event<'a>>>,
    /// The first event of each key that failed, by its place, and why.
    failed: HashMap<&'a str, (usize, Failure)>,
    /// Places of events that wait behind a failed one of their key.
    behind: Vec<usize>,
    #[cfg(test)]
    flaw: Option<tests::Flaw>,
}

/// Events that were not applied, by their places in the batch.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// The first of each key that failed, and why.
    pub(crate) failed: Vec<(usize, Failure)>,
    /// Those behind them.
    pub(crate) behind: Vec<usize>,
}

impl<'a> Isolation<'a> {
    /// Nothing is tried yet. The events are cut where the type changes: each part goes to one handler as a set.
    pub(crate) fn of(events: &[Event<'a>]) -> Self {
        let runs = events.chunk_by(|one, other| one.event_type() == other.event_type());
        let mut todo: Vec<Vec<Event<'a>>> = runs.map(<[Event<'a>]>::to_vec).collect();
        todo.reverse();
        Self { todo, ..Self::default() }
    }

    /// The next set to try. Every answer makes the sets fewer or smaller, so there are at most twice as many attempts as events.
    pub(crate) fn next_set(&mut self) -> Option<Vec<Event<'a>>> {
        while let Some(set) = self.todo.pop() {
            let set = self.without_those_behind(set);
            if !set.is_empty() {
                return Some(set);
            }
        }
        None
    }

    /// The handler failed over events of `set`: those that it named by their index, or over one that it could not name, because
    /// of `unnamed`.
    pub(crate) fn split(&mut self, mut set: Vec<Event<'a>>, mut named: Vec<(usize, Failure)>, unnamed: Failure) {
        named.retain(|(index, _)| *index < set.len());
        if named.is_empty() && set.len() > 1 {
            let second = set.split_off(set.len() / 2);
            self.todo.push(second);
            self.todo.push(set);
            #[cfg(test)]
            if self.flaw == Some(tests::Flaw::TriesTheSecondHalfFirst) {
                let last = self.todo.len() - 1;
                self.todo.swap(last, last - 1);
            }
            return;
        }
        if named.is_empty() {
            named.push((0, unnamed));
        }
        let events: Vec<(Event<'a>, Failure)> =
            named.into_iter().map(|(index, failure)| (set[index], failure)).collect();
        let mut out: Vec<usize> = Vec::with_capacity(events.len());
        for (event, failure) in events {
            out.push(event.place);
            self.fail(event, failure);
        }
        out.sort_unstable();
        set.retain(|event| out.binary_search(&event.place).is_err());
        // What is behind the failed ones goes when it is this set's turn again.
        self.todo.push(set);
    }

    /// What was not applied.
    pub(crate) fn left(self) -> Left {
        let mut left = Left { failed: self.failed.into_values().collect(), behind: self.behind };
        left.failed.sort_unstable_by_key(|(place, _)| *place);
        left
    }

    /// Of a key, the first event that fails counts. A handler may name a later one first, and the elder when it is tried again.
    fn fail(&mut self, event: Event<'a>, failure: Failure) {
        #[cfg(test)]
        if self.flaw == Some(tests::Flaw::ForgetsTheYounger) {
            self.failed.insert(event.aggregate_id(), (event.place, failure));
            return;
        }
        match self.failed.get_mut(event.aggregate_id()) {
            Some((place, _)) if *place == event.place => {} // Named twice.
            Some((place, _)) if *place < event.place => self.behind.push(event.place),
            Some((place, known)) => {
                self.behind.push(std::mem::replace(place, event.place));
                *known = failure;
            }
            None => {
                self.failed.insert(event.aggregate_id(), (event.place, failure));
            }
        }
    }

    fn without_those_behind(&mut self, mut set: Vec<Event<'a>>) -> Vec<Event<'a>> {
        #[cfg(test)]
        if self.flaw == Some(tests::Flaw::AppliesBehindAFailure) {
            return set;
        }
        if !self.failed.is_empty() {
            let (failed, behind) = (&self.failed, &mut self.behind);
            set.retain(|event| {
                let is_behind = failed.get(event.aggregate_id()).is_some_and(|(place, _)| *place < event.place);
                #[cfg(test)]
                let is_behind = match self.flaw {
                    Some(tests::Flaw::TakesEldersAlong) => failed.contains_key(event.aggregate_id()),
                    _ => is_behind,
                };
                if is_behind {
                    behind.push(event.place);
                }
                !is_behind
            });
        }
        set
    }
}

#[cfg(test)]
mod tests;
