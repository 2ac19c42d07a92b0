//! What is in a batch of records, before the database is asked: which are events with a handler, which are passed over, which
//! cannot be read. Pure.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use shared::event::Envelope;
use shared::propagation::TraceHeaders;
use shared::spans;
use uuid::Uuid;

use crate::handler::Handlers;
use crate::record::{Event, Record};
use crate::store::inbox::{Arrival, InboxKey};

/// The years 1 to 9999: any 64 bits can be a record's timestamp, and Postgres holds less.
const TIME_MS_MIN: i64 = -62_135_596_800_000;
const TIME_MS_MAX: i64 = 253_402_300_799_999;

/// Records of one partition in their order, or of several of a topic, one after the other: read, and sorted by what is to be done with them.
#[derive(Debug)]
pub struct Batch<'a> {
    records: Vec<&'a Record>,
    /// Where the records of each partition end.
    ends: Vec<usize>,
    begun_at: SystemTime,
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
    place: usize,
}

/// What is known of a batch before any of its events is tried.
#[derive(Debug)]
pub(crate) struct Plan<'b, 'a> {
    batch: &'b Batch<'a>,
    /// Events to be tried.
    tried: Vec<&'b Decoded<'a>>,
    /// Places of records that wait: their key is blocked, or an elder of it in this batch cannot be read.
    pub(crate) behind: Vec<usize>,
    /// Places of the first records of their keys, or of none, that cannot be read, and why. Elders in this batch that fail come
    /// before them.
    pub(crate) broken: Vec<(usize, &'b str)>,
}

/// Whether there is nothing to do for `record`: its type has no handler, whatever else it is.
pub(crate) fn is_passed_over(record: &Record, handlers: &Handlers) -> bool {
    record.event_type().is_some_and(|event_type| !handlers.has(event_type))
}

impl<'a> Batch<'a> {
    /// Reads the headers of `records`, which are of one partition.
    pub(crate) fn read(records: &'a [Record], handlers: &Handlers) -> Self {
        Self::read_all([records], handlers)
    }

    /// Reads the headers of the records of each partition.
    pub(crate) fn read_all(partitions: impl IntoIterator<Item = &'a [Record]>, handlers: &Handlers) -> Self {
        let (mut records, mut ends) = (Vec::new(), Vec::new());
        for partition in partitions {
            records.extend(partition);
            ends.push(records.len());
        }
        let mut batch = Self {
            decoded: Vec::with_capacity(records.len()),
            records,
            ends,
            begun_at: spans::now(),
            broken: Vec::new(),
            passed_over: 0,
        };
        for (place, record) in batch.records.iter().copied().enumerate() {
            if is_passed_over(record, handlers) {
                batch.passed_over += 1;
                continue;
            }
            match record.envelope() {
                Err(error) => batch.broken.push((place, error.to_string())),
                Ok(envelope) => {
                    let trace = TraceHeaders {
                        traceparent: envelope.traceparent.clone(),
                        tracestate: envelope.tracestate.clone(),
                    };
                    batch.decoded.push(Decoded { envelope, trace, record, place });
                }
            }
        }
        batch
    }

    /// Reads records that have waited. One of a type without a handler is not passed over: it had one when it was put aside.
    pub(crate) fn read_waiting(records: &'a [Record], handlers: &Handlers) -> Self {
        let mut batch = Self::read(records, handlers);
        if batch.passed_over > 0 {
            let known: HashSet<usize> = batch.decoded.iter().map(|decoded| decoded.place).collect();
            let broken: HashSet<usize> = batch.broken.iter().map(|(place, _)| *place).collect();
            let passed_over = (0..records.len()).filter(|place| !known.contains(place) && !broken.contains(place));
            batch
                .broken
                .extend(passed_over.map(|place| (place, "there is no handler for events of its type".to_owned())));
            batch.broken.sort_unstable_by_key(|(place, _)| *place);
            batch.passed_over = 0;
        }
        batch
    }

    /// The records.
    pub(crate) fn records(&self) -> &[&'a Record] {
        &self.records
    }

    /// Which of the partitions the record at `place` is of.
    pub(crate) fn part_of(&self, place: usize) -> usize {
        self.ends.partition_point(|end| *end <= place)
    }

    /// The last record of each partition.
    pub(crate) fn lasts(&self) -> impl Iterator<Item = &'a Record> {
        self.ends.iter().filter_map(|end| self.records.get(end.checked_sub(1)?).copied())
    }

    /// When it was begun.
    pub(crate) const fn begun_at(&self) -> SystemTime {
        self.begun_at
    }

    /// The key in whose order the record at `place` is applied, if there is one.
    pub(crate) fn key_at(&self, place: usize) -> Option<&'a [u8]> {
        self.records.get(place)?.ordering_key()
    }

    /// The keys of all records that are to be applied, each once.
    pub(crate) fn keys(&self) -> Vec<&'a [u8]> {
        let handled = self.decoded.iter().map(|decoded| decoded.record);
        let broken = self.broken.iter().filter_map(|(place, _)| self.records.get(*place).copied());
        let mut keys: Vec<&[u8]> = handled.chain(broken).filter_map(Record::ordering_key).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// What is to be tried when the keys in `blocked` wait already.
    pub(crate) fn plan(&self, blocked: &HashSet<Vec<u8>>) -> Plan<'_, 'a> {
        let (mut behind, mut broken) = (Vec::new(), Vec::new());
        // Where each key ends for this batch.
        let mut ends: HashMap<&[u8], usize> = HashMap::new();
        for (place, reason) in &self.broken {
            match self.key_at(*place) {
                Some(key) if blocked.contains(key) || ends.contains_key(key) => behind.push(*place),
                key => {
                    ends.extend(key.map(|key| (key, *place)));
                    broken.push((*place, reason.as_str()));
                }
            }
        }
        if blocked.is_empty() && ends.is_empty() {
            return Plan { batch: self, tried: self.decoded.iter().collect(), behind, broken };
        }
        let waits = |decoded: &&Decoded<'_>| {
            let key = decoded.envelope.aggregate_id.as_bytes();
            blocked.contains(key) || ends.get(key).is_some_and(|end| *end < decoded.place)
        };
        let (waiting, tried): (Vec<_>, Vec<_>) = self.decoded.iter().partition(waits);
        behind.extend(waiting.iter().map(|decoded| decoded.place));
        Plan { batch: self, tried, behind, broken }
    }

    /// The event at `place`, if there is a readable one with a handler.
    pub(crate) fn event_at(&self, place: usize) -> Option<Event<'_>> {
        // Places go up.
        let found = self.decoded.binary_search_by_key(&place, |decoded| decoded.place).ok()?;
        self.decoded.get(found).map(Decoded::event)
    }

    /// How many events have a handler.
    pub(crate) const fn handled(&self) -> usize {
        self.decoded.len()
    }

    /// Whether any record is to be applied, or cannot be.
    pub(crate) const fn is_empty(&self) -> bool {
        self.decoded.is_empty() && self.broken.is_empty()
    }
}

impl Decoded<'_> {
    fn event(&self) -> Event<'_> {
        Event {
            envelope: &self.envelope,
            payload: self.record.payload.as_deref(),
            trace: &self.trace,
            offset: self.record.offset,
            place: self.place,
        }
    }
}

impl<'b> Plan<'b, '_> {
    /// What the inbox knows the events to be tried by, sorted: two transactions that put the same ids into it do it in the same order
    /// and cannot lock each other out.
    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        let arrival = |decoded: &&Decoded<'_>| Arrival {
            key: InboxKey::of(&decoded.envelope),
            part: self.batch.part_of(decoded.place),
            offset: decoded.record.offset,
            time_ms: decoded.record.time_ms.map(|time_ms| time_ms.clamp(TIME_MS_MIN, TIME_MS_MAX)),
        };
        let mut arrivals: Vec<Arrival> = self.tried.iter().map(arrival).collect();
        arrivals.sort_unstable();
        arrivals
    }

    /// The events to be tried whose ids are in `fresh`, in their order. Of an event that is in the batch twice, the first.
    pub(crate) fn fresh_events(&self, mut fresh: HashSet<Uuid>) -> Vec<Event<'b>> {
        let fresh = self.tried.iter().filter(|decoded| fresh.remove(&decoded.envelope.event_id));
        fresh.map(|decoded| decoded.event()).collect()
    }

    /// How many events are to be tried.
    pub(crate) const fn tried(&self) -> usize {
        self.tried.len()
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
        Record { offset, key: Some(b"k".to_vec()), headers: headers.collect(), ..Record::default() }
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
        assert_eq!(batch.lasts().map(|record| record.offset).collect::<Vec<_>>(), [9]);
    }

    #[test]
    fn records_of_several_partitions_follow_each_other() {
        let (one, two) = ([record(3, 1, "a"), record(4, 2, "other")], [record(1, 3, "a")]);
        let batch = Batch::read_all([&one[..], &two[..]], &handlers());
        assert_eq!((0..3).map(|place| batch.part_of(place)).collect::<Vec<_>>(), [0, 0, 1]);
        assert_eq!(batch.lasts().map(|record| record.offset).collect::<Vec<_>>(), [4, 1]);
        let plan = batch.plan(&HashSet::new());
        let arrivals = plan.arrivals();
        assert_eq!(arrivals.iter().map(|arrival| (arrival.part, arrival.offset)).collect::<Vec<_>>(), [(0, 3), (1, 1)]);
    }

    #[test]
    fn what_no_handler_wants_is_passed_over_whatever_the_rest_of_it_is() {
        let of = |offset: i64, headers: &[(&str, &[u8])], payload: Option<&[u8]>| Record {
            offset,
            key: Some(b"k".to_vec()),
            payload: payload.map(<[u8]>::to_vec),
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), Some(value.to_vec()))).collect(),
            ..Record::default()
        };
        let records = [
            of(0, &[(CE_TYPE, b"theirs"), (ID, b"no UUID")], Some(b"{}")),
            of(1, &[(CE_TYPE, b"theirs"), (AGGREGATE_VERSION, b"-1")], None),
            // The last header of a name counts.
            of(2, &[(CE_TYPE, b"a"), (CE_TYPE, b"theirs")], Some(b"{}")),
        ];
        let batch = Batch::read(&records, &handlers());
        assert_eq!((batch.handled(), batch.passed_over, batch.broken.len()), (0, 3, 0));
        assert!(records.iter().all(|record| is_passed_over(record, &handlers())));
    }

    #[test]
    fn a_record_of_somebody_elses_stands_in_no_keys_way() {
        let theirs = |offset: i64, event_type: &str| {
            let headers = [(ID, b"no UUID".to_vec()), (CE_TYPE, event_type.into())];
            let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), Some(value)));
            Record { offset, key: Some(b"k".to_vec()), headers: headers.collect(), ..Record::default() }
        };
        let unread = Record { offset: 1, key: Some(b"k".to_vec()), ..Record::default() };
        let records = [theirs(0, "a"), unread, record(2, 7, "a")];
        let batch = Batch::read(&records, &handlers());
        let plan = batch.plan(&HashSet::new());
        assert_eq!(plan.broken.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(offsets(&plan.fresh_events(HashSet::from([Uuid::from_u128(7)]))), [2]);
        assert_eq!((batch.key_at(0), batch.key_at(1), batch.key_at(2)), (None, None, Some(&b"k"[..])));
    }

    #[test]
    fn of_an_event_that_is_twice_in_a_batch_the_first_counts() {
        let records = [record(0, 7, "a"), record(1, 8, "a"), record(2, 7, "a"), record(3, 9, "a")];
        let batch = Batch::read(&records, &handlers());
        let fresh = HashSet::from([7, 8].map(Uuid::from_u128));
        assert_eq!(offsets(&batch.plan(&HashSet::new()).fresh_events(fresh)), [0, 1]);
    }

    #[test]
    fn what_is_behind_a_blocked_key_or_a_record_that_cannot_be_read_is_not_tried() {
        let of_key = |offset: i64, key: &str, event_type: &str| Record {
            key: Some(key.into()),
            ..record(offset, u128::try_from(offset).expect("small"), event_type)
        };
        let headers = vec![(AGGREGATE_VERSION.to_owned(), Some(b"first".to_vec()))];
        let broken = |offset: i64, key: Option<&str>| Record {
            offset,
            key: key.map(Into::into),
            headers: headers.clone(),
            ..Record::default()
        };
        let records = [
            of_key(0, "free", "a"),
            of_key(1, "blocked", "a"),
            of_key(2, "x", "b"),
            broken(3, Some("x")),
            broken(4, None),
            of_key(5, "x", "a"),
            of_key(6, "blocked", "other"),
            broken(7, Some("blocked")),
            broken(8, Some("x")),
            of_key(9, "free", "b"),
        ];
        let batch = Batch::read(&records, &handlers());
        assert_eq!(batch.keys(), [&b"blocked"[..], b"free", b"x"]);
        let mut plan = batch.plan(&HashSet::from([b"blocked".to_vec()]));
        plan.behind.sort_unstable();
        assert_eq!(plan.behind, [1, 5, 7, 8]);
        assert_eq!(plan.broken.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [3, 4]);
        let events = plan.fresh_events(plan.arrivals().into_iter().map(|arrival| arrival.key.event_id).collect());
        assert_eq!(offsets(&events), [0, 2, 9]);
        assert_eq!(batch.event_at(5).map(|event| event.offset()), Some(5));
        assert!(batch.event_at(6).is_none());
    }
}
