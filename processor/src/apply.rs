//! One batch of one partition in one transaction: position, inbox, effects, dead letters.

use std::collections::HashSet;
use std::sync::Arc;

use sqlx::postgres::PgConnection;
use sqlx::{Connection, PgPool};

use crate::batch::{Batch, Isolation, runs};
use crate::dead_letter::DeadLetter;
use crate::failpoint::Failpoint;
use crate::handler::{Handled, HandlerError, Handlers};
use crate::metrics::Tally;
use crate::record::{Event, Partition};
use crate::store;
use crate::trace::ProcessSpans;

/// Applies batches for one consumer group.
#[derive(Debug)]
pub(crate) struct Applier {
    pub(crate) pool: PgPool,
    pub(crate) group: Arc<str>,
    pub(crate) handlers: Handlers,
    pub(crate) failpoint: Option<Failpoint>,
}

/// Why a batch is not, or not surely, committed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// The position was not where this processor left it: somebody else works on the partition.
    #[error("the position has been moved by somebody else")]
    Fenced,
    /// Nothing has happened; worth another try.
    #[error("{0}")]
    RolledBack(Box<dyn std::error::Error + Send + Sync>),
    /// A constraint that is deferred to the commit refused the batch: nothing has happened.
    #[error("refused at its commit: {0}")]
    Deferred(sqlx::Error),
    /// The commit was sent and not answered: it may have happened or not.
    #[error("the outcome of the commit is unknown: {0}")]
    Unknown(sqlx::Error),
}

impl From<sqlx::Error> for ApplyError {
    fn from(error: sqlx::Error) -> Self {
        Self::RolledBack(Box::new(error))
    }
}

impl ApplyError {
    /// Whether the database could not be reached, and not one batch of it refused.
    pub(crate) fn is_database_away(&self) -> bool {
        let error = match self {
            Self::Unknown(error) => Some(error),
            Self::RolledBack(error) => error.downcast_ref::<sqlx::Error>(),
            Self::Fenced | Self::Deferred(_) => None,
        };
        let lost_to_another = |error| shared::db::sql_state(error).is_some_and(|state| state.starts_with("40"));
        error.is_some_and(|error| shared::db::is_retryable(error) && !lost_to_another(error))
    }
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
    /// Applies `batch`, whose partition stands at `position` (none: it has no row yet), and moves the position after it.
    pub(crate) async fn apply(
        &self,
        partition: &Partition,
        batch: &Batch<'_>,
        position: Option<i64>,
        constraints: Constraints,
    ) -> Result<Tally, ApplyError> {
        let Some(last) = batch.records().last() else { return Ok(Tally::default()) };
        let mut transaction = self.pool.begin().await?;
        if !store::advance(&mut transaction, &self.group, partition, position, last).await? {
            transaction.rollback().await?;
            return Err(ApplyError::Fenced);
        }
        let fresh = if batch.handled() == 0 {
            HashSet::new()
        } else {
            store::take_in(&mut transaction, &self.group, &batch.inbox_keys()).await?
        };
        let mut events = batch.fresh_events(fresh);
        let spans = ProcessSpans::open(&events, partition);
        spans.enter(&mut events);

        let mut refused = Vec::new();
        let mut superseded = 0;
        for run in runs(&events) {
            let mut isolation = Isolation::of(run);
            superseded += self.apply_run(&mut transaction, &mut isolation, constraints).await?.superseded;
            refused.append(&mut isolation.refused);
        }
        let letters = dead_letters(batch, &refused);
        if !letters.is_empty() {
            store::bury(&mut transaction, &self.group, partition, &letters).await?;
        }
        Failpoint::BeforeDbCommit.reached(self.failpoint);
        transaction.commit().await.map_err(refused_or_unknown)?;
        Failpoint::AfterDbCommit.reached(self.failpoint);
        Ok(Tally {
            applied: events.len() - refused.len(),
            superseded,
            repeated: batch.handled() - events.len(),
            passed_over: batch.passed_over,
            dead_lettered: letters.len(),
        })
    }

    /// Applies a set of events of one type, without those that are refused for good. At most twice as many attempts as events.
    async fn apply_run(
        &self,
        connection: &mut PgConnection,
        isolation: &mut Isolation<'_>,
        constraints: Constraints,
    ) -> Result<Handled, ApplyError> {
        let mut sum = Handled::default();
        while let Some(set) = isolation.next_set() {
            match self.attempt(connection, &set, constraints).await {
                Ok(handled) => sum.superseded += handled.superseded,
                Err(HandlerError::Permanent { refused, reason }) => isolation.split(set, refused, reason),
                Err(HandlerError::Retryable(error)) => return Err(ApplyError::RolledBack(error)),
            }
        }
        Ok(sum)
    }

    /// Calls the handler under a savepoint, so that what it did can be undone and its neighbours' effects stay.
    async fn attempt(
        &self,
        connection: &mut PgConnection,
        events: &[Event<'_>],
        constraints: Constraints,
    ) -> Result<Handled, HandlerError> {
        let Some(first) = events.first() else { return Ok(Handled::default()) };
        let mut savepoint = connection.begin().await.map_err(HandlerError::retryable)?;
        let mut outcome = self.handlers.handle(first.event_type(), events, &mut savepoint).await;
        if outcome.is_ok() && constraints == Constraints::CheckedEarly {
            outcome = check_constraints(&mut savepoint).await.map_err(HandlerError::from).and(outcome);
        }
        if outcome.is_ok() {
            // Fails when the handler went on after a statement that failed: then its error is permanent.
            savepoint.commit().await?;
        } else {
            savepoint.rollback().await.map_err(HandlerError::retryable)?;
        }
        outcome
    }
}

/// Checks deferred constraints now, and leaves them deferred: the modes are the savepoint's, and go with it.
async fn check_constraints(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql("SAVEPOINT checking; SET CONSTRAINTS ALL IMMEDIATE; ROLLBACK TO SAVEPOINT checking")
        .execute(connection)
        .await
        .map(|_| ())
}

/// Postgres says of a deferred constraint that the transaction is rolled back. Any other error at COMMIT may hide that it
/// happened: a server that shuts down can say so after it has committed.
fn refused_or_unknown(error: sqlx::Error) -> ApplyError {
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

/// The records of the batch that are no events, and the events that were refused, by their offsets.
fn dead_letters<'a>(batch: &Batch<'a>, refused: &[(i64, String)]) -> Vec<DeadLetter<'a>> {
    let records = batch.records();
    let broken = batch.broken.iter().filter_map(|(place, reason)| Some((records.get(*place)?, reason)));
    let refused = refused.iter().filter_map(|(offset, reason)| {
        // Offsets go up within a batch.
        let place = records.binary_search_by_key(offset, |record| record.offset).ok()?;
        Some((records.get(place)?, reason))
    });
    let mut letters: Vec<DeadLetter<'a>> =
        broken.chain(refused).map(|(record, reason)| DeadLetter::new(record, reason)).collect();
    letters.sort_unstable_by_key(|letter| letter.record.offset);
    letters
}
