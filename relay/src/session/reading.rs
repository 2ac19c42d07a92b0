//! Reading the outbox and handing what was read to the sender.

use shared::spans;

use super::sender::Work;
use super::{Session, SessionError, in_time};
use crate::lanes::Snapshot;
use crate::lanes::held::{Answer, Found};
use crate::outbox;
use crate::outbox::read::{ReadAnswer, ReadLimits};

/// Bytes of the texts of one read. Small enough for [`super::sender::BATCHES_WAITING`] and two more of them to be no burden, and large
/// enough for thousands of ordinary events.
const READ_BYTES_MAX: usize = 16 * 1024 * 1024;

impl Session<'_> {
    /// Looks at the outbox once and hands what it finds to the sender.
    ///
    /// # Errors
    /// When Postgres fails.
    pub async fn read_and_publish(&mut self) -> Result<Found, SessionError> {
        if self.nothing_committed_since().await? {
            return Ok(Found::Nothing);
        }
        let Some(plan) = self.lanes.plan() else { return Ok(Found::Nothing) };
        let limits = ReadLimits {
            late_rows: self.config.limits.late_rows_max,
            lane_rows: self.lane_rows,
            bytes: READ_BYTES_MAX,
        };
        let lease = self.config.limits.lease();
        let read = outbox::read::read(&mut self.connection, &plan, limits, self.pipe.empty_batch());
        let answer = in_time(lease, read).await?;
        self.metrics.read(answer.batch.len());
        self.fit_next_read(&answer);
        let ReadAnswer { snapshot, mut batch, late, late_cut, fresh_cut } = answer;
        batch.read_at = Some(spans::now());
        let snapshot = Snapshot::parse(snapshot)?;
        let accepted = self.lanes.accept(&plan, &Answer { snapshot, rows: batch.keys(), late, late_cut, fresh_cut });
        self.metrics.late.inc_by(accepted.late as u64);
        if accepted.tickets.iter().any(Option::is_some) {
            batch.tickets = accepted.tickets;
            in_time(lease, outbox::large::fetch(&mut self.connection, &mut batch)).await?;
            self.pipe.send(Work::Batch(batch));
        } else {
            self.pipe.give_back(batch);
        }
        Ok(accepted.found)
    }

    /// Whether the outbox cannot have changed since a read that found all there was.
    async fn nothing_committed_since(&mut self) -> Result<bool, SessionError> {
        let Some(exhausted) = self.lanes.exhausted() else { return Ok(false) };
        let snapshot = outbox::current_snapshot(&mut self.connection);
        Ok(exhausted.as_str() == in_time(self.config.limits.lease(), snapshot).await?)
    }

    /// Asks for fewer rows when they are so large that a read was cut off, since the server sends the rest of it in vain; and for more
    /// again when they fit easily.
    fn fit_next_read(&mut self, answer: &ReadAnswer) {
        let bytes = answer.batch.bytes();
        if bytes >= READ_BYTES_MAX {
            self.lane_rows = (self.lane_rows / 4).max(1);
        } else if bytes < READ_BYTES_MAX / 4 {
            self.lane_rows = (self.lane_rows * 2).min(self.config.limits.lane_rows_max);
        }
    }
}
