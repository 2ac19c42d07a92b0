//! What is in a batch of records, before the database is asked: which are events with a handler, which are passed over, which
//! cannot be read. Pure.

use std::collections::HashSet;

use shared::event::Envelope;
use shared::propagation::TraceHeaders;
use uuid::Uuid;

use crate::handler::Handlers;
use crate::record::{Event, Record};
use crate::store::inbox::InboxKey;

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

    /// What the inbox knows the events with a handler by, sorted: two transactions that put the same ids into it do it in the same
    /// order and cannot lock each other out.
    pub(crate) fn inbox_keys(&self) -> Vec<InboxKey> {
        let mut keys: Vec<InboxKey> = self.decoded.iter().map(|decoded| InboxKey::of(&decoded.envelope)).collect();
        keys.sort_unstable();
        keys
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

#[cfg(test)]
mod tests {
    use shared::event::{AGGREGATE_VERSION, CE_TYPE, ID};
    use sqlx::PgConnection;

    use super::*;
    use crate::handler::{EventHandler, Handled, HandlerError};

    struct Nothing;

    impl EventHandler for Nothing {
        async fn handle(&self, _: &[Event<'_>], _: &mut PgConnection) -> Result<Handled, HandlerError> {
            Ok(Handled::default())
        }
    }

    fn record(offset: i64, id: u128, event_type: &str) -> Record {
        let headers =
            [(ID, Uuid::from_u128(id).to_string()), (CE_TYPE, event_type.into()), (AGGREGATE_VERSION, "1".into())];
        let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), Some(value.into_bytes())));
        Record { offset, key: Some(b"k".to_vec()), payload: None, headers: headers.collect(), time_ms: None }
    }

    fn ids(batch: &Batch<'_>) -> HashSet<Uuid> {
        batch.inbox_keys().into_iter().map(|key| key.event_id).collect()
    }

    fn handlers() -> Handlers {
        let mut handlers = Handlers::default();
        handlers.insert("a", Nothing);
        handlers.insert("b", Nothing);
        handlers
    }

    fn offsets(events: &[Event<'_>]) -> Vec<i64> {
        events.iter().map(Event::offset).collect()
    }

    #[test]
    fn records_are_sorted_by_what_is_to_be_done_with_them() {
        let records = [record(3, 1, "a"), Record { offset: 5, ..Record::default() }, record(9, 2, "other")];
        let batch = Batch::read(&records, &handlers());
        assert_eq!((batch.handled(), batch.passed_over, batch.broken.len()), (1, 1, 1));
        assert_eq!(batch.broken[0].0, 1);
        assert_eq!(batch.next_offset(), Some(10), "after the last record, gaps or not");
    }

    #[test]
    fn of_an_event_that_is_twice_in_a_batch_the_first_counts() {
        let records = [record(0, 7, "a"), record(1, 8, "a"), record(2, 7, "a"), record(3, 9, "a")];
        let batch = Batch::read(&records, &handlers());
        let fresh = HashSet::from([7, 8].map(Uuid::from_u128));
        assert_eq!(offsets(&batch.fresh_events(fresh)), [0, 1]);
    }

    #[test]
    fn runs_keep_the_order_across_types() {
        let types = ["a", "a", "b", "other", "b", "a"];
        let records: Vec<Record> = types.iter().zip(0_u8..).map(|(name, n)| record(n.into(), n.into(), name)).collect();
        let batch = Batch::read(&records, &handlers());
        let events = batch.fresh_events(ids(&batch));
        let runs: Vec<Vec<i64>> = runs(&events).map(offsets).collect();
        assert_eq!(runs, [vec![0, 1], vec![2, 4], vec![5]]);
    }

    /// Isolates the events at `bad` of `count`; returns what was applied, what was refused, and the number of attempts.
    fn isolate(count: u8, bad: &[i64], named: bool) -> (Vec<i64>, Vec<i64>, usize) {
        let records: Vec<Record> = (0..count).map(|n| record(n.into(), n.into(), "a")).collect();
        let batch = Batch::read(&records, &handlers());
        let events = batch.fresh_events(ids(&batch));
        let mut isolation = Isolation::of(&events);
        let (mut applied, mut attempts) = (Vec::new(), 0);
        while let Some(set) = isolation.next_set() {
            attempts += 1;
            let places = set.iter().enumerate().filter(|(_, event)| bad.contains(&event.offset()));
            let found: Vec<(usize, String)> = places.map(|(place, _)| (place, "bad".into())).collect();
            if found.is_empty() {
                applied.extend(offsets(&set));
            } else if named {
                isolation.split(set, found, String::new());
            } else {
                isolation.split(set, Vec::new(), "bad".into());
            }
        }
        let mut refused: Vec<i64> = isolation.refused.iter().map(|(offset, _)| *offset).collect();
        refused.sort_unstable();
        (applied, refused, attempts)
    }

    #[test]
    fn named_events_are_taken_out_at_once() {
        assert_eq!(isolate(6, &[1, 4], true), (vec![0, 2, 3, 5], vec![1, 4], 2));
    }

    #[test]
    fn an_unnamed_event_is_found_by_halving_and_the_others_keep_their_order() {
        for bad in 0..33 {
            let (applied, refused, attempts) = isolate(33, &[bad], false);
            assert_eq!(applied, (0..33).filter(|offset| *offset != bad).collect::<Vec<i64>>());
            assert_eq!(refused, [bad]);
            assert!(attempts <= 13, "{attempts} attempts");
        }
        let all: Vec<i64> = (0..50).collect();
        let (applied, refused, attempts) = isolate(50, &all, false);
        assert_eq!((applied.len(), refused.len()), (0, 50));
        assert!(attempts <= 100, "{attempts} attempts");
    }

    #[test]
    fn a_named_place_that_is_not_in_the_set_counts_for_nothing() {
        let records = [record(0, 0, "a"), record(1, 1, "a")];
        let batch = Batch::read(&records, &handlers());
        let events = batch.fresh_events(ids(&batch));
        let mut isolation = Isolation::of(&events);
        let set = isolation.next_set().expect("the first set");
        isolation.split(set, vec![(2, "bad".into())], "bad".into());
        assert_eq!(isolation.next_set().map(|set| offsets(&set)), Some(vec![0]));
    }
}
