//! Group commit: orders that arrive at the same time are written by one statement.
//!
//! Each of a few writers takes all that waits (up to a limit), writes it, answers it, and looks again. So an order that comes
//! alone waits for nobody, and the busier the service, the larger the groups. A job belongs to the batcher from the moment it is
//! queued: whether its client still listens changes nothing, so an order is written whole or not at all.
//!
//! Nobody lingers for more: with 64 connections on 2 cores, waiting 1 or 2 ms for a group to grow took 26,000-34,000 orders/s down
//! to 12,000-16,000, since the groups grow by themselves. One statement at a time wrote about as much as two, four wrote a fifth less.

mod outage;

use std::sync::Arc;
use std::time::Instant;

use shared::db::DatabaseConfig;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinSet;
use uuid::Uuid;

use self::outage::Outage;
use crate::config::Limits;
use crate::domain::NewOrder;
use crate::metrics::Metrics;
use crate::store::{NewOrders, StoreError, Writer, Written};

/// Why an order was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// As many orders wait as may.
    #[error("too many orders wait")]
    QueueFull,
    /// No more orders are taken.
    #[error("shutting down")]
    ShuttingDown,
    /// The database is away; nothing was written.
    #[error("the database is away")]
    Unavailable,
    /// The database went away meanwhile; nobody knows whether the order was written.
    #[error("the database went away meanwhile")]
    InDoubt,
    /// The order cannot be written; a fault of ours, since it was validated.
    #[error("the order cannot be written")]
    Failed,
}

impl Refusal {
    /// In one word, for a label.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::ShuttingDown => "shutting_down",
            Self::Unavailable => "unavailable",
            Self::InDoubt => "in_doubt",
            Self::Failed => "failed",
        }
    }
}

/// Where orders are handed in. Cheap to clone; when the last clone is gone, the writers finish what is queued and end.
#[derive(Debug, Clone)]
pub struct Batcher {
    queue: mpsc::Sender<Job>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Job {
    order: NewOrder,
    headers: Option<String>,
    answer: oneshot::Sender<Result<Written, Refusal>>,
}

type Queue = Arc<Mutex<mpsc::Receiver<Job>>>;

impl Batcher {
    /// Starts `limits.statements_max` writers in `tasks`.
    pub fn start(database: &DatabaseConfig, limits: &Limits, metrics: &Metrics, tasks: &mut JoinSet<()>) -> Self {
        let (sender, receiver) = mpsc::channel(limits.queue_max);
        let queue = Arc::new(Mutex::new(receiver));
        let outage = Arc::new(Outage::default());
        for _ in 0..limits.statements_max {
            let task = WriterTask {
                queue: Arc::clone(&queue),
                rows_max: limits.batch_rows_max,
                writer: Writer::new(database, limits),
                orders: NewOrders::default(),
                metrics: metrics.clone(),
                outage: Arc::clone(&outage),
            };
            tasks.spawn(task.run());
        }
        Self { queue: sender, metrics: metrics.clone() }
    }

    /// Hands in an order whose event will have `headers`, a JSON object, and waits until it is written.
    ///
    /// # Errors
    /// When it was not accepted.
    pub async fn submit(&self, order: NewOrder, headers: Option<String>) -> Result<Written, Refusal> {
        self.hand_in(order, headers).await
    }

    /// Hands in an order at once; what this returns waits until it is written.
    pub fn hand_in(
        &self,
        order: NewOrder,
        headers: Option<String>,
    ) -> impl Future<Output = Result<Written, Refusal>> + use<'_> {
        let (answer, answered) = oneshot::channel();
        // Counted before it is queued, or the writer could take it off first and the gauge would go below zero.
        self.metrics.queued.inc();
        let queued = self.queue.try_send(Job { order, headers, answer }).map_err(|error| {
            self.metrics.queued.dec();
            match error {
                mpsc::error::TrySendError::Full(_) => Refusal::QueueFull,
                mpsc::error::TrySendError::Closed(_) => Refusal::ShuttingDown,
            }
        });
        async move {
            let result = match queued {
                // Without an answer a writer has panicked; the order may or may not be there.
                Ok(()) => answered.await.unwrap_or(Err(Refusal::InDoubt)),
                Err(refusal) => Err(refusal),
            };
            if let Err(refusal) = result {
                self.metrics.refused(refusal.reason());
            }
            result
        }
    }
}

struct WriterTask {
    queue: Queue,
    rows_max: usize,
    writer: Writer,
    orders: NewOrders,
    metrics: Metrics,
    outage: Arc<Outage>,
}

impl WriterTask {
    async fn run(mut self) {
        let mut jobs = Vec::with_capacity(self.rows_max);
        // The lock is held while waiting for the first job: the other writers wait behind it, and take what comes after.
        while self.queue.lock().await.recv_many(&mut jobs, self.rows_max).await > 0 {
            self.metrics.queued.dec_by(i64::try_from(jobs.len()).unwrap_or(i64::MAX));
            self.write(&mut jobs).await;
        }
        self.writer.close().await;
    }

    /// Writes and answers all of `jobs`.
    async fn write(&mut self, jobs: &mut Vec<Job>) {
        self.orders.clear();
        for job in &mut *jobs {
            // UUIDs v7 of one process rise, and so do the ids that the rows get.
            self.orders.push(job.order, Uuid::now_v7(), job.headers.take());
        }
        let result = insert(&mut self.writer, &self.orders, &self.metrics).await;
        self.outage.note(&result);
        let error = match result {
            Ok(written) => return answer_all(jobs, written),
            Err(error) => error,
        };
        match Fallback::after(&error, jobs.len()) {
            Fallback::RefuseAll(refusal) => refuse_all(jobs, refusal, &error),
            Fallback::OneByOne => self.write_one_by_one(jobs).await,
        }
        // Whoever queued up while no connection was to be had would wait for the same answer again.
        if matches!(error, StoreError::Unreachable(_)) {
            self.refuse_queued();
        }
    }

    /// Writes each of `jobs`, whose columns are in `orders`, by itself: the one that Postgres refuses fails alone.
    async fn write_one_by_one(&mut self, jobs: &mut Vec<Job>) {
        for (place, job) in jobs.drain(..).enumerate() {
            let result = insert(&mut self.writer, &self.orders.one(place), &self.metrics).await;
            self.outage.note(&result);
            match result {
                Ok(written) => answer_all(&mut vec![job], written),
                Err(error) => refuse_all(&mut vec![job], Fallback::refusal(&error), &error),
            }
        }
    }

    fn refuse_queued(&self) {
        // Another writer that holds the lock waits on an empty queue: then there is nobody to refuse.
        let Ok(mut queue) = self.queue.try_lock() else { return };
        while let Ok(job) = queue.try_recv() {
            self.metrics.queued.dec();
            let _ = job.answer.send(Err(Refusal::Unavailable));
        }
    }
}

async fn insert(writer: &mut Writer, orders: &NewOrders, metrics: &Metrics) -> Result<Vec<Written>, StoreError> {
    let start = Instant::now();
    let result = writer.insert(orders).await;
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
            StoreError::Refused(_) if rows > 1 => Self::OneByOne,
            error => Self::RefuseAll(Self::refusal(error)),
        }
    }

    const fn refusal(error: &StoreError) -> Refusal {
        match error {
            StoreError::Unreachable(_) | StoreError::Unavailable(_) => Refusal::Unavailable,
            StoreError::InDoubt(_) => Refusal::InDoubt,
            StoreError::Refused(_) | StoreError::Broken(_) => Refusal::Failed,
        }
    }
}

/// Hands each of `written` to the job at its place. A client that no longer listens is no failure.
fn answer_all(jobs: &mut Vec<Job>, written: Vec<Written>) {
    debug_assert_eq!(jobs.len(), written.len());
    for (job, written) in jobs.drain(..).zip(written) {
        let _ = job.answer.send(Ok(written));
    }
}

fn refuse_all(jobs: &mut Vec<Job>, refusal: Refusal, error: &StoreError) {
    if refusal == Refusal::Failed {
        tracing::error!(rows = jobs.len(), error = %error, "orders that passed the validation cannot be written");
    }
    for job in jobs.drain(..) {
        let _ = job.answer.send(Err(refusal));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs(count: usize) -> (Vec<Job>, Vec<oneshot::Receiver<Result<Written, Refusal>>>) {
        let order = NewOrder::from_json(br#"{"user_id": 1, "product_id": 2, "quantity": 3}"#).expect("an order");
        let job = || {
            let (answer, answered) = oneshot::channel();
            (Job { order, headers: None, answer }, answered)
        };
        (0..count).map(|_| job()).unzip()
    }

    fn error() -> sqlx::Error {
        sqlx::Error::PoolTimedOut
    }

    #[test]
    fn each_job_is_answered_with_the_order_at_its_place_even_when_a_client_is_gone() {
        let (mut jobs, mut answered) = jobs(3);
        drop(answered.remove(1));
        let written = |id: i64| Written { id, document: id.to_string().into() };
        answer_all(&mut jobs, vec![written(7), written(8), written(9)]);
        assert!(jobs.is_empty());
        let ids: Vec<i64> = answered.into_iter().map(|mut answer| answer.try_recv().unwrap().unwrap().id).collect();
        assert_eq!(ids, [7, 9]);
    }

    #[test]
    fn only_a_group_whose_rows_are_refused_is_tried_one_by_one() {
        assert_eq!(Fallback::after(&StoreError::Refused(error()), 2), Fallback::OneByOne);
        assert_eq!(Fallback::after(&StoreError::Refused(error()), 1), Fallback::RefuseAll(Refusal::Failed));
        assert_eq!(Fallback::after(&StoreError::Broken(error()), 2), Fallback::RefuseAll(Refusal::Failed));
        assert_eq!(Fallback::after(&StoreError::InDoubt(error()), 2), Fallback::RefuseAll(Refusal::InDoubt));
        for error in [StoreError::Unreachable(error()), StoreError::Unavailable(error())] {
            assert_eq!(Fallback::after(&error, 2), Fallback::RefuseAll(Refusal::Unavailable));
        }
    }
}
