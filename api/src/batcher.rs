//! Group commit: orders that arrive at the same time are written by one statement.
//!
//! Each of a few writers takes all that waits (up to a limit), writes it, answers it, and looks again. So an order that comes
//! alone waits for nobody, and the busier the service, the larger the groups. A job belongs to the batcher from the moment it is
//! queued: whether its client still listens changes nothing, so an order is written whole or not at all. Only from a queue that is too
//! long or too old is anybody sent away, and then without a trace.
//!
//! Requests of one HTTP/1.1 connection are served one after the other, so their orders have ids in their order. Orders of one request
//! are never parted among writers, which work at the same time: one writes them, in their order.
//!
//! Nobody lingers for more: with 64 connections on 2 cores, waiting 1 or 2 ms for a group to grow took 26,000-34,000 orders/s down
//! to 12,000-16,000, since the groups grow by themselves. One statement at a time wrote about as much as two, four wrote a fifth less.

mod job;
mod outage;
mod pace;
mod queue;
mod thread;
mod writing;

use std::io;
use std::sync::Arc;

use shared::db::DatabaseConfig;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use self::job::Job;
pub use self::outage::Outage;
use self::queue::Queue;
use self::thread::Thread;
use self::writing::WriterTask;
use crate::config::Limits;
use crate::domain::NewOrder;
use crate::idempotency::{IdempotencyKey, Running};
use crate::metrics::Metrics;
use crate::store::Written;

/// Why an order was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// As many orders wait as may.
    #[error("too many orders wait")]
    QueueFull,
    /// An order has waited too long, this one or the one that is next.
    #[error("an order has waited too long")]
    QueueOld,
    /// It would wait too long: more wait than can be written within the time.
    #[error("the order would wait too long")]
    QueueSlow,
    /// A request with the same idempotency key is under way.
    #[error("a request with the same key is under way")]
    KeyRunning,
    /// The idempotency key has made another order.
    #[error("the key has made another order")]
    KeyReused,
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
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::QueueFull,
        Self::QueueOld,
        Self::QueueSlow,
        Self::KeyRunning,
        Self::KeyReused,
        Self::ShuttingDown,
        Self::Unavailable,
        Self::InDoubt,
        Self::Failed,
    ];

    /// In one word, for a label.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::QueueOld => "queue_old",
            Self::QueueSlow => "queue_slow",
            Self::KeyRunning => "key_running",
            Self::KeyReused => "key_reused",
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
    entry: Arc<Entry>,
}

#[derive(Debug)]
struct Entry {
    queue: Arc<Queue>,
    outage: Arc<Outage>,
    running: Arc<Running>,
    metrics: Metrics,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl Batcher {
    /// Starts `limits.statements_max` writers in `tasks`, and one task that refuses what waits too long. Returns when each writer has a
    /// connection, or has tried for one as long as an order would.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub async fn start(
        database: &DatabaseConfig,
        limits: &Limits,
        metrics: &Metrics,
        tasks: &mut JoinSet<()>,
    ) -> io::Result<Self> {
        let thread = Thread::start()?;
        let queue = Arc::new(Queue::new(limits, metrics.queued.clone()));
        let outage = Arc::new(Outage::default());
        let (opening, mut all_opened) = mpsc::channel(1);
        for _ in 0..limits.statements_max {
            let task = WriterTask::new(&queue, &outage, database, limits, metrics);
            thread.spawn(tasks, task.run(opening.clone()));
        }
        drop(opening);
        let swept = Arc::clone(&queue);
        thread.spawn(tasks, async move { swept.sweep().await });
        let None = all_opened.recv().await;
        Ok(Self { entry: Arc::new(Entry { queue, outage, running: Arc::default(), metrics: metrics.clone() }) })
    }

    /// What the writers know of Postgres. Holding it keeps no writer going.
    #[must_use]
    pub fn outage(&self) -> Arc<Outage> {
        Arc::clone(&self.entry.outage)
    }

    /// Whether an order that came now would be refused, and why. Whoever asks before reading the order refuses it at less cost.
    ///
    /// # Errors
    /// When it would.
    pub fn check(&self) -> Result<(), Refusal> {
        self.entry.queue.refusal().map_or(Ok(()), |refusal| {
            self.entry.metrics.refused(refusal.reason());
            Err(refusal)
        })
    }

    /// Hands in an order whose event will have `headers`, a JSON object, and waits until it is written. Under a key that has made this order
    /// before, nothing is written, and what was written then is the answer.
    ///
    /// # Errors
    /// When it was not accepted, the key has made another order, or a request with the same key is under way.
    pub async fn submit(
        &self,
        order: NewOrder,
        headers: Option<String>,
        key: Option<IdempotencyKey>,
    ) -> Result<Written, Refusal> {
        let claim = match key.map(|key| self.entry.running.claim(key)) {
            Some(None) => return self.answered(Err(Refusal::KeyRunning)),
            claim => claim.flatten(),
        };
        let (answer, answered) = oneshot::channel();
        self.hand_in(std::iter::once(Job::new(order, headers, claim, answer)));
        self.outcome(answered).await
    }

    /// Hands in the orders of one request at once; each of what this returns waits until its order is written.
    pub fn submit_all(
        &self,
        orders: Vec<NewOrder>,
        headers: Option<&str>,
    ) -> Vec<impl Future<Output = Result<Written, Refusal>> + use<'_>> {
        let (mut jobs, mut outcomes) = (Vec::new(), Vec::new());
        for order in orders {
            let (answer, answered) = oneshot::channel();
            let job = Job::new(order, headers.map(str::to_owned), None, answer);
            jobs.push(if jobs.is_empty() { job } else { job.following() });
            outcomes.push(self.outcome(answered));
        }
        self.hand_in(jobs);
        outcomes
    }

    fn hand_in(&self, jobs: impl IntoIterator<Item = Job>) {
        if let Some((refusal, refused)) = self.entry.queue.push(jobs) {
            for job in refused {
                job.answer(Err(refusal));
            }
        }
    }

    async fn outcome(&self, answered: oneshot::Receiver<Result<Written, Refusal>>) -> Result<Written, Refusal> {
        // Without an answer a writer has panicked; the order may or may not be there.
        self.answered(answered.await.unwrap_or(Err(Refusal::InDoubt)))
    }

    fn answered(&self, result: Result<Written, Refusal>) -> Result<Written, Refusal> {
        match &result {
            Ok(written) if written.replayed => drop(self.entry.metrics.replayed.inc()),
            Ok(_) => {}
            Err(refusal) => self.entry.metrics.refused(refusal.reason()),
        }
        result
    }
}
