//! Writing refused events, and all later ones of their keys, into `relay_parked`; and publishing them again when an operator asks.

use std::time::Duration;

use super::sender::Work;
use super::{Session, SessionError, in_time};
use crate::lanes::LANES;
use crate::outbox;
use crate::outbox::parked::{Beginning, HeldKey, ParkedRow, Remaining, RetryRequest};
use crate::publisher::outcomes::{Parked, Retried};

/// Keys that are asked for at once.
const RETRY_KEYS_MAX: i64 = 100;

/// Parked rows of a key that are tried again before other events get their turn.
const RETRY_ROWS_MAX: i64 = 500;

impl Session<'_> {
    /// Writes what the sender has put aside into `relay_parked`; only then does it count as dealt with.
    pub(super) async fn park(&mut self) -> Result<(), SessionError> {
        let parked = self.outcomes.take_parked();
        if parked.is_empty() {
            return Ok(());
        }
        for index in 0..LANES {
            let of_lane: Vec<&Parked> = parked.iter().filter(|parked| parked.ticket.lane() == index).collect();
            let Some(lane) = self.lanes.get_mut(index).filter(|_| !of_lane.is_empty()) else { continue };
            let ids: Vec<i64> = of_lane.iter().map(|parked| parked.id).collect();
            let reasons: Vec<Option<&str>> = of_lane.iter().map(|parked| parked.reason.as_deref()).collect();
            let held = outbox::parked::park(&mut self.connection, lane.lane, lane.token, &ids, &reasons);
            if !in_time(self.config.limits.lease(), held).await? {
                return Err(SessionError::LaneLost(lane.lane));
            }
            for parked in &of_lane {
                lane.progress.acknowledge(parked.ticket.sequence());
            }
            self.metrics.parked.inc_by(of_lane.len() as u64);
            self.unsettled = true;
        }
        Ok(())
    }

    /// Looks whether an operator wants parked keys of these lanes to be published again.
    pub(super) async fn look_for_retries(&mut self) -> Result<(), SessionError> {
        let lanes: Vec<i16> = self.lanes.iter().filter(|lane| !lane.draining).map(|lane| lane.lane).collect();
        let requests = outbox::parked::retry_requests(&mut self.connection, &lanes, RETRY_KEYS_MAX);
        self.retries = in_time(self.config.limits.lease(), requests).await?.into();
        Ok(())
    }

    /// Whether parked keys wait to be tried again.
    #[must_use]
    pub fn has_retries(&self) -> bool {
        !self.retries.is_empty()
    }

    /// Publishes some rows of the next parked key again. To be called while nothing is in flight: the sender has then parked every event
    /// of the key that was read, and they are in the table, so that none is left out when the key flows again.
    ///
    /// # Errors
    /// When Postgres or Kafka fails, or a lane was lost.
    pub async fn retry(&mut self) -> Result<(), SessionError> {
        debug_assert_eq!(self.in_flight(), 0, "younger events of the key could get ahead of its parked ones");
        let Some(RetryRequest { lane, aggregate_type, aggregate_id }) = self.retries.pop_front() else { return Ok(()) };
        let Some(token) = self.lanes.iter().find(|held| held.lane == lane).map(|held| held.token) else {
            return Ok(());
        };
        let key = HeldKey { lane, token, aggregate_type: &aggregate_type, aggregate_id: &aggregate_id };
        let limit = self.config.limits.lease();
        match in_time(limit, outbox::parked::begin_retry(&mut self.connection, &key)).await? {
            Beginning::Begun => {}
            Beginning::Withdrawn => return Ok(()),
            Beginning::LaneLost => return Err(SessionError::LaneLost(lane)),
        }
        let mut rows = in_time(limit, outbox::parked::parked_rows(&mut self.connection, &key, RETRY_ROWS_MAX)).await?;
        let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
        // The sender gets none of the rows from the first on that cannot be published: that one ends the retry.
        let sendable = rows.iter().position(|row| row.unpublishable().is_some()).unwrap_or(rows.len());
        let unpublishable = rows.get(sendable).and_then(ParkedRow::unpublishable);
        rows.truncate(sendable);
        let Retried { published, refused } = self.try_again(rows).await?;
        let refused = refused.or(unpublishable);
        let (sent, rest) = ids.split_at(published.min(ids.len()));
        let remaining = in_time(limit, outbox::parked::settle_retry(&mut self.connection, &key, sent)).await?;
        self.metrics.published.inc_by(sent.len() as u64);
        tracing::info!(relay.lane = lane, published, refused, "parked events were tried again");
        match (remaining, refused, rest.first()) {
            (Remaining::LaneLost, ..) => return Err(SessionError::LaneLost(lane)),
            (_, Some(reason), Some(id)) => {
                let refused = outbox::parked::refuse_retry(&mut self.connection, &key, *id, &reason);
                if !in_time(limit, refused).await? {
                    return Err(SessionError::LaneLost(lane));
                }
            }
            (Remaining::Nothing, ..) => {
                self.pipe.send(Work::Unpark(lane, (aggregate_type, aggregate_id)));
            }
            (Remaining::Rows, ..) => self.retries.push_back(RetryRequest { lane, aggregate_type, aggregate_id }),
        }
        Ok(())
    }

    /// Has the sender try these rows again, and waits for all of their outcomes.
    async fn try_again(&mut self, rows: Vec<ParkedRow>) -> Result<Retried, SessionError> {
        if rows.is_empty() {
            return Ok(Retried { published: 0, refused: None });
        }
        self.retrying = true;
        self.pipe.send(Work::Retry(rows));
        loop {
            // Before the failure: a refusal may end the producer, and still be the answer.
            if let Some(retried) = self.outcomes.take_retry() {
                self.retrying = false;
                return Ok(retried);
            }
            if let Some(failure) = self.outcomes.failure() {
                return Err(failure.into());
            }
            let _ = tokio::time::timeout(Duration::from_millis(100), self.outcome()).await;
            self.renew_if_due().await?;
        }
    }
}
