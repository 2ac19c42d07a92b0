//! What is in a batch of records, before the database is asked: which are events with a handler, which are passed over, which
//! cannot be read. Pure.

use std::collections::HashSet;

use shared::event::Envelope;
use shared::propagation::TraceHeaders;
use uuid::Uuid;

use crate::handler::Handlers;
use crate::record::{Event, Record};

/// Records of one partition in their order, read and sorted by what is to be done with them.
#[derive(Debug)]
pub struct Batch<'a> {
    records: &'a [Record],
    decoded: Vec<Decoded<'a>>,
    /// Records that are no events, by their place in the batch, and why.
    pub(crate) broken: Vec<(usize, String)>,
    /// Events of a type without a handler. They get no inbox row: they have no effect that a repeat could have twice, and if
    /// their type is given a handler one day and they are published anew, they are applied then.
    pub(crate) passed_over: usize,
}

#[derive(Debug)]
struct Decoded<'a> {
    envelope: Envelope,
    trace: TraceHeaders,
    record: &'a Record,
}

impl<'a> Batch<'a> {
    /// Reads the headers of `records`.
    pub(crate) fn read(records: &'a [Record], handlers: &Handlers) -> Self {
        let mut batch =
            Self { records, decoded: Vec::with_capacity(records.len()), broken: Vec::new(), passed_over: 0 };
        for (place, record) in records.iter().enumerate() {
            match record.envelope() {
                Err(error) => batch.broken.push((place, error.to_string())),
                Ok(envelope) if handlers.has(&envelope.event_type) => {
                    let trace = TraceHeaders {
                        traceparent: envelope.traceparent.clone(),
                        tracestate: envelope.tracestate.clone(),
                    };
                    batch.decoded.push(Decoded { envelope, trace, record });
                }
                Ok(_) => batch.passed_over += 1,
            }
        }
        batch
    }

    /// The records.
    pub(crate) const fn records(&self) -> &'a [Record] {
        self.records
    }

    /// Offset after the last record: where the partition goes on. Offsets may have gaps, so it says nothing of how many
    /// records there were.
    pub(crate) fn next_offset(&self) -> Option<i64> {
        self.records.last().map(|record| record.offset + 1)
    }

    /// Ids of the events with a handler, sorted: two transactions that put the same ids into the inbox do it in the same
    /// order and cannot lock each other out.
    pub(crate) fn event_ids(&self) -> Vec<Uuid> {
        let mut ids: Vec<Uuid> = self.decoded.iter().map(|decoded| decoded.envelope.event_id).collect();
        ids.sort_unstable();
        ids
    }

    /// The events with a handler whose ids are in `fresh`, in their order. Of an event that is in the batch twice, the first.
    pub(crate) fn fresh_events(&self, mut fresh: HashSet<Uuid>) -> Vec<Event<'_>> {
        self.decoded
            .iter()
            .filter(|decoded| fresh.remove(&decoded.envelope.event_id))
            .map(|decoded| Event {
                envelope: &decoded.envelope,
                payload: decoded.record.payload.as_deref(),
                trace: &decoded.trace,
                offset: decoded.record.offset,
            })
            .collect()
    }

    /// How many events have a handler.
    pub(crate) const fn handled(&self) -> usize {
        self.decoded.len()
    }
}

/// Cuts `events` where the type changes: each part goes to one handler as a set, and the events of one key keep their order
/// across types.
pub(crate) fn runs<'a, 'b>(events: &'b [Event<'a>]) -> impl Iterator<Item = &'b [Event<'a>]> {
    events.chunk_by(|one, other| one.event_type() == other.event_type())
}

/// What to try next with a set of events of which at least one was refused for good.
#[derive(Debug, Default)]
pub(crate) struct Isolation<'a> {
    /// Sets that are to be tried, the next one last.
    todo: Vec<Vec<Event<'a>>>,
    /// Offset of each event that is refused, and why.
    pub(crate) refused: Vec<(i64, String)>,
}

impl<'a> Isolation<'a> {
    /// Nothing is tried yet.
    pub(crate) fn of(events: &[Event<'a>]) -> Self {
        Self { todo: vec![events.to_vec()], refused: Vec::new() }
    }

    /// The next set to try. Every answer makes the sets fewer or smaller, so there are at most twice as many attempts as events.
    pub(crate) fn next_set(&mut self) -> Option<Vec<Event<'a>>> {
        self.todo.pop().filter(|set| !set.is_empty())
    }

    /// The handler refused events of `set`: those that it named, or one that it could not name.
    pub(crate) fn split(&mut self, mut set: Vec<Event<'a>>, mut named: Vec<(usize, String)>, reason: String) {
        named.retain(|(index, _)| *index < set.len());
        if named.is_empty() && set.len() > 1 {
            let second = set.split_off(set.len() / 2);
            self.todo.push(second);
            self.todo.push(set);
            return;
        }
        if named.is_empty() {
            named.push((0, reason));
        }
        let mut out: HashSet<i64> = HashSet::with_capacity(named.len());
        for (index, reason) in named {
            if out.insert(set[index].offset) {
                self.refused.push((set[index].offset, reason));
            }
        }
        set.retain(|event| !out.contains(&event.offset));
        if !set.is_empty() {
            self.todo.push(set);
        }
    }
}
