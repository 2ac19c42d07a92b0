//! One partition in order: takes what waits in its queue and applies it, batch by batch, until it is stopped; and between batches what
//! has waited for longer.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use shared::backoff::Backoff;
use shared::db::words;
use shared::health::Readiness;
use shared::throttle::Throttle;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::apply::{Applier, ApplyError, Constraints};
use crate::batch::{Batch, is_passed_over};
use crate::gaps::Gap;
use crate::joint::{self, Entry, Joint};
use crate::looks::{Looked, Looks};
use crate::metrics::{Metrics, Tally};
use crate::passed::Passed;
use crate::queue::Queue;
use crate::record::{Partition, Record};
use crate::store::{self, Share};

/// Condition of [`Readiness`]: batches commit.
pub(crate) const POSTGRES: &str = "postgres";

/// What the workers of all partitions share.
#[derive(Debug)]
pub(crate) struct Shop {
    pub(crate) applier: Applier,
    pub(crate) metrics: Metrics,
    pub(crate) readiness: Readiness,
    pub(crate) batch_rows_max: usize,
    pub(crate) retry_max: Duration,
    /// Where workers with little to do meet.
    pub(crate) joint: Joint,
    /// Rung when a worker has made room in its queue.
    pub(crate) room: Notify,
}

/// The worker of one partition.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) partition: Partition,
    /// Position in Postgres; none if it has no row yet.
    pub(crate) position: Option<i64>,
    /// The lowest offset that has not been taken from the queue yet.
    pub(crate) next_offset: i64,
    pub(crate) queue: Arc<Queue>,
    pub(crate) committed: Arc<AtomicI64>,
    /// What is known to hold no record.
    pub(crate) gaps: mpsc::Receiver<Gap>,
    pub(crate) alone: Alone,
    pub(crate) log: Throttle,
    pub(crate) stop: CancellationToken,
}

/// Until when a worker joins no others, because it could not be applied together with theirs.
#[derive(Debug)]
pub(crate) struct Alone {
    until: Instant,
    next: Backoff,
}

impl Default for Alone {
    fn default() -> Self {
        Self { until: Instant::now(), next: Backoff::new(ALONE_MIN, ALONE_MAX) }
    }
}

impl Alone {
    /// It could not be applied together with others.
    fn stay(&mut self) {
        self.until = Instant::now() + self.next.delay(1.0);
    }
}

/// Why a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It was told to stop.
    Stopped,
    /// Somebody else has moved the position: it must be read anew.
    Fenced,
}

/// Value of [`Worker::committed`] before the first commit.
pub(crate) const NOTHING_COMMITTED: i64 = -1;

impl Worker {
    /// Works until it is stopped or fenced. A transaction under way is finished first.
    pub(crate) async fn run(mut self, shop: Arc<Shop>) -> Ending {
        let mut looks = Looks::new(shop.retry_max);
        let mut passed = Passed::default();
        loop {
            if let Some(position) = self.position.filter(|_| looks.is_time()) {
                // A transaction under way is finished, unless the seat gives up waiting and aborts this task.
                if looks.look(&shop, &self.partition, position).await == Looked::Fenced {
                    self.fenced(&shop);
                    return Ending::Fenced;
                }
            }
            // The queue before the clock: however much there is to do for keys, a batch gets its turn after each piece of it.
            let records = tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    let (last, before) = passed.release(Vec::new());
                    if let Some(Outcome::Committed { next, .. }) = self.apply(&shop, last, before).await {
                        self.committed.store(next, Ordering::Release);
                    }
                    return Ending::Stopped;
                }
                records = self.queue.take(shop.batch_rows_max) => self.unseen(&shop, records),
                () = passed.wait() => Vec::new(),
                Some(gap) = self.gaps.recv() => {
                    // With records that wait to be passed over it is not where the position is.
                    if passed.is_empty() && self.is_fenced_passing(&shop, gap).await {
                        return Ending::Fenced;
                    }
                    continue;
                }
                () = looks.wait(), if self.position.is_some() => continue,
            };
            let nothing_to_do = records.iter().all(|record| is_passed_over(record, &shop.applier.handlers));
            if nothing_to_do && !passed.is_due() {
                passed.hold(records);
                continue;
            }
            let (records, before) = passed.release(records);
            match self.apply(&shop, records, before).await {
                None => return Ending::Stopped,
                Some(Outcome::Fenced) => return Ending::Fenced,
                Some(Outcome::Committed { next, keys }) => {
                    self.position = Some(next);
                    self.committed.store(next, Ordering::Release);
                    if keys {
                        looks.soon();
                    }
                }
            }
        }
    }

    /// Moves the position past `gap`, if it is still where that begins; what fails comes again. Returns whether somebody else has moved it.
    async fn is_fenced_passing(&mut self, shop: &Shop, gap: Gap) -> bool {
        if self.position != Some(gap.from) {
            return false;
        }
        match shop.applier.pass(&self.partition, gap).await {
            Ok(true) => {
                self.position = Some(gap.end);
                self.next_offset = self.next_offset.max(gap.end);
                self.committed.store(gap.end, Ordering::Release);
                false
            }
            Ok(false) => {
                self.fenced(shop);
                true
            }
            Err(error) => {
                if let Some(others) = self.log.pass("gap") {
                    tracing::warn!(
                        error = words(&error),
                        others_since_the_last = others,
                        "offsets without records not passed, will try again"
                    );
                }
                false
            }
        }
    }

    /// Of `records`, which were taken from the queue, those that are not applied yet: after a seek or a resume others may come too.
    fn unseen(&mut self, shop: &Shop, mut records: Vec<Record>) -> Vec<Record> {
        if self.queue.is_paused() {
            shop.room.notify_one();
        }
        records.retain(|record| record.offset >= self.next_offset);
        if let Some(last) = records.last() {
            self.next_offset = last.offset + 1;
        }
        records
    }

    /// Applies one batch, with as many attempts as it takes; `passed` more records before it were passed over. None: it was stopped before it succeeded.
    ///
    /// The attempts end with success, fencing or the stop; between two of them there is at most [`Shop::retry_max`]. Other
    /// partitions go on meanwhile, and this one's queue fills until it is paused.
    async fn apply(&mut self, shop: &Shop, records: Vec<Record>, passed: usize) -> Option<Outcome> {
        let started = Instant::now();
        let records = Arc::new(records);
        let next = records.last()?.offset + 1;
        let mut joined = self.apply_with_others(shop, &records).await;
        let batch = Batch::read(&records, &shop.applier.handlers);
        let share = Share { partition: &self.partition, position: self.position };
        let mut backoff = Backoff::new(FIRST_RETRY, shop.retry_max);
        let mut constraints = Constraints::AsDeclared;
        loop {
            let outcome = match joined.take() {
                Some(outcome) => outcome,
                None => shop.applier.apply(&[share], &batch, constraints).await,
            };
            let error = match outcome {
                Ok(mut tally) => {
                    tally.passed_over += passed;
                    self.settle(shop, &tally, &records, started);
                    let keys = tally.keys_retrying + tally.keys_waiting + tally.keys_woken > 0;
                    return Some(Outcome::Committed { next, keys });
                }
                Err(error) => error,
            };
            match &error {
                ApplyError::Fenced => return Some(self.fenced(shop)),
                // The next attempt finds out which event it is; no need to wait for it.
                ApplyError::Deferred(_) if constraints == Constraints::AsDeclared => {
                    constraints = Constraints::CheckedEarly;
                    continue;
                }
                ApplyError::Unknown(_) => {
                    if let Some(outcome) = self.find_out(shop, next).await? {
                        if let Outcome::Committed { .. } = outcome {
                            // What came of each event is known only to the answer that got lost.
                            self.settle(
                                shop,
                                &Tally { applied: batch.handled(), passed_over: passed, ..Tally::default() },
                                &records,
                                started,
                            );
                        }
                        return Some(outcome);
                    }
                }
                ApplyError::Apart(_) | ApplyError::Deferred(_) | ApplyError::RolledBack(_) => {}
            }
            if error.is_database_away() {
                shop.readiness.missing(POSTGRES, "no batch commits");
            }
            self.retry_later(shop, &mut backoff, &error).await?;
        }
    }

    /// Applies a small batch in a transaction with those of other partitions. None: it is to be applied alone.
    async fn apply_with_others(
        &mut self,
        shop: &Shop,
        records: &Arc<Vec<Record>>,
    ) -> Option<Result<Tally, ApplyError>> {
        if self.alone.until > Instant::now() || !joint::is_small(records) {
            return None;
        }
        let (partition, records) = (self.partition.clone(), Arc::clone(records));
        let joined = shop.joint.apply(Entry { partition, position: self.position, records }).await;
        match &joined {
            None => self.alone.stay(),
            Some(Ok(_)) => self.alone.next.reset(),
            Some(Err(_)) => {}
        }
        joined
    }

    /// Reads the position after a commit whose answer was lost: at `next` it happened; where it was before (none), the batch is
    /// to be applied again; elsewhere somebody else has taken over.
    ///
    /// The server may still be at that commit while this reads the old position. Then the next attempt waits for its row lock
    /// and is fenced, and the position is read anew: so this need not be certain.
    async fn find_out(&self, shop: &Shop, next: i64) -> Option<Option<Outcome>> {
        let mut backoff = Backoff::new(FIRST_RETRY, shop.retry_max);
        let partitions = std::slice::from_ref(&self.partition);
        loop {
            let Applier { database, group, .. } = &shop.applier;
            match database.with(async |connection| store::positions(connection, group, partitions).await).await {
                Ok(found) => {
                    let found = found.get(&self.partition).copied();
                    return Some(match found {
                        found if found == Some(next) => Some(Outcome::Committed { next, keys: true }),
                        found if found == self.position => None,
                        _ => Some(self.fenced(shop)),
                    });
                }
                Err(error) => self.retry_later(shop, &mut backoff, &words(&error)).await?,
            }
        }
    }

    /// Waits before the next attempt. None: it was stopped meanwhile.
    async fn retry_later(&self, shop: &Shop, backoff: &mut Backoff, error: &(dyn Display + Sync)) -> Option<()> {
        let delay = backoff.random_delay();
        shop.metrics.retries.inc();
        if let Some(others) = self.log.pass("rolled back") {
            tracing::warn!(
                messaging.destination.name = &*self.partition.topic,
                messaging.destination.partition.id = self.partition.number,
                attempt = backoff.attempts(),
                retry_in_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
                error = %error,
                others_since_the_last = others,
                "batch rolled back"
            );
        }
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            () = tokio::time::sleep(delay) => Some(()),
        }
    }

    fn fenced(&self, shop: &Shop) -> Outcome {
        shop.metrics.fenced.inc();
        tracing::warn!(
            messaging.destination.name = &*self.partition.topic,
            messaging.destination.partition.id = self.partition.number,
            position = self.position,
            "the position was moved by somebody else: nothing applied, reading it anew"
        );
        Outcome::Fenced
    }

    fn settle(&self, shop: &Shop, tally: &Tally, records: &[Record], started: Instant) {
        shop.metrics.record(tally, records.len(), started.elapsed().as_secs_f64());
        shop.readiness.met(POSTGRES);
        if tally.dead_lettered > 0
            && let Some(others) = self.log.pass("given up")
        {
            tracing::warn!(
                messaging.destination.name = &*self.partition.topic,
                messaging.destination.partition.id = self.partition.number,
                first_offset = records.first().map(|record| record.offset),
                last_offset = records.last().map(|record| record.offset),
                count = tally.dead_lettered,
                others_since_the_last = others,
                "records given up: see dead_letters"
            );
        }
        if tally.keys_retrying + tally.keys_waiting > 0
            && let Some(others) = self.log.pass("to be tried again")
        {
            tracing::warn!(
                messaging.destination.name = &*self.partition.topic,
                messaging.destination.partition.id = self.partition.number,
                retrying = tally.keys_retrying,
                waiting = tally.keys_waiting,
                others_since_the_last = others,
                "keys to be tried again: see blocked_keys"
            );
        }
    }
}

/// First wait after a failure, before jitter.
const FIRST_RETRY: Duration = Duration::from_millis(50);

/// How long a worker joins no others after the first time that it did not go well.
const ALONE_MIN: Duration = Duration::from_secs(1);

/// How long at most.
const ALONE_MAX: Duration = Duration::from_mins(1);

/// What came of a batch.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    /// The partition goes on at `next`; `keys`: there may be some to be tried again soon.
    Committed {
        next: i64,
        keys: bool,
    },
    Fenced,
}
