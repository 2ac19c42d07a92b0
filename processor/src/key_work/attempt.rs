//! One attempt at keys that are locked: applying what waits of them, and what becomes of them.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sqlx::postgres::PgConnection;

use crate::apply::{Applier, ApplyError, Constraints, count};
use crate::batch::Batch;
use crate::dead_letter::Reason;
use crate::failpoint::Failpoint;
use crate::handler::Failure;
use crate::metrics::{Applied, Tally};
use crate::record::{Partition, Record};
use crate::store::blocked::{self, Change, Key, State};
use crate::store::letters::{self, Waiting};
use crate::trace::ProcessSpans;
use crate::work::Worked;

/// Keys that are locked and what waits of them, ready to be tried.
pub(super) struct Tried {
    pub(super) keys: Vec<Key>,
    waiting: Vec<Waiting>,
    /// Of each of `waiting`.
    records: Vec<Record>,
}

/// What came of a key, or of a record without one.
#[derive(Debug, Default, Clone)]
pub(super) struct Outcome {
    /// Records that were applied.
    pub(super) applied: i64,
    /// Why the next one was not; none if none failed.
    pub(super) reason: Option<String>,
}

/// What came of all of them.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    pub(super) keys: HashMap<Vec<u8>, Outcome>,
    /// By `dead_letters.id`.
    pub(super) without_key: HashMap<i64, Outcome>,
    pub(super) tally: Tally,
    /// Of the events that were tried, to be ended when the transaction is.
    pub(super) spans: Vec<ProcessSpans>,
    /// Those that were applied.
    pub(super) events: Vec<Applied>,
}

impl Applier {
    /// Locks the keys that are asked for beside those that are `due`, and reads what waits.
    pub(super) async fn read(
        &self,
        connection: &mut PgConnection,
        partition: &Partition,
        due: Vec<Key>,
        (asked, ids): (&[&[u8]], &[i64]),
    ) -> Result<Tried, ApplyError> {
        let (group, topic) = (&*self.group, &*partition.topic);
        let mut keys = due;
        let known: HashSet<&[u8]> = keys.iter().map(|key| &*key.record_key).collect();
        let asked: Vec<&[u8]> = asked.iter().copied().filter(|key| !known.contains(key)).collect();
        if !asked.is_empty() {
            keys.extend(blocked::lock(connection, group, topic, &asked).await?);
        }
        let names: Vec<&[u8]> = keys.iter().map(|key| &*key.record_key).collect();
        let mut waiting = Vec::new();
        if !names.is_empty() {
            waiting = letters::of_keys(connection, group, topic, &names, self.page).await?;
        }
        if !ids.is_empty() {
            waiting.extend(letters::without_key(connection, ids).await?);
        }
        let (waiting, records) = waiting.into_iter().unzip();
        Ok(Tried { keys, waiting, records })
    }

    /// Applies what can be applied, writes down what becomes of the keys, and adds it to `outcomes`. Returns the keys of which nothing
    /// failed and something is left.
    pub(super) async fn try_keys(
        &self,
        connection: &mut PgConnection,
        (partition, constraints): (&Partition, Constraints),
        tried: &Tried,
        outcomes: &mut Outcomes,
    ) -> Result<HashSet<Vec<u8>>, ApplyError> {
        // They are sorted by their rank in the key and by type, so the firsts of all keys are one set for each type.
        let batch = Batch::read_waiting(&tried.records, &self.handlers);
        let mut worked = self.work(connection, (&[partition], &batch), &HashSet::new(), constraints).await?;
        outcomes.spans.extend(worked.spans.take());
        outcomes.events.append(&mut worked.events);
        let left: HashSet<usize> =
            worked.left.failed.iter().map(|(place, _)| *place).chain(worked.left.behind.iter().copied()).collect();
        let done = tried.waiting.iter().enumerate().filter(|(place, _)| !left.contains(place));
        let (done_places, done_ids): (Vec<usize>, Vec<i64>) = done.map(|(place, waiting)| (place, waiting.id)).unzip();
        if !done_ids.is_empty() && count(letters::remove(connection, &done_ids).await?) != done_ids.len() {
            return Err(ApplyError::RolledBack("dead letters were changed by somebody else".into()));
        }
        Failpoint::KeysApplied.reached(self.failpoint);
        self.mark(connection, tried, &worked).await?;

        for place in done_places {
            if let Some(key) = batch.key_at(place) {
                outcomes.keys.entry(key.to_vec()).or_default().applied += 1;
            }
        }
        for (place, failure) in &worked.left.failed {
            let outcome = match batch.key_at(*place) {
                Some(key) => outcomes.keys.entry(key.to_vec()).or_default(),
                None => outcomes.without_key.entry(tried.waiting[*place].id).or_default(),
            };
            outcome.reason = Some(failure.reason.clone());
        }
        outcomes.tally.applied += worked.applied;
        outcomes.tally.superseded += worked.superseded;
        outcomes.tally.repeated += worked.repeated;
        self.settle(connection, (partition, &batch), tried, &worked, outcomes).await
    }

    /// Gives what failed its reason, and takes it from what failed before and is behind another one now.
    async fn mark(&self, connection: &mut PgConnection, tried: &Tried, worked: &Worked) -> Result<(), ApplyError> {
        let failed = worked.left.failed.iter().filter_map(|(place, failure)| {
            let (waiting, record) = (tried.waiting.get(*place)?, tried.records.get(*place)?);
            Some((waiting.id, Some(Reason::new(record, &failure.reason))))
        });
        let behind = worked.left.behind.iter().filter_map(|place| tried.waiting.get(*place));
        let behind = behind.filter(|waiting| waiting.has_failed).map(|waiting| (waiting.id, None));
        let marks: Vec<(i64, Option<Reason>)> = failed.chain(behind).collect();
        if !marks.is_empty() {
            letters::mark(connection, &marks).await?;
        }
        Ok(())
    }

    /// Unblocks the keys of which nothing is left, and has the others tried again, or parks them. Returns those of which nothing failed
    /// and something is left.
    async fn settle(
        &self,
        connection: &mut PgConnection,
        (partition, batch): (&Partition, &Batch<'_>),
        tried: &Tried,
        worked: &Worked,
        outcomes: &mut Outcomes,
    ) -> Result<HashSet<Vec<u8>>, ApplyError> {
        let failed: HashMap<&[u8], (usize, &Failure)> = worked
            .left
            .failed
            .iter()
            .filter_map(|(place, failure)| Some((batch.key_at(*place)?, (*place, failure))))
            .collect();
        let drained = tried.keys.iter().map(|key| &*key.record_key).filter(|key| !failed.contains_key(key));
        let drained: Vec<&[u8]> = drained.collect();
        let mut unblocked = HashSet::new();
        if !drained.is_empty() {
            let keys = blocked::unblock(connection, &self.group, &partition.topic, &drained).await?;
            unblocked.extend(keys);
            outcomes.tally.keys_unblocked += unblocked.len();
        }
        let mut longer = HashSet::new();
        let mut parked = Vec::new();
        let mut changes = Vec::new();
        for key in &tried.keys {
            let (change, place) = match failed.get(&*key.record_key) {
                None if unblocked.contains(&key.record_key) => continue,
                // There is more of it than one transaction may apply: it goes on with the next one.
                None => {
                    longer.insert(key.record_key.clone());
                    (resumed(key), None)
                }
                Some((place, failure)) => {
                    let is_new = outcomes.keys.get(&key.record_key).is_some_and(|outcome| outcome.applied > 0);
                    (self.failed_again(key, &tried.records[*place], failure, is_new), Some((*place, *failure)))
                }
            };
            if let Some((place, failure)) = place.filter(|_| change.state == State::Parked) {
                // Not for an event that was parked before.
                if !key.is_parked || !tried.waiting[place].has_failed {
                    parked.push((place, failure));
                    outcomes.tally.keys_parked += 1;
                }
            }
            changes.push(change);
        }
        if !changes.is_empty()
            && count(blocked::change(connection, &self.group, &partition.topic, &changes).await?) != changes.len()
        {
            return Err(ApplyError::RolledBack("blocked keys were changed by somebody else".into()));
        }
        Failpoint::KeysChanged.reached(self.failpoint);
        for (place, failure) in parked {
            self.tell_parked(connection, batch, place, &failure.reason).await?;
        }
        Ok(longer)
    }

    /// What becomes of a key whose first event failed, or of whose events another one failed after progress.
    fn failed_again<'a>(&self, key: &'a Key, record: &Record, failure: &Failure, is_new: bool) -> Change<'a> {
        let (attempts, age) = if is_new { (1, Duration::ZERO) } else { (key.attempts.saturating_add(1), key.age) };
        let (state, wait) = self.next_state(failure.kind, attempts, age);
        let reason = Some(Reason::new(record, &failure.reason));
        Change { key: &key.record_key, state, reason, attempts, wait, is_new }
    }
}

/// A key that goes on at once, though it was parked before.
fn resumed(key: &Key) -> Change<'_> {
    Change {
        key: &key.record_key,
        state: State::Retrying,
        reason: None,
        attempts: 1,
        wait: Some(Duration::ZERO),
        is_new: true,
    }
}
