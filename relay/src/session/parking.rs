//! Writing refused events, and all later ones of their keys, into `relay_parked`; and publishing them again when an operator asks.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::sender::Work;
use super::{Session, SessionError, in_time};
use crate::lanes::{TypeIndex, index};
use crate::outbox;
use crate::outbox::parked::{Beginning, HeldKey, ParkedRow, Remaining, RetryRequest};
use crate::publisher::outcomes::{Failure, Parked, Retried};

/// Keys that are asked for at once.
const RETRY_KEYS_MAX: i64 = 100;

/// Between two tries of a key whose topic is not known yet.
const RETRY_LATER: Duration = Duration::from_millis(200);

/// Parked rows of a key that are tried again before other events get their turn.
const RETRY_ROWS_MAX: i64 = 500;

impl Session<'_> {
    /// Writes what the sender has put aside into `relay_parked`; only then does it count as dealt with.
    pub(super) async fn park(&mut self) -> Result<(), SessionError> {
        let parked = self.main.outcomes.take_parked();
        self.write_parked(&parked).await?;
        for parked in &parked {
            self.lanes.acknowledge(parked.ticket);
        }
        Ok(())
    }

    /// Writes these rows into `relay_parked`.
    pub(super) async fn write_parked(&mut self, parked: &[Parked]) -> Result<(), SessionError> {
        if parked.is_empty() {
            return Ok(());
        }
        for lane in self.lanes.iter() {
            let of_lane = || parked.iter().filter(|parked| parked.ticket.lane() == index(lane.lane));
            let ids: Vec<i64> = of_lane().map(|parked| parked.id).collect();
            if ids.is_empty() {
                continue;
            }
            let reasons: Vec<Option<&str>> = of_lane().map(|parked| parked.reason.as_deref()).collect();
            let held = outbox::parked::park(&mut self.connection, lane.lane, lane.token, &ids, &reasons);
            if !in_time(self.streams.config.limits.lease(), held).await? {
                return Err(SessionError::LaneLost(lane.lane));
            }
            self.streams.metrics.parked.inc_by(ids.len() as u64);
        }
        self.unsettled = true;
        Ok(())
    }

    /// Keys that are parked in these lanes (aggregate type and id), with each lane, also one without any.
    pub(super) async fn parked_keys(
        &mut self,
        lanes: &[i16],
    ) -> Result<BTreeMap<i16, Vec<(String, String)>>, SessionError> {
        let parked = outbox::parked::parked_keys(&mut self.connection, lanes);
        let parked = in_time(self.streams.config.limits.lease(), parked).await?;
        let mut by_lane: BTreeMap<i16, Vec<(String, String)>> = lanes.iter().map(|lane| (*lane, Vec::new())).collect();
        for (lane, aggregate_type, id) in parked {
            by_lane.entry(lane).or_default().push((aggregate_type, id));
        }
        Ok(by_lane)
    }

    /// Looks whether an operator wants parked keys of these lanes to be published again.
    pub(super) async fn look_for_retries(&mut self) -> Result<(), SessionError> {
        let lanes: Vec<i16> = self.lanes.iter().filter(|lane| !lane.draining).map(|lane| lane.lane).collect();
        let requests = outbox::parked::retry_requests(&mut self.connection, &lanes, RETRY_KEYS_MAX);
        let mut requests: VecDeque<RetryRequest> = in_time(self.streams.config.limits.lease(), requests).await?.into();
        // A key whose topic takes nothing now waits for its topic first.
        requests.retain(|request| !self.waits(request.lane, &request.aggregate_type));
        self.retries = requests;
        Ok(())
    }

    /// Whether parked keys wait to be tried again.
    #[must_use]
    pub fn has_retries(&self) -> bool {
        !self.retries.is_empty() && Instant::now() >= self.next_retry
    }

    /// Publishes some rows of the next parked key again. To be called while nothing is in flight: the sender has then parked every event
    /// of the key that was read, and they are in the table, so that none is left out when the key flows again.
    ///
    /// # Errors
    /// When Postgres or Kafka fails, or a lane was lost.
    pub async fn retry(&mut self) -> Result<(), SessionError> {
        debug_assert_eq!(self.in_flight(), 0, "younger events of the key could get ahead of its parked ones");
        let Some(RetryRequest { lane, aggregate_type, aggregate_id }) = self.retries.pop_front() else { return Ok(()) };
        if self.waits(lane, &aggregate_type) {
            // Since the requests were read. It is read again once its topic takes records.
            return Ok(());
        }
        let Some(token) = self.lanes.iter().find(|held| held.lane == lane).map(|held| held.token) else {
            return Ok(());
        };
        let key = HeldKey { lane, token, aggregate_type: &aggregate_type, aggregate_id: &aggregate_id };
        let limit = self.streams.config.limits.lease();
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
        let type_index = self.types.index(&aggregate_type);
        let topic = self.streams.topic_of(&aggregate_type).unwrap_or_default();
        let (published, refused) = match self.try_again(type_index, &topic, rows).await? {
            Retried::Ended { published, refused } => (published, refused.or(unpublishable)),
            Retried::Later => {
                self.next_retry = Instant::now() + RETRY_LATER;
                self.retries.push_back(RetryRequest { lane, aggregate_type, aggregate_id });
                return Ok(());
            }
        };
        let (sent, rest) = ids.split_at(published.min(ids.len()));
        let remaining = in_time(limit, outbox::parked::settle_retry(&mut self.connection, &key, sent)).await?;
        self.streams.metrics.published.inc_by(sent.len() as u64);
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
                self.main.pipe.send(Work::Unpark(lane, (aggregate_type, aggregate_id)));
            }
            (Remaining::Rows, ..) => self.retries.push_back(RetryRequest { lane, aggregate_type, aggregate_id }),
        }
        Ok(())
    }

    /// Has the sender try these rows again, and waits for all of their outcomes. All other events wait meanwhile, so a topic that is silent
    /// gets little time: then it is found to be in trouble, and waits by itself. If it was only slow, it gets twice the time when its keys
    /// are tried again.
    async fn try_again(
        &mut self,
        type_index: TypeIndex,
        topic: &str,
        rows: Vec<ParkedRow>,
    ) -> Result<Retried, SessionError> {
        if rows.is_empty() {
            return Ok(Retried::Ended { published: 0, refused: None });
        }
        self.retrying = true;
        self.main.pipe.send(Work::Retry(type_index, rows));
        let (mut published, mut silent_since) = (0, Instant::now());
        loop {
            // Before the failure: a refusal may end the producer, and still be the answer.
            if let Some(retried) = self.main.outcomes.take_retry() {
                self.retrying = false;
                self.retry_patience = self.streams.config.limits.slow_after();
                return Ok(retried);
            }
            if let Some(failure) = self.main.outcomes.failure() {
                // The next producer tries them one at a time, unless they are not to blame.
                self.constraints.retry_alone |= !failure.is_of_silence();
                self.replace_producer(failure).await?;
                self.retrying = false;
                return Ok(Retried::Later);
            }
            let now_published = self.main.outcomes.retried();
            if now_published > published {
                (published, silent_since) = (now_published, Instant::now());
            } else if silent_since.elapsed() > self.retry_patience {
                self.retry_patience = (self.retry_patience * 2).min(self.streams.config.limits.message_timeout());
                self.main.outcomes.fail(Failure::silence_of(topic));
                continue;
            }
            let _ = tokio::time::timeout(Duration::from_millis(100), self.outcome()).await;
            self.renew_if_due().await?;
        }
    }
}
