//! Applying what can be applied of a batch, inside the caller's transaction.

use std::collections::HashSet;

use shared::spans;
use sqlx::Connection;
use sqlx::postgres::PgConnection;

use crate::apply::{Applier, ApplyError, Constraints, apart};
use crate::batch::Batch;
use crate::failpoint::Failpoint;
use crate::handler::{Failure, FailureKind, Handled, HandlerError, failure};
use crate::isolation::{Isolation, Left};
use crate::metrics::Applied;
use crate::record::{Event, Partition};
use crate::store;
use crate::store::inbox::InboxKey;
use crate::trace::ProcessSpans;

/// What came of a batch.
#[derive(Debug, Default)]
pub(crate) struct Worked {
    /// What is left over, by places in the batch: to be kept, or to stay, in the dead letters.
    pub(crate) left: Left,
    /// Events that were applied.
    pub(crate) applied: usize,
    /// Of those: without effect.
    pub(crate) superseded: usize,
    /// Events known from the inbox.
    pub(crate) repeated: usize,
    /// The events that were applied, if it is known when they occurred.
    pub(crate) events: Vec<Applied>,
    /// To be ended when the transaction is.
    pub(crate) spans: Option<ProcessSpans>,
}

impl Applier {
    /// Applies the events of `batch` that are not of the keys in `blocked`, and not behind one that fails. Of what fails, nothing is left
    /// in the database, the inbox included. With records of several partitions nothing may fail: those where something does are to be worked on alone.
    pub(crate) async fn work(
        &self,
        connection: &mut PgConnection,
        (partitions, batch): (&[&Partition], &Batch<'_>),
        blocked: &HashSet<Vec<u8>>,
        constraints: Constraints,
    ) -> Result<Worked, ApplyError> {
        let plan = batch.plan(blocked);
        let fresh = if plan.tried() == 0 {
            HashSet::new()
        } else {
            store::take_in(&mut *connection, &self.group, partitions, &plan.arrivals()).await?
        };
        Failpoint::AfterInbox.reached(self.failpoint);
        let mut events = plan.fresh_events(fresh);
        let opened = ProcessSpans::open((&self.spans, &self.group), (partitions, batch), &events);
        let (mut spans, contexts) = opened.unzip();
        for event in &mut events {
            // What it causes continues from its span; without one, from where it came from itself.
            let own = contexts.as_ref().and_then(|contexts| contexts.get(&event.place));
            event.trace = own.unwrap_or(event.trace);
        }

        let mut isolation = Isolation::of(&events);
        let mut worked = Worked { repeated: plan.tried() - events.len(), ..Worked::default() };
        while let Some(set) = isolation.next_set() {
            let start = spans.as_ref().map(|_| spans::now());
            let attempt = self.attempt(connection, &set, constraints);
            let outcome = match spans.as_ref().and_then(ProcessSpans::context) {
                Some(context) => spans::within(context, attempt).await,
                None => attempt.await,
            };
            if let (Some(spans), Some(start)) = (&mut spans, start) {
                spans.handled(&set, start);
            }
            match outcome {
                Ok(handled) => worked.superseded += handled.superseded,
                Err(error) => {
                    let event_type = set.first().map_or("", Event::event_type);
                    let nobodys = |error| ApplyError::RolledBack(failure::named(event_type, error));
                    let (named, unnamed) = error.into_parts().map_err(nobodys)?;
                    if partitions.len() > 1 {
                        let named: Vec<usize> =
                            named.iter().filter_map(|(index, _)| set.get(*index)).map(|event| event.place).collect();
                        let all = set.iter().map(|event| event.place);
                        return Err(apart(batch, if named.is_empty() { all.collect() } else { named }));
                    }
                    isolation.split(set, named, unnamed);
                }
            }
        }
        Failpoint::AfterHandlers.reached(self.failpoint);
        let mut left = isolation.left();
        worked.applied = events.len() - left.failed.len() - left.behind.len();
        worked.events = applied(&events, &left, (batch, spans.as_ref()));
        self.take_out(connection, batch, &left).await?;
        let failed_keys: HashSet<Option<&[u8]>> = left.failed.iter().map(|(place, _)| batch.key_at(*place)).collect();
        for (place, reason) in plan.broken {
            // An elder of its key that failed comes first.
            match batch.key_at(place) {
                Some(key) if failed_keys.contains(&Some(key)) => left.behind.push(place),
                _ => left.failed.push((place, Failure::new(FailureKind::Permanent, reason))),
            }
        }
        left.behind.extend(plan.behind);
        if let Some(spans) = &mut spans {
            spans.settle(batch, &left);
        }
        worked.spans = spans;
        worked.left = left;
        Ok(worked)
    }

    /// Takes out of the inbox what was not applied after all: it comes again, out of the dead letters.
    async fn take_out(&self, connection: &mut PgConnection, batch: &Batch<'_>, left: &Left) -> Result<(), ApplyError> {
        let places = left.failed.iter().map(|(place, _)| place).chain(&left.behind);
        let keys: Vec<_> = places.filter_map(|place| Some(InboxKey::of(batch.event_at(*place)?.envelope))).collect();
        if !keys.is_empty() {
            store::take_out(connection, &self.group, &keys).await?;
        }
        Ok(())
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

    /// Tells the handler that the event at `place` is parked, under a savepoint. The key is parked whatever it says: what it fails over
    /// now it would fail over again.
    pub(crate) async fn tell_parked(
        &self,
        connection: &mut PgConnection,
        batch: &Batch<'_>,
        place: usize,
        reason: &str,
    ) -> Result<(), ApplyError> {
        let Some(event) = batch.event_at(place) else { return Ok(()) };
        let mut savepoint = connection.begin().await?;
        let told = match self.handlers.on_parked(&event, reason, &mut savepoint).await {
            Ok(()) => savepoint.commit().await.map_err(HandlerError::from),
            Err(error) => {
                savepoint.rollback().await?;
                Err(error)
            }
        };
        if let Err(error) = told {
            let (named, unnamed) = error.into_parts().map_err(ApplyError::RolledBack)?;
            let failure = named.into_iter().next().map_or(unnamed, |(_, failure)| failure);
            tracing::error!(
                event.type = event.event_type(),
                messaging.message.id = %event.id(),
                error = failure.reason,
                "parked without its handler's doing"
            );
        }
        Ok(())
    }
}

/// The events that are not left over.
fn applied(events: &[Event<'_>], left: &Left, (batch, spans): (&Batch<'_>, Option<&ProcessSpans>)) -> Vec<Applied> {
    let left: HashSet<usize> = left.failed.iter().map(|(place, _)| *place).chain(left.behind.iter().copied()).collect();
    let applied = events.iter().filter(|event| !left.contains(&event.place));
    applied
        .filter_map(|event| {
            Some(Applied {
                occurred_at: event.envelope.occurred_at?.into(),
                received_at: batch.records().get(event.place)?.received_at,
                trace_id: spans.and_then(|spans| spans.trace_id(event.place)),
            })
        })
        .collect()
}

/// Checks deferred constraints now, and leaves them deferred: the modes are the savepoint's, and go with it.
async fn check_constraints(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql("SAVEPOINT checking; SET CONSTRAINTS ALL IMMEDIATE; ROLLBACK TO SAVEPOINT checking")
        .execute(connection)
        .await
        .map(|_| ())
}
