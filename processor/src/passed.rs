//! Records that nobody handles: they wait a moment for others, whose transaction moves the position past them too.
//!
//! A topic tells the whole life of its aggregates, so half of its records may be such, and where batches are small each would cost a
//! transaction of its own. Whoever is killed meanwhile reads them again, and passes over them again.

use std::time::Duration;

use tokio::time::Instant;

use crate::record::Record;

/// How long they wait. So long the position may be behind what is done.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// Those of one partition.
#[derive(Debug, Default)]
pub(crate) struct Passed(Option<Held>);

#[derive(Debug)]
struct Held {
    /// The one that the position moves past.
    last: Record,
    /// How many were before it.
    before: usize,
    due: Instant,
}

impl Passed {
    /// Has `records` wait.
    pub(crate) fn hold(&mut self, mut records: Vec<Record>) {
        let Some(last) = records.pop() else { return };
        let (before, due) = match self.0.take() {
            Some(held) => (held.before + 1, held.due),
            None => (0, Instant::now() + WAIT_MAX),
        };
        self.0 = Some(Held { last, before: before + records.len(), due });
    }

    /// Whether none wait.
    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether some have waited long enough.
    pub(crate) fn is_due(&self) -> bool {
        self.0.as_ref().is_some_and(|held| held.due <= Instant::now())
    }

    /// Waits until some have waited long enough; for ever, if none wait.
    pub(crate) async fn wait(&self) {
        match &self.0 {
            Some(held) => tokio::time::sleep_until(held.due).await,
            None => std::future::pending().await,
        }
    }

    /// They wait no more, now that `records` come. Returns the records to move past, the last that waited if no others come, and how many more were before them.
    pub(crate) fn release(&mut self, records: Vec<Record>) -> (Vec<Record>, usize) {
        match self.0.take() {
            None => (records, 0),
            Some(held) if records.is_empty() => (vec![held.last], held.before),
            Some(held) => (records, held.before + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(offsets: impl IntoIterator<Item = i64>) -> Vec<Record> {
        offsets.into_iter().map(|offset| Record { offset, ..Record::default() }).collect()
    }

    fn released(passed: &mut Passed, records: Vec<Record>) -> (Vec<i64>, usize) {
        let (records, before) = passed.release(records);
        (records.iter().map(|record| record.offset).collect(), before)
    }

    #[tokio::test]
    async fn they_wait_as_long_as_the_first_of_them() {
        let mut passed = Passed::default();
        let before = Instant::now();
        passed.hold(records(0..3));
        let due = passed.0.as_ref().map(|held| held.due);
        assert!(due >= Some(before + WAIT_MAX));
        passed.hold(records(3..5));
        assert_eq!(passed.0.as_ref().map(|held| held.due), due);
        passed.wait().await;
        assert!(passed.is_due());
        assert_eq!(released(&mut passed, Vec::new()), (vec![4], 4));
        assert!(!passed.is_due(), "none wait any more");
    }

    #[tokio::test]
    async fn they_go_with_what_comes() {
        let mut passed = Passed::default();
        assert_eq!(released(&mut passed, records(0..2)), (vec![0, 1], 0));
        passed.hold(records(2..4));
        passed.hold(Vec::new());
        assert_eq!(released(&mut passed, records(4..6)), (vec![4, 5], 2));
    }
}
