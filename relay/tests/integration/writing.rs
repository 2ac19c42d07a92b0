//! Writers that append events until they are stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinHandle;

use crate::support::{Fixture, Record, assert_complete_and_in_order};

/// Writers at work, each with so many keys of its own.
pub struct Writing {
    fixture: Arc<Fixture>,
    keys: usize,
    goes_on: Arc<AtomicBool>,
    writers: Vec<JoinHandle<i64>>,
}

impl Writing {
    pub fn begin(fixture: &Arc<Fixture>, writers: usize, keys: usize) -> Self {
        let goes_on = Arc::new(AtomicBool::new(true));
        let write = |writer| {
            let (fixture, goes_on) = (Arc::clone(fixture), Arc::clone(&goes_on));
            tokio::spawn(async move {
                let mut version = 0;
                while goes_on.load(Ordering::Relaxed) {
                    version += 1;
                    for key in 0..keys {
                        fixture.insert_all(&format!("{writer}-{key}"), version, version).await;
                    }
                }
                version
            })
        };
        let writers = (0..writers).map(write).collect();
        Self { fixture: Arc::clone(fixture), keys, goes_on, writers }
    }

    /// Stops them and waits until everything is published, complete and in order. Returns the records, and how many events there are.
    pub async fn end(self) -> (Vec<Record>, usize) {
        self.goes_on.store(false, Ordering::Relaxed);
        let mut versions = Vec::new();
        for writer in self.writers {
            versions.push(writer.await.unwrap());
        }
        let total = usize::try_from(versions.iter().sum::<i64>()).unwrap() * self.keys;
        let records = self.fixture.published(total).await;
        let of_writer = |key: &str| versions[key.split_once('-').unwrap().0.parse::<usize>().unwrap()];
        assert_complete_and_in_order(&records, of_writer, versions.len() * self.keys);
        (records, total)
    }
}
