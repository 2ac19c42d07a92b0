//! Applying what waits: keys whose time has come, and what operators ask for. Many keys in one transaction, as sets.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Postgres, Transaction};

use self::attempt::{Outcome, Outcomes};
use crate::apply::{Applier, ApplyError, Constraints, end_spans, refused_or_unknown};
use crate::failpoint::Failpoint;
use crate::metrics::Tally;
use crate::record::Partition;
use crate::store;
use crate::store::blocked::{self, Key};
use crate::store::letters;
use crate::store::requests::{self, Answer, Request};

mod attempt;

/// Keys that are tried in one transaction, and requests that are answered in it.
pub(crate) const KEYS_MAX: u16 = 500;

/// Pages, of `PROCESSOR_BATCH_ROWS_MAX` rows each, that one transaction applies of the keys that operators ask for. What is behind them
/// goes on in the next ones.
const PAGES_MAX: usize = 50;

impl Applier {
    /// Tries the keys of the partition that are due and those that an operator asks for, at most `keys_max` of each; if that is one,
    /// then one of either. Nothing is done if the partition is not at `position`: then somebody else works on it.
    ///
    /// Nothing but the row locks lasts beyond the transaction: whoever is killed in here leaves all as it was.
    pub(crate) async fn work_keys(
        &self,
        partition: &Partition,
        position: i64,
        constraints: Constraints,
        keys_max: u16,
    ) -> Result<Tally, ApplyError> {
        let mut connection = self.connection().await?;
        let mut transaction = self.hold(&mut connection, partition, position).await?;
        let requests = requests::lock(&mut transaction, &self.group, partition, false, keys_max.into()).await?;
        let due = if keys_max == 1 && !requests.is_empty() {
            Vec::new()
        } else {
            blocked::lock_due(&mut transaction, &self.group, partition, keys_max.into()).await?
        };
        let mut outcomes = self.drain(&mut transaction, partition, (due, &requests), constraints).await?;
        if !requests.is_empty() {
            let answers = self.answers(&mut transaction, partition, &requests, &outcomes).await?;
            requests::answer(&mut transaction, &answers).await?;
        }
        Failpoint::KeysBeforeCommit.reached(self.failpoint);
        let committed = transaction.commit().await.map_err(refused_or_unknown);
        end_spans(std::mem::take(&mut outcomes.spans), &committed);
        committed?;
        self.metrics.applied(&outcomes.events);
        Failpoint::KeysAfterCommit.reached(self.failpoint);
        Ok(outcomes.tally)
    }

    /// Finds out what would come of the dry runs that operators ask for, at most `keys_max`: does all of it, rolls it back, and writes
    /// the answers down.
    pub(crate) async fn rehearse(&self, partition: &Partition, position: i64, keys_max: u16) -> Result<(), ApplyError> {
        let mut connection = self.connection().await?;
        let mut transaction = self.hold(&mut connection, partition, position).await?;
        let requests = requests::lock(&mut transaction, &self.group, partition, true, keys_max.into()).await?;
        // Whatever would be refused at the commit must show, since there is none.
        let wanted = (Vec::new(), &*requests);
        let outcomes = self.drain(&mut transaction, partition, wanted, Constraints::CheckedEarly).await?;
        let answers = self.answers(&mut transaction, partition, &requests, &outcomes).await?;
        transaction.rollback().await?;
        let mut transaction = self.hold(&mut connection, partition, position).await?;
        requests::answer(&mut transaction, &answers).await?;
        transaction.commit().await.map_err(refused_or_unknown)
    }

    /// Has what fails by itself make way, so that whatever is behind it has its turn: the first request is answered with `reason`, or, if
    /// there is none, the key that is longest due waits for `wait`. That is no attempt of the key: no event of it is at fault.
    pub(crate) async fn give_way(
        &self,
        partition: &Partition,
        position: i64,
        is_dry_run: bool,
        (wait, reason): (Duration, &str),
    ) -> Result<(), ApplyError> {
        let mut connection = self.connection().await?;
        let mut transaction = self.hold(&mut connection, partition, position).await?;
        let requests = requests::lock(&mut transaction, &self.group, partition, is_dry_run, 1).await?;
        let mut outcomes = Outcomes::default();
        for request in &requests {
            let outcome = Outcome { applied: 0, reason: Some(reason.to_owned()) };
            match (&request.record_key, request.dead_letter_id) {
                (Some(key), _) => drop(outcomes.keys.insert(key.clone(), outcome)),
                (None, Some(id)) => drop(outcomes.without_key.insert(id, outcome)),
                (None, None) => {}
            }
        }
        if requests.is_empty() {
            blocked::postpone(&mut transaction, &self.group, partition, wait).await?;
        } else {
            let answers = self.answers(&mut transaction, partition, &requests, &outcomes).await?;
            requests::answer(&mut transaction, &answers).await?;
        }
        transaction.commit().await.map_err(refused_or_unknown)
    }

    /// Begins a transaction in which nobody else works on the partition.
    async fn hold<'a>(
        &self,
        connection: &'a mut PgConnection,
        partition: &Partition,
        position: i64,
    ) -> Result<Transaction<'a, Postgres>, ApplyError> {
        let mut transaction = connection.begin().await?;
        if !store::hold(&mut transaction, &self.group, partition, position).await? {
            transaction.rollback().await?;
            return Err(ApplyError::Fenced);
        }
        Ok(transaction)
    }

    /// Applies the first page of the keys that are due, which are locked; and of those that are asked for one page after the other, until
    /// nothing of them is left, one of them fails, or it has been [`PAGES_MAX`].
    async fn drain(
        &self,
        connection: &mut PgConnection,
        partition: &Partition,
        (mut due, requests): (Vec<Key>, &[Request]),
        constraints: Constraints,
    ) -> Result<Outcomes, ApplyError> {
        let mut keys: Vec<&[u8]> = requests.iter().filter_map(|request| request.record_key.as_deref()).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut ids: Vec<i64> = requests.iter().filter_map(|request| request.dead_letter_id).collect();
        let mut outcomes = Outcomes::default();
        for page in 0..PAGES_MAX {
            let due = std::mem::take(&mut due);
            let tried = self.read(connection, partition, due, (&keys, &std::mem::take(&mut ids))).await?;
            if page == 0 {
                outcomes.tally.keys_tried = tried.keys.len();
                Failpoint::KeysLocked.reached(self.failpoint);
            }
            let longer = self.try_keys(connection, (partition, constraints), &tried, &mut outcomes).await?;
            // Keys that were only due had their page.
            outcomes.tally.keys_resumed += longer.iter().filter(|key| !keys.contains(&key.as_slice())).count();
            keys.retain(|key| longer.contains(*key));
            if keys.is_empty() {
                break;
            }
        }
        outcomes.tally.keys_resumed += keys.len();
        Ok(outcomes)
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
