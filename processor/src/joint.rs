//! Small batches of several partitions in one transaction.
//!
//! While some hundred events come in a second, each partition has one of them at a time, and a transaction costs as much for one event as for
//! twenty. So small batches meet here: those that come while a transaction is under way, or just after one was begun, go together in the next.
//!
//! That is an attempt. Where a position was moved, a record must be set aside, a row is locked or a handler takes long, nothing has happened, and the
//! partitions it is about are worked on alone. So no partition waits for the trouble of another.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::apply::{ApplyError, Constraints};
use crate::batch::Batch;
use crate::metrics::Tally;
use crate::partition::Shop;
use crate::record::{Partition, Record};
use crate::store::Share;

/// Records that make a transaction worth its cost.
const ROWS_WANTED: u32 = 5;

/// From the begin of one transaction to that of the next, at least. A batch that comes by itself does not wait.
const INTERVAL_MIN: Duration = Duration::from_millis(2);

/// So long at most, however few records come.
const INTERVAL_MAX: Duration = Duration::from_millis(20);

/// How long a batch waits for the transaction under way to end.
const PATIENCE: Duration = Duration::from_millis(20);

/// Records of a batch that is small.
const SMALL_ROWS_MAX: usize = 64;

/// Bytes of it.
const SMALL_BYTES_MAX: usize = 256 * 1024;

/// Records of one transaction.
const ROWS_MAX: usize = 500;

/// Where small batches meet.
#[derive(Debug, Default)]
pub(crate) struct Joint {
    waiting: Mutex<Vec<Waiting>>,
    arrived: Notify,
}

/// The batch of a partition.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) partition: Partition,
    pub(crate) position: Option<i64>,
    pub(crate) records: Arc<Vec<Record>>,
}

impl Entry {
    const fn share(&self) -> Share<'_> {
        Share { partition: &self.partition, position: self.position }
    }
}

/// What came of a batch. None: it is to be applied alone.
type Answer = Option<Result<Tally, ApplyError>>;

#[derive(Debug)]
struct Waiting {
    entry: Entry,
    answer: oneshot::Sender<Answer>,
}

/// Whether `records` are few enough to go with others.
pub(crate) fn is_small(records: &[Record]) -> bool {
    records.len() <= SMALL_ROWS_MAX && records.iter().map(Record::size_bytes).sum::<usize>() <= SMALL_BYTES_MAX
}

impl Joint {
    /// Applies a small batch, in a transaction with whatever else is waiting.
    pub(crate) async fn apply(&self, entry: Entry) -> Answer {
        let (answer, answered) = oneshot::channel();
        self.lock().push(Waiting { entry, answer });
        self.arrived.notify_one();
        answered.await.ok().flatten()
    }

    /// Begins the transactions of `shop`, until it is aborted.
    pub(crate) async fn run(shop: Arc<Shop>) {
        let joint = &shop.joint;
        let (mut next, mut interval) = (Instant::now(), INTERVAL_MAX);
        let mut under_way = JoinSet::new();
        loop {
            joint.arrived.notified().await;
            sleep_until(next).await;
            let taken = joint.take();
            if taken.is_empty() {
                continue; // The bell rang for one that was taken before.
            }
            interval = after(interval, taken.iter().map(|waiting| waiting.entry.records.len()).sum());
            next = Instant::now() + interval;
            under_way.spawn(apply_together(Arc::clone(&shop), taken));
            let _ = timeout(PATIENCE, under_way.join_next()).await;
            // One that has panicked has answered nobody, and the worker that finds the event which did it panics by itself.
            while under_way.try_join_next().is_some() {}
        }
    }

    /// Those that go together: of one topic, and not too many.
    fn take(&self) -> Vec<Waiting> {
        let mut waiting = self.lock();
        let topic = waiting.first().map(|first| Arc::clone(&first.entry.partition.topic));
        let mut rows = 0;
        let fits = |waiting: &mut Waiting| {
            let is_of_topic = Some(&waiting.entry.partition.topic) == topic.as_ref();
            let fits = is_of_topic && rows + waiting.entry.records.len() <= ROWS_MAX;
            rows += if fits { waiting.entry.records.len() } else { 0 };
            fits
        };
        let taken = waiting.extract_if(.., fits).collect();
        if !waiting.is_empty() {
            self.arrived.notify_one();
        }
        taken
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// So long as it takes until so many records have come as are wanted, if they go on to come as these `rows` have within `interval`.
fn after(interval: Duration, rows: usize) -> Duration {
    let rows = u32::try_from(rows).unwrap_or(u32::MAX);
    (interval * ROWS_WANTED / rows.max(1)).clamp(INTERVAL_MIN, INTERVAL_MAX)
}

/// Applies what can be applied together, and answers all.
async fn apply_together(shop: Arc<Shop>, mut waiting: Vec<Waiting>) {
    // A worker that was aborted waits for nothing.
    waiting.retain(|waiting| !waiting.answer.is_closed());
    while !waiting.is_empty() {
        let entries = || waiting.iter().map(|waiting| &waiting.entry);
        let batch = Batch::read_all(entries().map(|entry| entry.records.as_slice()), &shop.applier.handlers);
        let shares: Vec<Share<'_>> = entries().map(Entry::share).collect();
        let outcome = shop.applier.apply(&shares, &batch, Constraints::AsDeclared).await;
        match outcome {
            outcome if shares.len() == 1 => {
                let mut outcome = Some(outcome);
                return answer(waiting, || outcome.take());
            }
            // It counts once, as the first one's.
            Ok(tally) => {
                let mut tally = Some(tally);
                return answer(waiting, || Some(Ok(tally.take().unwrap_or_default())));
            }
            Err(ApplyError::Unknown(error)) => {
                let copy = || sqlx::Error::Io(std::io::Error::other(shared::db::words(&error)));
                return answer(waiting, || Some(Err(ApplyError::Unknown(copy()))));
            }
            Err(ApplyError::Apart(places)) => {
                shop.metrics.retries.inc();
                for place in places.into_iter().rev() {
                    answer([waiting.swap_remove(place)], || None);
                }
            }
            Err(error) => {
                shop.metrics.retries.inc();
                tracing::debug!(partitions = waiting.len(), error = %error, "not applied together");
                return answer(waiting, || None);
            }
        }
    }
}

fn answer(waiting: impl IntoIterator<Item = Waiting>, mut with: impl FnMut() -> Answer) {
    for waiting in waiting {
        // Unless it was aborted.
        let _ = waiting.answer.send(with());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_waits_for_some_records_and_not_for_long() {
        let millis = |interval, rows| after(Duration::from_millis(interval), rows).as_millis();
        assert_eq!(millis(20, 1), 20);
        assert_eq!(millis(20, 20), 5, "1,000 a second");
        assert_eq!(millis(5, 5), 5);
        assert_eq!(millis(8, 2), 20);
        assert_eq!(millis(8, 500), 2);
    }
}
