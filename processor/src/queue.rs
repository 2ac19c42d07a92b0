//! The records of one partition that wait for its transaction: bounded, between the consumer and the partition's worker.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::record::Record;

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Records.
    pub(crate) rows_max: usize,
    /// Bytes of keys, headers and payloads.
    pub(crate) bytes_max: usize,
}

/// A queue that never refuses: the consumer cannot wait, or its group would lose it. At its limits it asks for a pause instead,
/// and when it has half emptied for more.
#[derive(Debug)]
pub(crate) struct Queue {
    limits: Limits,
    inner: Mutex<Inner>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    records: VecDeque<Record>,
    bytes: usize,
    paused: bool,
}

impl Queue {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, inner: Mutex::default(), arrived: Notify::new() }
    }

    /// Adds a record. Returns whether the partition is to be paused now.
    pub(crate) fn push(&self, record: Record) -> bool {
        let mut inner = self.lock();
        inner.bytes += record.size_bytes();
        inner.records.push_back(record);
        let full = inner.records.len() >= self.limits.rows_max || inner.bytes >= self.limits.bytes_max;
        let pause = full && !inner.paused;
        inner.paused |= full;
        drop(inner);
        self.arrived.notify_one();
        pause
    }

    /// Waits for a record, then takes all there are, at most `rows_max`. Nothing is lost when the wait is given up.
    pub(crate) async fn take(&self, rows_max: usize) -> Vec<Record> {
        loop {
            // A bell that rang before this wait is not lost: Notify keeps one.
            let arrived = self.arrived.notified();
            if let Some(taken) = self.take_waiting(rows_max) {
                return taken;
            }
            arrived.await;
        }
    }

    fn take_waiting(&self, rows_max: usize) -> Option<Vec<Record>> {
        let mut inner = self.lock();
        let rows = rows_max.min(inner.records.len());
        let taken: Vec<Record> = inner.records.drain(..rows).collect();
        inner.bytes -= taken.iter().map(Record::size_bytes).sum::<usize>();
        (!taken.is_empty()).then_some(taken)
    }

    /// Whether the partition was paused and there is room again: then it counts as resumed.
    pub(crate) fn wants_resume(&self) -> bool {
        let mut inner = self.lock();
        let room = inner.records.len() <= self.limits.rows_max / 2 && inner.bytes <= self.limits.bytes_max / 2;
        let resume = inner.paused && room;
        inner.paused &= !resume;
        resume
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().records.is_empty()
    }

    /// Whether the partition is paused.
    pub(crate) fn is_paused(&self) -> bool {
        self.lock().paused
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves at worst a wrong count of bytes behind.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: i64) -> Record {
        Record { offset, payload: Some(vec![0; 100]), ..Record::default() }
    }

    #[tokio::test]
    async fn a_full_queue_pauses_once_and_resumes_at_half() {
        let queue = Queue::new(Limits { rows_max: 4, bytes_max: 1 << 20 });
        let pauses: Vec<bool> = (0..6).map(|offset| queue.push(record(offset))).collect();
        assert_eq!(pauses, [false, false, false, true, false, false]);
        assert!(!queue.wants_resume());
        let taken: Vec<i64> = queue.take(4).await.iter().map(|record| record.offset).collect();
        assert_eq!(taken, [0, 1, 2, 3]);
        assert!(queue.wants_resume());
        assert!(!queue.wants_resume(), "resumed once");
    }

    #[tokio::test]
    async fn large_records_fill_it_by_their_bytes() {
        let queue = Queue::new(Limits { rows_max: 1_000, bytes_max: 150 });
        assert!(queue.push(record(0)));
        assert_eq!(queue.take(10).await.len(), 1);
        assert!(queue.wants_resume());
    }
}
