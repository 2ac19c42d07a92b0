//! Where partitions start: at the position in Postgres, else at the one that Kafka has, else at the beginning. A position that
//! the broker does not bear out is refused, never jumped over.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::Offset;
use shared::backoff::Backoff;
use shared::db::{Database, words};

use super::ConsumerError;
use crate::broker::Broker;
use crate::offsets::{LostPositions, Seen, lost_of, see};
use crate::record::Partition;
use crate::store::offsets::{self as sql, Stored};

/// Where positions are kept.
#[derive(Clone)]
pub(crate) struct Positions {
    pub(crate) database: Database,
    pub(crate) group: Arc<str>,
    pub(crate) broker: Arc<Broker>,
    pub(crate) retry_max: Duration,
}

/// Where one partition starts.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) partition: Partition,
    /// Position in Postgres; none if it has no row.
    pub(crate) position: Option<i64>,
    /// The lowest offset that is to be applied.
    pub(crate) next_offset: i64,
    /// What to ask Kafka for.
    pub(crate) offset: Offset,
}

impl Positions {
    /// Finds where `partitions` start. Tries again, with backoff, for as long as Postgres or Kafka do not answer: the consumer
    /// is polled meanwhile and stays in its group, and drops this when it leaves.
    ///
    /// # Errors
    /// When the broker does not bear a position out.
    pub(crate) async fn find(&self, partitions: &[Partition]) -> Result<Vec<Start>, ConsumerError> {
        if partitions.is_empty() {
            return Ok(Vec::new()); // More processors than partitions: no reason to wait for Postgres.
        }
        let mut backoff = Backoff::new(Duration::from_millis(50), self.retry_max);
        loop {
            let error = match self.read(partitions).await {
                Ok((stored, seen)) => return self.starts(partitions, &stored, &seen),
                Err(error) => error,
            };
            let delay = backoff.random_delay();
            tracing::warn!(
                error = words(&*error),
                attempt = backoff.attempts(),
                retry_in_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
                "positions could not be read"
            );
            tokio::time::sleep(delay).await;
        }
    }

    async fn read(
        &self,
        partitions: &[Partition],
    ) -> Result<(HashMap<Partition, Stored>, Vec<Seen>), Box<dyn std::error::Error + Send + Sync>> {
        let stored =
            self.database.with(async |connection| sql::stored(connection, &self.group, partitions).await).await?;
        let broker = Arc::clone(&self.broker);
        let (asked, known) = (partitions.to_vec(), stored.clone());
        let seen = tokio::task::spawn_blocking(move || see(&broker, &asked, |partition| known.get(partition).copied()));
        Ok((stored, seen.await??))
    }

    fn starts(
        &self,
        partitions: &[Partition],
        stored: &HashMap<Partition, Stored>,
        seen: &[Seen],
    ) -> Result<Vec<Start>, ConsumerError> {
        let mut starts = Vec::with_capacity(partitions.len());
        let mut lost = Vec::new();
        for (partition, seen) in partitions.iter().zip(seen) {
            if let Some(found) = lost_of(&self.group, partition, stored.get(partition), seen) {
                lost.push(found);
                continue;
            }
            let position = stored.get(partition).map(|stored| stored.next_offset);
            let start = position.or(seen.view.committed);
            starts.push(Start {
                partition: partition.clone(),
                position,
                next_offset: start.unwrap_or(seen.view.low),
                // Not as the offset that `low` is now: it may be gone a moment later, and nothing of it has been missed.
                offset: start.map_or(Offset::Beginning, Offset::Offset),
            });
        }
        if lost.is_empty() { Ok(starts) } else { Err(ConsumerError::PositionsLost(LostPositions(lost))) }
    }
}
