//! Reading the outbox and handing what was read to the sender.

use shared::spans;

use super::sender::Work;
use super::{Session, SessionError, in_time};
use crate::batch::Batch;
use crate::lanes::Snapshot;
use crate::lanes::plan::{Accepted, Answer, FindPlan, Found, PartAnswer, PartPlan, ReadPlan, Step};
use crate::outbox;
use crate::outbox::detour::{Finding, PartLimits};
use crate::outbox::read::{ReadAnswer, ReadLimits};

/// Bytes of the texts of one read. Small enough for [`super::sender::BATCHES_WAITING`] and two more of them to be no burden, and large
/// enough for thousands of ordinary events.
pub(super) const READ_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes of the texts of one part of a detour. Few, since new rows wait behind them, in the sender and in the producer.
const PART_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Rows of one part of a detour.
const PART_ROWS_MAX: i64 = 8_000;

/// How many ids may be given out from one read to the next. If there are more, the next one looks for the rest.
const IDS_AHEAD: i64 = 100_000;

/// How much the next reads ask for: fewer rows when they are large.
#[derive(Debug)]
pub(super) struct ReadSizes {
    /// New rows of each lane.
    lane_rows: i64,
    /// Rows of a part.
    part_rows: i64,
    /// The highest id that is looked for.
    id_max: i64,
}

impl ReadSizes {
    pub(super) const fn new(lane_rows: i64) -> Self {
        Self { lane_rows, part_rows: PART_ROWS_MAX, id_max: i64::MAX }
    }
}

impl Session<'_> {
    /// Looks at the outbox once and hands what it finds to the sender.
    ///
    /// # Errors
    /// When Postgres fails.
    pub async fn read_and_publish(&mut self) -> Result<Found, SessionError> {
        let found = match self.lanes.next_step() {
            None => Found::Nothing,
            Some(Step::Find(plan)) => Box::pin(self.find(&plan)).await?,
            Some(Step::Part(plan)) => Box::pin(self.read_part(&plan)).await?,
            Some(Step::Read(plan)) => Box::pin(self.read(&plan)).await?,
        };
        // While there is a detour, there is always more; but its next part may have to wait for acknowledgements.
        Ok(match found {
            Found::Nothing | Found::All if self.lanes.has_part() => Found::More,
            Found::Nothing if self.lanes.is_amid_read() => Found::All,
            found => found,
        })
    }

    async fn read(&mut self, plan: &ReadPlan) -> Result<Found, SessionError> {
        if self.nothing_committed_since().await? {
            return Ok(Found::Nothing);
        }
        let limits = ReadLimits {
            late_rows: self.streams.config.limits.late_rows_max,
            lane_rows: self.sizes.lane_rows,
            id_max: self.sizes.id_max,
            bytes: READ_BYTES_MAX,
        };
        let lease = self.streams.config.limits.lease();
        let read = outbox::read::read(&mut self.connection, plan, limits, self.main.pipe.empty_batch());
        let ReadAnswer { snapshot, last_id, mut batch, late, late_cut, fresh_cut } = in_time(lease, read).await?;
        self.sizes.id_max = last_id.saturating_add(IDS_AHEAD);
        batch.number_types(&mut self.types);
        fit(&mut self.sizes.lane_rows, &batch, (READ_BYTES_MAX, self.streams.config.limits.lane_rows_max));
        let snapshot = Snapshot::parse(snapshot)?;
        let accepted =
            self.lanes.accept(plan, &Answer { snapshot, last_id, rows: batch.keys(), late, late_cut, fresh_cut });
        if late_cut && self.lanes.is_amid_read() {
            tracing::info!(
                "a large transaction has committed late: its events are published in parts, beside new ones"
            );
        }
        self.hand_over(batch, accepted).await
    }

    /// Looks for some of the aggregates of a detour.
    async fn find(&mut self, plan: &FindPlan) -> Result<Found, SessionError> {
        let lease = self.streams.config.limits.lease();
        let mut finding = match self.finding.take().filter(|finding| finding.is_of(plan)) {
            Some(finding) => finding,
            None => in_time(lease, Finding::begin(&mut self.connection, plan)).await?,
        };
        let page = in_time(lease, finding.next_page(&mut self.connection, plan)).await?;
        self.lanes.found(&page.key_hashes, &page.transactions, page.are_all);
        if page.is_last {
            self.lanes.all_found();
        } else {
            self.finding = Some(finding);
        }
        Ok(Found::More)
    }

    async fn read_part(&mut self, plan: &PartPlan) -> Result<Found, SessionError> {
        let limits = PartLimits { rows: self.sizes.part_rows, bytes: PART_BYTES_MAX };
        let (lease, mut batch) = (self.streams.config.limits.lease(), self.main.pipe.empty_batch());
        let cut = outbox::detour::read_part(&mut self.connection, plan, limits, &mut batch);
        let cut = in_time(lease, cut).await?;
        batch.number_types(&mut self.types);
        if matches!(plan, PartPlan::Late { .. }) {
            fit(&mut self.sizes.part_rows, &batch, (PART_BYTES_MAX, PART_ROWS_MAX));
        }
        let accepted = self.lanes.accept_part(&PartAnswer { rows: batch.keys(), cut });
        self.hand_over(batch, accepted).await
    }

    /// Hands the rows with a ticket to the sender, with what was not fetched of them yet.
    async fn hand_over(&mut self, mut batch: Batch, accepted: Accepted) -> Result<Found, SessionError> {
        self.streams.metrics.read(batch.len());
        self.events_read = accepted.tickets.iter().flatten().count();
        self.streams.metrics.late.inc_by(accepted.late as u64);
        batch.read_at = Some(spans::now());
        if self.events_read > 0 {
            batch.tickets = accepted.tickets;
            let lease = self.streams.config.limits.lease();
            in_time(lease, outbox::large::fetch(&mut self.connection, &mut batch)).await?;
            self.main.pipe.send(Work::Batch(batch));
        } else {
            self.main.pipe.give_back(batch);
        }
        Ok(accepted.found)
    }

    /// Whether the outbox cannot have changed since a read that found all there was.
    async fn nothing_committed_since(&mut self) -> Result<bool, SessionError> {
        // While events come steadily, something has.
        if self.events_read > 0 {
            return Ok(false);
        }
        let Some(exhausted) = self.lanes.exhausted() else { return Ok(false) };
        let snapshot = outbox::current_snapshot(&mut self.connection);
        Ok(exhausted.as_str() == in_time(self.streams.config.limits.lease(), snapshot).await?)
    }
}

/// Asks for fewer rows when they are so large that a read was cut off, since the server sends the rest of it in vain; and for more again
/// when they fit easily.
fn fit(rows: &mut i64, batch: &Batch, (bytes_max, rows_max): (usize, i64)) {
    let bytes = batch.bytes();
    if bytes >= bytes_max {
        *rows = (*rows / 4).max(1);
    } else if bytes < bytes_max / 4 {
        *rows = (*rows * 2).min(rows_max);
    }
}
