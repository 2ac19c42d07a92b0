//! One batch of a partition, or small ones of several, in one transaction: position, inbox, effects, and what could not be applied.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::db::{Database, MaybePostgres, PooledConnection, words};
use shared::spans::Spans;
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Postgres, Transaction};
use tokio::time::timeout;

use crate::batch::Batch;
use crate::dead_letter::{DeadLetter, Reason};
use crate::failpoint::Failpoint;
use crate::gaps::Gap;
use crate::handler::{FailureKind, Handlers};
use crate::metrics::{Applied, Metrics, Tally};
use crate::record::Partition;
use crate::retry::{Next, Schedule};
use crate::store::blocked::{self, Change, State};
use crate::store::letters::{self, Page};
use crate::store::{self, Share};
use crate::trace::ProcessSpans;
use crate::work::Worked;

/// Applies batches for one consumer group.
#[derive(Debug)]
pub(crate) struct Applier {
    pub(crate) database: Database,
    pub(crate) group: Arc<str>,
    pub(crate) handlers: Handlers,
    /// When keys that failed are tried again.
    pub(crate) schedule: Schedule,
    /// What one transaction reads back of the records that wait.
    pub(crate) page: Page,
    pub(crate) failpoint: Option<Failpoint>,
    /// Makes spans, if anybody collects them.
    pub(crate) spans: Spans,
    pub(crate) metrics: Metrics,
}

/// Why a batch is not, or not surely, committed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// The position was not where this processor left it: somebody else works on the partition.
    #[error("the position has been moved by somebody else")]
    Fenced,
    /// Of the shares of several partitions, those at these places cannot be applied together with others: their position was moved, or a
    /// record of theirs is to be set aside. Nothing has happened.
    #[error("{} of the partitions are to be worked on alone", .0.len())]
    Apart(Vec<usize>),
    /// Nothing has happened; worth another try.
    #[error("{}", words(&**.0))]
    RolledBack(Box<dyn std::error::Error + Send + Sync>),
    /// A constraint that is deferred to the commit refused the batch: nothing has happened.
    #[error("refused at its commit: {}", words(.0))]
    Deferred(sqlx::Error),
    /// The commit was sent and not answered: it may have happened or not.
    #[error("the outcome of the commit is unknown: {}", words(.0))]
    Unknown(sqlx::Error),
}

impl From<sqlx::Error> for ApplyError {
    fn from(error: sqlx::Error) -> Self {
        Self::RolledBack(Box::new(error))
    }
}

impl MaybePostgres for ApplyError {
    fn postgres(&self) -> Option<&sqlx::Error> {
        match self {
            Self::Unknown(error) => Some(error),
            Self::RolledBack(error) => error.downcast_ref::<sqlx::Error>(),
            Self::Fenced | Self::Apart(_) | Self::Deferred(_) => None,
        }
    }
}

impl ApplyError {
    /// Whether the database could not be reached, and not one batch of it refused.
    pub(crate) fn is_database_away(&self) -> bool {
        let error = self.postgres();
        let lost_to_another = |error| shared::db::sql_state(error).is_some_and(|state| state.starts_with("40"));
        error.is_some_and(|error| shared::db::is_retryable(error) && !lost_to_another(error))
    }
}

/// For how long several partitions may be worked on together, but for the commit. Whatever takes longer is to keep nobody but its own partition.
const TOGETHER_MAX: Duration = Duration::from_millis(100);

/// Begins a transaction for several partitions: none of them waits for a row that somebody has locked for an order of another one.
const BEGIN_TOGETHER: &str = "BEGIN; SET LOCAL lock_timeout = '50ms'";

/// A batch that is applied but for the commit.
struct Prepared<'a> {
    transaction: Transaction<'a, Postgres>,
    tally: Tally,
    spans: Option<ProcessSpans>,
    applied: Vec<Applied>,
}

/// Whether deferred constraints are checked before the commit, where the event that violates one can still be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Constraints {
    /// As they are declared. One round trip less.
    AsDeclared,
    /// After every set of events, since a commit was refused.
    CheckedEarly,
}

impl Applier {
    /// Applies `batch`, which has records of each of `shares`, and moves their positions after them. With several partitions, all of it is
    /// applied, or nothing: what must be set aside, or takes long, is worked on alone.
    pub(crate) async fn apply(
        &self,
        shares: &[Share<'_>],
        batch: &Batch<'_>,
        constraints: Constraints,
    ) -> Result<Tally, ApplyError> {
        if batch.records().is_empty() {
            return Ok(Tally::default());
        }
        let watch = self.database.watch();
        let mut connection = watch.bound(self.connection()).await?;
        let prepare = watch.bound(self.prepare(&mut connection, shares, batch, constraints));
        let Prepared { transaction, tally, spans, applied } = match shares {
            [_] => prepare.await?,
            _ => timeout(TOGETHER_MAX, prepare).await.map_err(|_| took_long())??,
        };
        Failpoint::BeforeDbCommit.reached(self.failpoint);
        let committed = watch.bound(transaction.commit()).await.map_err(refused_or_unknown);
        // Another batch may wait for it.
        drop(connection);
        end_spans(spans, &committed);
        committed?;
        self.metrics.applied(&applied);
        Failpoint::AfterDbCommit.reached(self.failpoint);
        Ok(tally)
    }

    /// Does all of it but the commit.
    async fn prepare<'a>(
        &self,
        connection: &'a mut PgConnection,
        shares: &[Share<'_>],
        batch: &Batch<'_>,
        constraints: Constraints,
    ) -> Result<Prepared<'a>, ApplyError> {
        let alone = match shares {
            [share] => Some(share.partition),
            _ => None,
        };
        if alone.is_none() && !batch.broken.is_empty() {
            return Err(apart(batch, batch.broken.iter().map(|(place, _)| *place)));
        }
        let mut transaction =
            if alone.is_some() { connection.begin().await? } else { connection.begin_with(BEGIN_TOGETHER).await? };
        let missed = store::advance(&mut transaction, &self.group, shares, batch.lasts()).await?;
        if !missed.is_empty() {
            transaction.rollback().await?;
            let is_missed = |place: &usize| missed.contains(&shares[*place].partition.number);
            return Err(match alone {
                Some(_) => ApplyError::Fenced,
                None => ApplyError::Apart((0..shares.len()).filter(is_missed).collect()),
            });
        }
        let mut tally = Tally { passed_over: batch.passed_over, ..Tally::default() };
        let (mut spans, mut applied) = (None, Vec::new());
        if let Some(Share { partition: Partition { topic, .. }, .. }) = shares.first()
            && !batch.is_empty()
        {
            let blocked = blocked::among(&mut transaction, &self.group, topic, &batch.keys()).await?;
            let blocked = HashSet::from_iter(blocked);
            if alone.is_none() && !blocked.is_empty() {
                return Err(apart(batch, batch.plan(&blocked).behind));
            }
            let partitions: Vec<&Partition> = shares.iter().map(|share| share.partition).collect();
            let mut worked = self.work(&mut transaction, (&partitions, batch), &blocked, constraints).await?;
            tally.applied = worked.applied;
            tally.superseded = worked.superseded;
            tally.repeated = worked.repeated;
            spans = worked.spans.take();
            applied = std::mem::take(&mut worked.events);
            if let Some(partition) = alone {
                self.set_aside(&mut transaction, (partition, batch), &worked, &mut tally).await?;
            }
        }
        Ok(Prepared { transaction, tally, spans, applied })
    }

    /// Moves the position of a partition past offsets that hold no record. Returns whether it was where they begin.
    pub(crate) async fn pass(&self, partition: &Partition, gap: Gap) -> Result<bool, sqlx::Error> {
        self.database.with(async |connection| store::pass(connection, &self.group, partition, gap).await).await
    }

    /// A connection for a transaction.
    pub(crate) async fn connection(&self) -> Result<PooledConnection, sqlx::Error> {
        let start = Instant::now();
        let connection = self.database.acquire().await;
        self.metrics.waited_for_connection(start);
        connection
    }

    /// Blocks the keys of what failed, and writes down all that was not applied.
    async fn set_aside(
        &self,
        connection: &mut PgConnection,
        (partition, batch): (&Partition, &Batch<'_>),
        worked: &Worked,
        tally: &mut Tally,
    ) -> Result<(), ApplyError> {
        let left = &worked.left;
        if left.failed.is_empty() && left.behind.is_empty() {
            return Ok(());
        }
        let changes = self.blocks(batch, worked);
        if !changes.is_empty() {
            blocked::block(connection, &self.group, partition, &changes).await?;
        }
        Failpoint::AfterBlocking.reached(self.failpoint);
        let mut reasons: Vec<(usize, Option<&str>)> = left.behind.iter().map(|place| (*place, None)).collect();
        reasons.extend(left.failed.iter().map(|(place, failure)| (*place, Some(failure.reason.as_str()))));
        reasons.sort_unstable_by_key(|(place, _)| *place);
        let records = batch.records();
        let letter = |(place, reason): &(usize, Option<&str>)| Some(DeadLetter::new(records.get(*place)?, *reason));
        let letters: Vec<DeadLetter<'_>> = reasons.iter().filter_map(letter).collect();
        letters::bury(connection, &self.group, partition, &letters).await?;
        Failpoint::AfterBurying.reached(self.failpoint);
        // Of the keys that waited before, one that waits for an elder may have got it.
        let fresh: HashSet<&[u8]> = changes.iter().map(|change| change.key).collect();
        let behind = left.behind.iter().filter_map(|place| batch.key_at(*place));
        let mut known: Vec<&[u8]> = behind.filter(|key| !fresh.contains(key)).collect();
        known.sort_unstable();
        known.dedup();
        if !known.is_empty() {
            tally.keys_woken = count(blocked::wake(connection, &self.group, &partition.topic, &known).await?);
        }
        for change in &changes {
            tally.block(change.state);
        }
        // Last, as what it appends to the outbox must come after all locks.
        for (place, failure) in &left.failed {
            let is_parked =
                |change: &Change<'_>| Some(change.key) == batch.key_at(*place) && change.state == State::Parked;
            if changes.iter().any(is_parked) {
                self.tell_parked(connection, batch, *place, &failure.reason).await?;
            }
        }
        tally.dead_lettered = left.failed.iter().filter(|(_, failure)| failure.kind == FailureKind::Permanent).count();
        tally.waiting = letters.len() - tally.dead_lettered;
        Ok(())
    }

    /// What becomes of the keys whose first events failed for the first time.
    fn blocks<'a>(&self, batch: &Batch<'a>, worked: &Worked) -> Vec<Change<'a>> {
        let records = batch.records();
        let change = |(place, failure): &(usize, _)| {
            let failure: &crate::handler::Failure = failure;
            let record = records.get(*place)?;
            let key = record.ordering_key()?;
            let (state, wait) = self.next_state(failure.kind, 1, Duration::ZERO);
            let reason = Some(Reason::new(record, &failure.reason));
            Some(Change { key, state, reason, attempts: 1, wait, is_new: true })
        };
        worked.left.failed.iter().filter_map(change).collect()
    }

    /// How a key waits whose first event has failed so for the `attempts`th time, `age` after the first time, and until its next attempt.
    pub(crate) fn next_state(&self, kind: FailureKind, attempts: i32, age: Duration) -> (State, Option<Duration>) {
        let attempts = u32::try_from(attempts).unwrap_or(u32::MAX);
        match self.schedule.next(kind, attempts, age, rand::random()) {
            Next::Again(wait) => (state_of(kind), Some(wait)),
            Next::Park => (State::Parked, None),
        }
    }
}

/// The partitions of the records at `places` are to be worked on alone.
pub(crate) fn apart(batch: &Batch<'_>, places: impl IntoIterator<Item = usize>) -> ApplyError {
    let mut parts: Vec<usize> = places.into_iter().map(|place| batch.part_of(place)).collect();
    parts.sort_unstable();
    parts.dedup();
    ApplyError::Apart(parts)
}

fn took_long() -> ApplyError {
    ApplyError::RolledBack(format!("several partitions together took longer than {TOGETHER_MAX:?}").into())
}

/// How a key waits whose first event failed so, before it is given up.
const fn state_of(kind: FailureKind) -> State {
    match kind {
        FailureKind::Retryable => State::Retrying,
        FailureKind::TooEarly => State::Waiting,
        FailureKind::Permanent => State::Parked,
    }
}

/// Records the spans of a transaction that was to be committed. If it surely was not, there is nothing to tell.
pub(crate) fn end_spans(spans: impl IntoIterator<Item = ProcessSpans>, committed: &Result<(), ApplyError>) {
    let error = match committed {
        Ok(()) => None,
        Err(error @ ApplyError::Unknown(_)) => Some(error.to_string()),
        Err(_) => return,
    };
    for spans in spans {
        spans.end(error.as_deref());
    }
}

/// A number of rows.
pub(crate) fn count(rows: u64) -> usize {
    usize::try_from(rows).unwrap_or(usize::MAX)
}

/// Postgres says of a deferred constraint that the transaction is rolled back. Any other error at COMMIT may hide that it
/// happened: a server that shuts down can say so after it has committed.
pub(crate) fn refused_or_unknown(error: sqlx::Error) -> ApplyError {
    match shared::db::sql_state(&error) {
        Some(state) if ["22", "23", "40"].iter().any(|class| state.starts_with(class)) => {
            if state.starts_with("40") {
                error.into()
            } else {
                ApplyError::Deferred(error)
            }
        }
        _ => ApplyError::Unknown(error),
    }
}
