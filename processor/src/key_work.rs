//! Applying what waits: keys whose time has come, and what operators ask for. Many keys in one transaction, as sets.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{Postgres, Transaction};

use crate::apply::{Applier, ApplyError, Constraints, count, refused_or_unknown};
use crate::batch::Batch;
use crate::dead_letter::Reason;
use crate::failpoint::Failpoint;
use crate::handler::Failure;
use crate::metrics::Tally;
use crate::record::{Partition, Record};
use crate::store;
use crate::store::blocked::{self, Change, Key, State};
use crate::store::letters::{self, Waiting};
use crate::store::requests::{self, Answer, Request};
use crate::work::Worked;

/// Keys that are tried in one transaction, and requests that are answered in it.
pub(crate) const KEYS_MAX: u16 = 500;

/// Keys that are locked and what waits of them, ready to be tried.
struct Tried {
    keys: Vec<Key>,
    waiting: Vec<Waiting>,
    /// Of each of `waiting`.
    records: Vec<Record>,
}

/// What came of a key, or of a record without one.
#[derive(Debug, Default, Clone)]
struct Outcome {
    /// Records that were applied.
    applied: i64,
    /// Why the next one was not; none if none failed.
    reason: Option<String>,
}

/// What came of all of them.
#[derive(Debug, Default)]
struct Outcomes {
    keys: HashMap<Vec<u8>, Outcome>,
    /// By `dead_letters.id`.
    without_key: HashMap<i64, Outcome>,
    tally: Tally,
}

impl Applier {
    /// Tries the keys of the partition that are due and those that an operator asks for. Nothing is done if the partition is not at
    /// `position`: then somebody else works on it.
    ///
    /// Nothing but the row locks lasts beyond the transaction: whoever is killed in here leaves all as it was.
    pub(crate) async fn work_keys(
        &self,
        partition: &Partition,
        position: i64,
        constraints: Constraints,
    ) -> Result<Tally, ApplyError> {
        let mut transaction = self.hold(partition, position).await?;
        let requests = requests::lock(&mut transaction, &self.group, partition, false, KEYS_MAX.into()).await?;
        let due = blocked::lock_due(&mut transaction, &self.group, partition, KEYS_MAX.into()).await?;
        let tried = self.read(&mut transaction, partition, due, &requests).await?;
        Failpoint::KeysLocked.reached(self.failpoint);
        let outcomes = self.try_keys(&mut transaction, partition, &tried, constraints).await?;
        if !requests.is_empty() {
            let answers = self.answers(&mut transaction, partition, &requests, &outcomes).await?;
            requests::answer(&mut transaction, &answers).await?;
        }
        Failpoint::KeysBeforeCommit.reached(self.failpoint);
        transaction.commit().await.map_err(refused_or_unknown)?;
        Failpoint::KeysAfterCommit.reached(self.failpoint);
        Ok(outcomes.tally)
    }

    /// Finds out what would come of the dry runs that operators ask for: does all of it, rolls it back, and writes the answers down.
    pub(crate) async fn rehearse(&self, partition: &Partition, position: i64) -> Result<(), ApplyError> {
        let mut transaction = self.hold(partition, position).await?;
        let requests = requests::lock(&mut transaction, &self.group, partition, true, KEYS_MAX.into()).await?;
        let tried = self.read(&mut transaction, partition, Vec::new(), &requests).await?;
        // Whatever would be refused at the commit must show, since there is none.
        let outcomes = self.try_keys(&mut transaction, partition, &tried, Constraints::CheckedEarly).await?;
        let answers = self.answers(&mut transaction, partition, &requests, &outcomes).await?;
        transaction.rollback().await?;
        let mut transaction = self.hold(partition, position).await?;
        requests::answer(&mut transaction, &answers).await?;
        transaction.commit().await.map_err(refused_or_unknown)
    }

    /// Begins a transaction in which nobody else works on the partition.
    async fn hold(&self, partition: &Partition, position: i64) -> Result<Transaction<'static, Postgres>, ApplyError> {
        let mut transaction = self.pool.begin().await?;
        if !store::hold(&mut transaction, &self.group, partition, position).await? {
            transaction.rollback().await?;
            return Err(ApplyError::Fenced);
        }
        Ok(transaction)
    }

    /// Locks the keys that are asked for beside those that are `due`, and reads what waits.
    async fn read(
        &self,
        connection: &mut PgConnection,
        partition: &Partition,
        due: Vec<Key>,
        requests: &[Request],
    ) -> Result<Tried, ApplyError> {
        let (group, topic) = (&*self.group, &*partition.topic);
        let mut keys = due;
        let known: HashSet<&[u8]> = keys.iter().map(|key| &*key.record_key).collect();
        let asked = requests.iter().filter_map(|request| request.record_key.as_deref());
        let mut asked: Vec<&[u8]> = asked.filter(|key| !known.contains(key)).collect();
        asked.sort_unstable();
        asked.dedup();
        if !asked.is_empty() {
            keys.extend(blocked::lock(connection, group, topic, &asked).await?);
        }
        let names: Vec<&[u8]> = keys.iter().map(|key| &*key.record_key).collect();
        let mut waiting = Vec::new();
        if !names.is_empty() {
            waiting = letters::of_keys(connection, group, topic, &names, self.page).await?;
        }
        let ids: Vec<i64> = requests.iter().filter_map(|request| request.dead_letter_id).collect();
        if !ids.is_empty() {
            waiting.extend(letters::without_key(connection, &ids).await?);
        }
        let (waiting, records) = waiting.into_iter().unzip();
        Ok(Tried { keys, waiting, records })
    }

    /// Applies what can be applied, and writes down what becomes of the keys.
    async fn try_keys(
        &self,
        connection: &mut PgConnection,
        partition: &Partition,
        tried: &Tried,
        constraints: Constraints,
    ) -> Result<Outcomes, ApplyError> {
        // They are sorted by their rank in the key and by type, so the firsts of all keys are one set for each type.
        let batch = Batch::read_waiting(&tried.records, &self.handlers);
        let worked = self.work(connection, (partition, &batch), &HashSet::new(), constraints).await?;
        let left: HashSet<usize> =
            worked.left.failed.iter().map(|(place, _)| *place).chain(worked.left.behind.iter().copied()).collect();
        let done = tried.waiting.iter().enumerate().filter(|(place, _)| !left.contains(place));
        let (done_places, done_ids): (Vec<usize>, Vec<i64>) = done.map(|(place, waiting)| (place, waiting.id)).unzip();
        if !done_ids.is_empty() && count(letters::remove(connection, &done_ids).await?) != done_ids.len() {
            return Err(ApplyError::RolledBack("dead letters were changed by somebody else".into()));
        }
        Failpoint::KeysApplied.reached(self.failpoint);
        self.mark(connection, tried, &worked).await?;

        let mut outcomes = Outcomes::default();
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
        outcomes.tally = Tally {
            applied: worked.applied,
            superseded: worked.superseded,
            repeated: worked.repeated,
            keys_tried: tried.keys.len(),
            ..Tally::default()
        };
        self.settle(connection, (partition, &batch), tried, &worked, &mut outcomes).await?;
        Ok(outcomes)
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

    /// Unblocks the keys of which nothing is left, and has the others tried again, or parks them.
    async fn settle(
        &self,
        connection: &mut PgConnection,
        (partition, batch): (&Partition, &Batch<'_>),
        tried: &Tried,
        worked: &Worked,
        outcomes: &mut Outcomes,
    ) -> Result<(), ApplyError> {
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
            outcomes.tally.keys_unblocked = unblocked.len();
        }
        let mut parked = Vec::new();
        let mut changes = Vec::new();
        for key in &tried.keys {
            let (change, place) = match failed.get(&*key.record_key) {
                None if unblocked.contains(&key.record_key) => continue,
                // There is more of it than one transaction may apply: it goes on with the next one.
                None => {
                    outcomes.tally.keys_resumed += 1;
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
        Ok(())
    }

    /// What becomes of a key whose first event failed, or of whose events another one failed after progress.
    fn failed_again<'a>(&self, key: &'a Key, record: &Record, failure: &Failure, is_new: bool) -> Change<'a> {
        let (attempts, age) = if is_new { (1, Duration::ZERO) } else { (key.attempts.saturating_add(1), key.age) };
        let (state, wait) = self.next_state(failure.kind, attempts, age);
        let reason = Some(Reason::new(record, &failure.reason));
        Change { key: &key.record_key, state, reason, attempts, wait, is_new }
    }

    /// What came of each request.
    async fn answers(
        &self,
        connection: &mut PgConnection,
        partition: &Partition,
        requests: &[Request],
        outcomes: &Outcomes,
    ) -> Result<Vec<Answer>, ApplyError> {
        let keys: Vec<&[u8]> = requests.iter().filter_map(|request| request.record_key.as_deref()).collect();
        let mut left: HashMap<&[u8], i64> = HashMap::new();
        if !keys.is_empty() {
            let counts = letters::count(connection, &self.group, &partition.topic, &keys).await?;
            left.extend(keys.iter().copied().zip(counts));
        }
        let answer = |request: &Request| {
            let (outcome, waiting) = match (&request.record_key, request.dead_letter_id) {
                (Some(key), _) => (outcomes.keys.get(key), left.get(&**key).copied().unwrap_or_default()),
                (None, Some(id)) => {
                    let outcome = outcomes.without_key.get(&id);
                    (outcome, outcome.map_or(0, |outcome| i64::from(outcome.reason.is_some())))
                }
                (None, None) => (None, 0),
            };
            let outcome = outcome.cloned().unwrap_or_default();
            Answer { id: request.id, applied: outcome.applied, waiting, reason: outcome.reason }
        };
        Ok(requests.iter().map(answer).collect())
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
