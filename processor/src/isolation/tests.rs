//! Random batches, and handlers that fail in every way they can.

use std::collections::{BTreeMap, HashMap, HashSet};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shared::event::Envelope;
use shared::propagation::TraceHeaders;
use uuid::Uuid;

use super::*;
use crate::handler::FailureKind;

/// What is wrong with an isolation that the tests must catch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// Later events of a failed one's key are tried on.
    AppliesBehindAFailure,
    /// An elder that fails after its younger makes that one forgotten.
    ForgetsTheYounger,
    /// Events before the failed one of their key are given up with it.
    TakesEldersAlong,
    /// The halves of a set are tried in the wrong order.
    TriesTheSecondHalfFirst,
}

/// How an event fares with its handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Good,
    /// It fails, and is named if the handler feels like it.
    Bad(FailureKind),
    /// It came too early, unless its elder is applied.
    Dependent,
}

fn envelope(key: u32, event_type: u32) -> Envelope {
    Envelope {
        event_id: Uuid::nil(),
        event_type: event_type.to_string(),
        aggregate_id: key.to_string(),
        aggregate_version: 1,
        traceparent: None,
        tracestate: None,
        occurred_at: None,
        occurred_on: None,
    }
}

fn events<'a>(envelopes: &'a [Envelope], trace: &'a TraceHeaders) -> Vec<Event<'a>> {
    let event = |(place, envelope)| Event { envelope, payload: None, trace, offset: 0, place };
    envelopes.iter().enumerate().map(event).collect()
}

/// A batch, how each event fares, and whether the handler is one that names events.
struct Case {
    envelopes: Vec<Envelope>,
    fates: Vec<Fate>,
    random: ChaCha8Rng,
}

impl Case {
    fn of(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (count, keys, types) = (random.random_range(0..60), random.random_range(1..12), random.random_range(1..4));
        let bad_in_ten = random.random_range(0..6);
        let envelopes = (0..count).map(|_| envelope(random.random_range(0..keys), random.random_range(0..types)));
        let envelopes: Vec<Envelope> = envelopes.collect();
        let kinds = [FailureKind::Permanent, FailureKind::Retryable, FailureKind::TooEarly];
        let fate = |random: &mut ChaCha8Rng| match random.random_range(0..10) {
            chance if chance >= bad_in_ten => Fate::Good,
            0 => Fate::Dependent,
            _ => Fate::Bad(kinds[random.random_range(0..3)]),
        };
        let fates = (0..count).map(|_| fate(&mut random)).collect();
        Self { envelopes, fates, random }
    }

    /// The places in `set` of what fails in it, when `applied` was applied before.
    fn failing(&self, set: &[Event<'_>], applied: &[usize]) -> Vec<(usize, Failure)> {
        let mut seen: HashSet<usize> = applied.iter().copied().collect();
        let mut failing = Vec::new();
        for (index, event) in set.iter().enumerate() {
            let elder =
                (0..event.place).rev().find(|place| self.envelopes[*place].aggregate_id == event.aggregate_id());
            let kind = match self.fates[event.place] {
                Fate::Good => None,
                Fate::Bad(kind) => Some(kind),
                Fate::Dependent => elder.is_some_and(|elder| !seen.contains(&elder)).then_some(FailureKind::TooEarly),
            };
            seen.insert(event.place);
            failing.extend(kind.map(|kind| (index, Failure::new(kind, "bad"))));
        }
        failing
    }

    /// Works it off. What it must hold to is broken: why.
    fn run(mut self, flaw: Option<Flaw>) -> Result<(), String> {
        let (envelopes, trace) = (self.envelopes.clone(), TraceHeaders::default());
        let mut isolation = Isolation { flaw, ..Isolation::of(&events(&envelopes, &trace)) };
        let (mut applied, mut attempts) = (Vec::new(), 0);
        while let Some(set) = isolation.next_set() {
            attempts += 1;
            if attempts > 2 * envelopes.len() {
                return Err(format!("{attempts} attempts"));
            }
            if set.iter().any(|event| event.event_type() != set[0].event_type()) {
                return Err("a set of two types".to_owned());
            }
            let mut failing = self.failing(&set, &applied);
            if failing.is_empty() {
                applied.extend(set.iter().map(|event| event.place));
                continue;
            }
            let unnamed = failing[0].1.clone();
            match self.random.random_range(0..4) {
                0 => failing.clear(),
                // One of them, not the first one of its key perhaps.
                1 => failing = vec![failing.swap_remove(self.random.random_range(0..failing.len()))],
                2 => failing.push((set.len(), unnamed.clone())),
                _ => {}
            }
            isolation.split(set, failing, unnamed);
        }
        self.check(&applied, &isolation.left())
    }

    /// Of each key a prefix is applied, in order, the next one is the one that failed, and the others are behind it.
    fn check(&self, applied: &[usize], left: &Left) -> Result<(), String> {
        let mut keys: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (place, envelope) in self.envelopes.iter().enumerate() {
            keys.entry(&envelope.aggregate_id).or_default().push(place);
        }
        let key_of = |place: &usize| self.envelopes[*place].aggregate_id.as_str();
        let mut failed: HashMap<&str, usize> = HashMap::new();
        for (place, _) in &left.failed {
            if failed.insert(key_of(place), *place).is_some() {
                return Err(format!("{} failed twice", key_of(place)));
            }
        }
        for (key, places) in keys {
            let of_key = |places: &[usize]| places.iter().copied().filter(|place| key_of(place) == key).collect();
            let mut found: Vec<usize> = of_key(applied);
            let mut behind: Vec<usize> = of_key(&left.behind);
            behind.sort_unstable();
            found.extend(failed.get(key).copied());
            found.extend(behind.iter().copied());
            if found != places {
                return Err(format!("of {places:?}: applied, failed, behind: {found:?}"));
            }
            if !behind.is_empty() && !failed.contains_key(key) {
                return Err(format!("{behind:?} are behind nothing"));
            }
            let is_good = |place: &usize| self.fates[*place] != Fate::Good;
            if failed.get(key).is_some_and(|place| !is_good(place)) {
                return Err("a good event was given up".to_owned());
            }
        }
        Ok(())
    }
}

#[test]
fn each_key_keeps_its_order_and_no_key_hinders_another_in_any_batch() {
    for seed in 0..20_000 {
        if let Err(problem) = Case::of(seed).run(None) {
            panic!("seed {seed}: {problem}");
        }
    }
}

#[test]
fn an_isolation_with_a_flaw_is_caught() {
    for flaw in
        [Flaw::AppliesBehindAFailure, Flaw::ForgetsTheYounger, Flaw::TakesEldersAlong, Flaw::TriesTheSecondHalfFirst]
    {
        assert!((0..1_000).any(|seed| Case::of(seed).run(Some(flaw)).is_err()), "{flaw:?} is not caught");
    }
}

/// Works off `count` events of keys of their own, of which those at `bad` fail; returns what was applied, what failed, and the number
/// of attempts.
fn isolate(count: u32, bad: &[usize], named: bool) -> (Vec<usize>, Vec<usize>, usize) {
    let envelopes: Vec<Envelope> = (0..count).map(|key| envelope(key, 0)).collect();
    let trace = TraceHeaders::default();
    let mut isolation = Isolation::of(&events(&envelopes, &trace));
    let (mut applied, mut attempts) = (Vec::new(), 0);
    let failure = || Failure::new(FailureKind::Permanent, "bad");
    while let Some(set) = isolation.next_set() {
        attempts += 1;
        let found = set.iter().enumerate().filter(|(_, event)| bad.contains(&event.place));
        let found: Vec<(usize, Failure)> = found.map(|(index, _)| (index, failure())).collect();
        if found.is_empty() {
            applied.extend(set.iter().map(|event| event.place));
        } else {
            isolation.split(set, if named { found } else { Vec::new() }, failure());
        }
    }
    (applied, isolation.left().failed.iter().map(|(place, _)| *place).collect(), attempts)
}

#[test]
fn named_events_are_taken_out_at_once() {
    assert_eq!(isolate(6, &[1, 4], true), (vec![0, 2, 3, 5], vec![1, 4], 2));
}

#[test]
fn an_unnamed_event_is_found_by_halving_and_the_others_keep_their_order() {
    for bad in 0..33 {
        let (applied, failed, attempts) = isolate(33, &[bad], false);
        assert_eq!(applied, (0..33).filter(|place| *place != bad).collect::<Vec<_>>());
        assert_eq!(failed, [bad]);
        assert!(attempts <= 13, "{attempts} attempts");
    }
    let all: Vec<usize> = (0..50).collect();
    let (applied, failed, attempts) = isolate(50, &all, false);
    assert_eq!((applied.len(), failed.len()), (0, 50));
    assert!(attempts <= 100, "{attempts} attempts");
}

#[test]
fn a_named_place_that_is_not_in_the_set_counts_for_nothing() {
    let envelopes = [envelope(1, 0), envelope(2, 0)];
    let trace = TraceHeaders::default();
    let mut isolation = Isolation::of(&events(&envelopes, &trace));
    let set = isolation.next_set().expect("the first set");
    let failure = Failure::new(FailureKind::Permanent, "bad");
    isolation.split(set, vec![(2, failure.clone())], failure);
    assert_eq!(isolation.next_set().map(|set| set.len()), Some(1), "it is halved");
}
