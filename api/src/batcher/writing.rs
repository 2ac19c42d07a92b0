//! What each writer does: take a group, write it, answer it.

use std::sync::Arc;
use std::time::Instant;

use shared::db::DatabaseConfig;
use shared::spans::Spans;
use shared::throttle::Throttle;
use uuid::Uuid;

use super::Refusal;
use super::job::Job;
use super::outage::Outage;
use super::queue::Queue;
use super::thread::Opening;
use crate::config::Limits;
use crate::metrics::Metrics;
use crate::observe::StatementSpans;
use crate::store::{KeyConflict, NewOrders, StoreError, Writer, Written};

/// Attempts at a statement in whose way an idempotency key is: the second one sees whoever was faster.
const TRIES_MAX: usize = 3;

/// Every request may fail alike.
static UNWRITTEN: Throttle = Throttle::new();

pub(super) struct WriterTask {
    queue: Arc<Queue>,
    rows_max: usize,
    writer: Writer,
    orders: NewOrders,
    metrics: Metrics,
    outage: Arc<Outage>,
    spans: Spans,
}

impl WriterTask {
    pub(super) fn new(
        queue: &Arc<Queue>,
        outage: &Arc<Outage>,
        database: &DatabaseConfig,
        limits: &Limits,
        metrics: &Metrics,
    ) -> Self {
        Self {
            queue: Arc::clone(queue),
            rows_max: limits.batch_rows_max,
            writer: Writer::new(database, limits),
            orders: NewOrders::default(),
            metrics: metrics.clone(),
            outage: Arc::clone(outage),
            spans: shared::telemetry::spans(),
        }
    }

    /// Opens its connection, drops `opening` whatever came of it, and writes orders until the queue is closed and empty.
    pub(super) async fn run(mut self, opening: Opening) {
        self.writer.open_ahead().await;
        drop(opening);
        let mut jobs = Vec::with_capacity(self.rows_max);
        while self.queue.take(&mut jobs, self.rows_max).await {
            // More than one statement may have, where one request's orders are more: then one after the other, in their order.
            while !jobs.is_empty() {
                let rest = jobs.split_off(jobs.len().min(self.rows_max));
                let group = std::mem::replace(&mut jobs, rest);
                self.write(group, &mut jobs).await;
            }
        }
        self.writer.close().await;
    }

    /// Writes and answers all of `group`; and `next`, if Postgres is away.
    async fn write(&mut self, mut group: Vec<Job>, next: &mut Vec<Job>) {
        self.orders.clear();
        for job in &mut group {
            // UUIDs v7 of one process rise, and so do the ids that the rows get.
            let key = job.claim.as_ref().map(|claim| claim.key);
            self.orders.push(job.order, Uuid::now_v7(), job.headers.take(), key);
        }
        let traced = StatementSpans::begin(&self.spans, self.orders.headers());
        let result = insert(&mut self.writer, &self.orders, &self.metrics).await;
        if let Some(traced) = traced {
            let error = result.as_ref().err().map(ToString::to_string);
            traced.end(&self.spans, self.orders.len(), error.as_deref());
        }
        self.outage.note(&result);
        let error = match result {
            Ok(written) => return answer_all(group, written),
            Err(error) => error,
        };
        match Fallback::after(&error, group.len()) {
            Fallback::RefuseAll(refusal) => refuse_all(group, refusal, &error),
            Fallback::OneByOne => self.write_one_by_one(group).await,
        }
        // Whoever queued up while no connection was to be had would wait for the same answer again.
        if matches!(error, StoreError::Unreachable(_)) {
            for job in next.drain(..).chain(self.queue.take_all()) {
                job.answer(Err(Refusal::Unavailable));
            }
        }
    }

    /// Writes each of `jobs`, whose columns are in `orders`, by itself: the one that Postgres refuses fails alone.
    async fn write_one_by_one(&mut self, jobs: Vec<Job>) {
        for (place, job) in jobs.into_iter().enumerate() {
            let result = insert(&mut self.writer, &self.orders.one(place), &self.metrics).await;
            self.outage.note(&result);
            match result {
                Ok(written) => answer_all(vec![job], written),
                Err(error) => refuse_all(vec![job], Fallback::refusal(&error), &error),
            }
        }
    }
}

async fn insert(
    writer: &mut Writer,
    orders: &NewOrders,
    metrics: &Metrics,
) -> Result<Vec<Result<Written, KeyConflict>>, StoreError> {
    let start = Instant::now();
    let mut result = writer.insert(orders).await;
    for _ in 1..TRIES_MAX {
        if !matches!(result, Err(StoreError::Key(_))) {
            break;
        }
        result = writer.insert(orders).await;
    }
    metrics.insert(orders.len(), if result.is_ok() { "ok" } else { "error" }, start);
    result
}

/// What to do with a group that was not written.
#[derive(Debug, PartialEq, Eq)]
enum Fallback {
    RefuseAll(Refusal),
    OneByOne,
}

impl Fallback {
    const fn after(error: &StoreError, rows: usize) -> Self {
        match error {
            StoreError::Refused(_) | StoreError::Key(_) if rows > 1 => Self::OneByOne,
            error => Self::RefuseAll(Self::refusal(error)),
        }
    }

    const fn refusal(error: &StoreError) -> Refusal {
        match error {
            StoreError::Unreachable(_) | StoreError::Unavailable(_) | StoreError::Key(_) => Refusal::Unavailable,
            StoreError::InDoubt(_) => Refusal::InDoubt,
            StoreError::Refused(_) | StoreError::Broken(_) => Refusal::Failed,
        }
    }
}

/// Hands each of `written` to the job at its place.
fn answer_all(jobs: Vec<Job>, written: Vec<Result<Written, KeyConflict>>) {
    debug_assert_eq!(jobs.len(), written.len());
    for (job, written) in jobs.into_iter().zip(written) {
        job.answer(written.map_err(|conflict| match conflict {
            KeyConflict::Reused => Refusal::KeyReused,
            KeyConflict::Running => Refusal::KeyRunning,
        }));
    }
}

fn refuse_all(jobs: Vec<Job>, refusal: Refusal, error: &StoreError) {
    if refusal == Refusal::Failed
        && let Some(others) = UNWRITTEN.pass("orders")
    {
        tracing::error!(
            rows = jobs.len(),
            error = %error,
            others_since_the_last = others,
            "orders that passed the validation cannot be written"
        );
    }
    for job in jobs {
        job.answer(Err(refusal));
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::domain::NewOrder;

    fn jobs(count: usize) -> (Vec<Job>, Vec<oneshot::Receiver<Result<Written, Refusal>>>) {
        let order = NewOrder::from_json(br#"{"user_id": 1, "product_id": 2, "quantity": 3}"#).expect("an order");
        let job = || {
            let (answer, answered) = oneshot::channel();
            (Job::new(order, None, None, answer), answered)
        };
        (0..count).map(|_| job()).unzip()
    }

    fn error() -> sqlx::Error {
        sqlx::Error::PoolTimedOut
    }

    #[test]
    fn each_job_is_answered_with_the_order_at_its_place_even_when_a_client_is_gone() {
        let (jobs, mut answered) = jobs(4);
        drop(answered.remove(1));
        let written = |id: i64| Ok(Written { id, document: id.to_string().into(), replayed: false });
        answer_all(jobs, vec![written(7), written(8), Err(KeyConflict::Reused), written(9)]);
        let ids: Vec<_> =
            answered.into_iter().map(|mut answer| answer.try_recv().unwrap().map(|order| order.id)).collect();
        assert_eq!(ids, [Ok(7), Err(Refusal::KeyReused), Ok(9)]);
    }

    #[test]
    fn only_a_group_whose_rows_are_refused_is_tried_one_by_one() {
        assert_eq!(Fallback::after(&StoreError::Refused(error()), 2), Fallback::OneByOne);
        assert_eq!(Fallback::after(&StoreError::Key(error()), 2), Fallback::OneByOne);
        assert_eq!(Fallback::after(&StoreError::Refused(error()), 1), Fallback::RefuseAll(Refusal::Failed));
        assert_eq!(Fallback::after(&StoreError::Broken(error()), 2), Fallback::RefuseAll(Refusal::Failed));
        assert_eq!(Fallback::after(&StoreError::InDoubt(error()), 2), Fallback::RefuseAll(Refusal::InDoubt));
        for error in [StoreError::Unreachable(error()), StoreError::Unavailable(error())] {
            assert_eq!(Fallback::after(&error, 2), Fallback::RefuseAll(Refusal::Unavailable));
        }
        assert_eq!(Fallback::after(&StoreError::Key(error()), 1), Fallback::RefuseAll(Refusal::Unavailable));
    }
}
