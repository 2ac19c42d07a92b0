//! A partition that is assigned: its queue, its worker, and how both are brought to an end.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use shared::throttle::Throttle;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::Done;
use super::positions::Start;
use crate::gaps::{Gap, GapWatch};
use crate::partition::{Alone, NOTHING_COMMITTED, Shop, Worker};
use crate::queue::{Limits, Queue};

/// A partition that is assigned.
#[derive(Debug)]
pub(crate) struct Seat {
    /// Tells this seat from an earlier one of the same partition.
    pub(crate) generation: u64,
    pub(crate) queue: Arc<Queue>,
    pub(crate) gap_watch: GapWatch,
    gaps: mpsc::Sender<Gap>,
    /// Position in Postgres when it began.
    began_at: Option<i64>,
    committed: Arc<AtomicI64>,
    /// What Kafka was last told.
    told: i64,
    stop: CancellationToken,
    ended: CancellationToken,
    abort: AbortHandle,
}

impl Seat {
    /// Starts a worker at `start`.
    pub(crate) fn open(
        start: &Start,
        generation: u64,
        limits: Limits,
        shop: &Arc<Shop>,
        tasks: &mut JoinSet<Done>,
    ) -> Self {
        let queue = Arc::new(Queue::new(limits));
        let committed = Arc::new(AtomicI64::new(NOTHING_COMMITTED));
        let (halt, ended) = (CancellationToken::new(), CancellationToken::new());
        let (gaps, known_gaps) = mpsc::channel(1);
        let worker = Worker {
            partition: start.partition.clone(),
            position: start.position,
            next_offset: start.next_offset,
            queue: Arc::clone(&queue),
            committed: Arc::clone(&committed),
            gaps: known_gaps,
            alone: Alone::default(),
            log: Throttle::new(),
            stop: halt.clone(),
        };
        let (shop, partition, end) = (Arc::clone(shop), start.partition.clone(), ended.clone().drop_guard());
        let abort = tasks.spawn(async move {
            // Also dropped when the task is aborted or panics.
            let _end = end;
            Done::Worker { partition, generation, ending: worker.run(shop).await }
        });
        Self {
            generation,
            queue,
            gap_watch: GapWatch::default(),
            gaps,
            began_at: start.position,
            committed,
            told: NOTHING_COMMITTED,
            stop: halt,
            ended,
            abort,
        }
    }

    /// Whether records can still be given to it.
    pub(crate) fn is_open(&self) -> bool {
        !self.ended.is_cancelled()
    }

    /// The position in Postgres, as of the last commit.
    pub(crate) fn position(&self) -> Option<i64> {
        match self.committed.load(Ordering::Acquire) {
            NOTHING_COMMITTED => self.began_at,
            committed => Some(committed),
        }
    }

    /// Tells the worker that these offsets hold no record. If it has not taken the last word yet, this one comes again.
    pub(crate) fn tell_gap(&self, gap: Gap) {
        let _ = self.gaps.try_send(gap);
    }

    /// The position that Kafka has not been told yet; counts as told from now on.
    pub(crate) fn untold(&mut self) -> Option<i64> {
        let committed = self.committed.load(Ordering::Acquire);
        (committed != self.told).then(|| {
            self.told = committed;
            committed
        })
    }
}

/// Stops the workers of `seats`: each finishes its transaction under way, if that takes no longer than `timeout`, and is
/// aborted otherwise, which rolls it back.
pub(crate) async fn drain(seats: &[&Seat], timeout: Duration) {
    for seat in seats {
        seat.stop.cancel();
    }
    let ended = join_all(seats.iter().map(|seat| seat.ended.cancelled()));
    if tokio::time::timeout(timeout, ended).await.is_err() {
        tracing::warn!(timeout_ms = timeout.as_millis(), "transactions under way are given up and rolled back");
        for seat in seats {
            seat.abort.abort();
        }
        // An aborted task is dropped at its next await, which is where it is waiting now.
        join_all(seats.iter().map(|seat| seat.ended.cancelled())).await;
    }
}
