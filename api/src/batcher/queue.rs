//! What waits to be written: in the order of arrival, bounded by count and by age.
//!
//! Whoever would wait too long is refused when it comes, which costs next to nothing, and not after it has waited: refusing late takes
//! as much room in the queue as serving, and everybody's time. How long it would wait is the number before it, times what each has
//! taken lately. The age itself is looked at too, for what no rate foretells: a Postgres that stops answering.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::pace::Pace;
use super::{Job, Refusal};
use crate::config::Limits;

/// Of the greatest age, how much a job may be expected to wait: an estimate that is four times too low keeps the bound all the same.
const EXPECTED_SHARE: u32 = 4;

/// Looks for old jobs within the time of the greatest age.
const SWEEPS: u32 = 8;

/// The queue.
#[derive(Debug)]
pub(super) struct Queue {
    count_max: usize,
    age_max: Duration,
    /// So many are taken whatever is expected: less than all statements hold together is no queue.
    count_always: usize,
    waiting: Mutex<Waiting>,
    arrived: Notify,
    closed: CancellationToken,
    /// How many wait.
    depth: Gauge,
}

#[derive(Debug, Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    pace: Pace,
    /// Jobs got too old while all writers were busy, and none has come back since.
    stalled: bool,
    closed: bool,
}

enum Taken {
    Some,
    None,
    Closed,
}

impl Queue {
    pub(super) fn new(limits: &Limits, depth: Gauge) -> Self {
        Self {
            count_max: limits.queue_max,
            age_max: Duration::from_millis(limits.queue_age_max_ms),
            count_always: limits.batch_rows_max.saturating_mul(limits.statements_max),
            waiting: Mutex::default(),
            arrived: Notify::new(),
            closed: CancellationToken::new(),
            depth,
        }
    }

    /// Puts `jobs` at the end, as many as there is room for. Returns why the others were not taken, with them.
    pub(super) fn push(&self, jobs: impl IntoIterator<Item = Job>) -> Option<(Refusal, Vec<Job>)> {
        let mut jobs = jobs.into_iter();
        let mut waiting = self.waiting();
        if let Some(refusal) = self.refusal_of(&waiting, Instant::now()) {
            return Some((refusal, jobs.collect()));
        }
        let room = self.count_max.saturating_sub(waiting.jobs.len());
        waiting.jobs.extend(jobs.by_ref().take(room));
        self.show_depth(&waiting);
        drop(waiting);
        // The writer that came last: its connection and the server's process behind it are still warm.
        self.arrived.notify_last();
        let refused: Vec<Job> = jobs.collect();
        (!refused.is_empty()).then_some((Refusal::QueueFull, refused))
    }

    /// Why the next job would not be taken, if so.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.refusal_of(&self.waiting(), Instant::now())
    }

    fn refusal_of(&self, waiting: &Waiting, now: Instant) -> Option<Refusal> {
        let count = waiting.jobs.len();
        if waiting.closed {
            return Some(Refusal::ShuttingDown);
        }
        if count >= self.count_max {
            return Some(Refusal::QueueFull);
        }
        // Who is behind one that has waited too long will wait too long.
        if waiting.stalled || waiting.jobs.front().is_some_and(|job| now.duration_since(job.since) > self.age_max) {
            return Some(Refusal::QueueOld);
        }
        let slow = count >= self.count_always && waiting.pace.expected(count) > self.age_max / EXPECTED_SHARE;
        slow.then_some(Refusal::QueueSlow)
    }

    /// Waits for jobs and takes all of them, up to `max`; more only so as not to part jobs of one request, which would be written
    /// at the same time then, and not in their order. Those that are too old are refused. Returns false when the queue is closed and empty.
    pub(super) async fn take(&self, jobs: &mut Vec<Job>, max: usize) -> bool {
        loop {
            // Made before the look, so that what happens after that is heard.
            let arrived = self.arrived.notified();
            match self.take_now(jobs, max) {
                Taken::Some => return true,
                Taken::Closed => return false,
                Taken::None => arrived.await,
            }
        }
    }

    fn take_now(&self, jobs: &mut Vec<Job>, max: usize) -> Taken {
        let mut waiting = self.waiting();
        let old = self.drain_old(&mut waiting);
        let taken = drain(&mut waiting.jobs, jobs, max);
        waiting.stalled = false;
        let left = waiting.jobs.len();
        self.show_depth(&waiting);
        waiting.pace.taken(Instant::now(), taken, left);
        let closed = waiting.closed;
        drop(waiting);
        refuse(old);
        if left > 0 {
            // One arrival wakes one writer, which may take less than all.
            self.arrived.notify_last();
        }
        match taken {
            0 if closed => Taken::Closed,
            0 => Taken::None,
            _ => Taken::Some,
        }
    }

    /// Takes whatever is there. Returns at once.
    pub(super) fn take_all(&self) -> Vec<Job> {
        let mut waiting = self.waiting();
        let jobs = waiting.jobs.drain(..).collect();
        self.show_depth(&waiting);
        jobs
    }

    /// Refuses jobs when they get too old, until the queue is closed: while all writers wait for Postgres, none of them looks.
    pub(super) async fn sweep(&self) {
        let interval = (self.age_max / SWEEPS).max(Duration::from_millis(1));
        while self.closed.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
            let mut waiting = self.waiting();
            let old = self.drain_old(&mut waiting);
            waiting.stalled |= !old.is_empty();
            self.show_depth(&waiting);
            drop(waiting);
            refuse(old);
        }
    }

    fn drain_old(&self, waiting: &mut Waiting) -> Vec<Job> {
        let now = Instant::now();
        let is_old = |job: &Job| now.duration_since(job.since) > self.age_max;
        let count = waiting.jobs.iter().take_while(|job| is_old(job)).count();
        waiting.jobs.drain(..count).collect()
    }

    /// No more jobs are taken; those that are there are still to be written.
    pub(super) fn close(&self) {
        self.waiting().closed = true;
        self.closed.cancel();
        self.arrived.notify_waiters();
    }

    fn show_depth(&self, waiting: &Waiting) {
        self.depth.set(i64::try_from(waiting.jobs.len()).unwrap_or(i64::MAX));
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing that is done under the lock leaves the queue half changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn drain(from: &mut VecDeque<Job>, to: &mut Vec<Job>, max: usize) -> usize {
    let mut count = from.len().min(max);
    while from.get(count).is_some_and(|job| job.follows) {
        count += 1;
    }
    to.extend(from.drain(..count));
    count
}

fn refuse(jobs: Vec<Job>) {
    for job in jobs {
        job.answer(Err(Refusal::QueueOld));
    }
}

#[cfg(test)]
mod tests;
