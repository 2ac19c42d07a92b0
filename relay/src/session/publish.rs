//! Reading the outbox and handing what was read to the producer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Session, SessionError, in_time};
use crate::lanes::{self, Cursor, HeldLane, LANES, Snapshot};
use crate::outbox::{self, ReadAnswer, ReadRequest, Row};
use crate::publisher::{SendError, Ticket};

/// What a look at the outbox found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// No new row.
    Nothing,
    /// All there was.
    All,
    /// As much as one read may bring: there is more.
    More,
}

/// A row that waits in `relay_parked` from now on.
struct Parked {
    ticket: Ticket,
    id: i64,
    /// Why Kafka refuses it; none if an elder of its key was refused.
    reason: Option<String>,
}

impl Session<'_> {
    /// Looks at the outbox once and hands what it finds to the producer.
    ///
    /// # Errors
    /// When Postgres or the producer fails, or a lane was lost.
    pub async fn read_and_publish(&mut self) -> Result<Found, SessionError> {
        if self.nothing_committed_since().await? {
            return Ok(Found::Nothing);
        }
        let lanes: Vec<(i16, i64)> = self.readable().map(|lane| (lane.lane, lane.read.position)).collect();
        if lanes.is_empty() {
            return Ok(Found::Nothing);
        }
        let mut answer = self.read(&lanes).await?;
        self.metrics.reads.inc();
        let limits = &self.config.limits;
        let raw_late = i64::try_from(answer.late.len()).unwrap_or(i64::MAX);
        let truncated = raw_late >= limits.late_rows_max;
        let lane_full = |lane: i16| {
            let rows = answer.fresh.iter().filter(|row| row.lane == lane).count();
            i64::try_from(rows).unwrap_or(i64::MAX) >= limits.lane_rows_max
        };
        let full = truncated || self.rest.is_some() || lanes.iter().any(|(lane, _)| lane_full(*lane));
        let seen = match self.rest.take() {
            Some((_, through, _)) => through,
            None => Snapshot::parse(std::mem::take(&mut answer.snapshot))?,
        };
        if truncated {
            // The new rows of this read are read again once the late ones are through: late rows of a key come before its new ones.
            answer.fresh.clear();
            let after = answer.late.last().map_or(0, |row| row.id);
            self.rest = Some((after, seen.clone(), lanes.iter().map(|(lane, _)| *lane).collect()));
        }
        self.exhausted = (!full).then(|| seen.as_str().to_owned());
        answer.late.retain(|row| self.lane(row.lane).is_some_and(|lane| !lane.read.covers(row.id, row.txid)));
        self.metrics.late.inc_by(answer.late.len() as u64);
        let rows = answer.late.len() + answer.fresh.len();
        let first = self.begin_read(&lanes, &answer, &Arc::new(seen), truncated);
        self.publish(answer, first).await?;
        Ok(match (full, rows) {
            (true, _) => Found::More,
            (false, 0) => Found::Nothing,
            (false, _) => Found::All,
        })
    }

    /// Whether the outbox cannot have changed since a read that found all there was. Spares an idle database the read, and keeps a
    /// relay from walking over the rows of a bulk transaction that is still running at every look.
    async fn nothing_committed_since(&mut self) -> Result<bool, SessionError> {
        let Some(exhausted) = &self.exhausted else { return Ok(false) };
        let snapshot = in_time(self.config.limits.lease(), outbox::current_snapshot(&mut self.connection)).await?;
        Ok(*exhausted == snapshot)
    }

    /// The lanes that take part in the next read.
    fn readable(&self) -> impl Iterator<Item = &HeldLane> {
        let only = self.rest.as_ref().map(|(_, _, lanes)| lanes);
        self.held().filter(move |lane| only.map_or(!lane.draining, |only| only.contains(&lane.lane)))
    }

    async fn read(&mut self, lanes: &[(i16, i64)]) -> Result<ReadAnswer, SessionError> {
        let limits = &self.config.limits;
        let seen: Vec<&Snapshot> = self.readable().filter_map(|lane| lane.read.seen.as_deref()).collect();
        let late_from = seen.iter().map(|seen| seen.xmax()).min().unwrap_or(i64::MAX);
        let mut late_running: Vec<i64> =
            seen.iter().flat_map(|seen| seen.xip()).copied().filter(|txid| *txid < late_from).collect();
        late_running.sort_unstable();
        late_running.dedup();
        let rest = self.rest.as_ref().map(|(after, through, _)| (*after, through.clone()));
        let request = ReadRequest {
            lanes,
            late_from,
            late_running: &late_running,
            late_rows_max: limits.late_rows_max,
            lane_rows_max: limits.lane_rows_max,
            rest: rest.as_ref(),
        };
        in_time(limits.lease(), outbox::read(&mut self.connection, &request)).await
    }

    /// Notes in each lane what is about to be sent and where it stands after that. Returns each lane's first sequence number.
    fn begin_read(
        &mut self,
        reading: &[(i16, i64)],
        answer: &ReadAnswer,
        seen: &Arc<Snapshot>,
        truncated: bool,
    ) -> [u64; LANES] {
        let mut first = [0; LANES];
        for (number, _) in reading {
            let ids = |rows: &[Row]| -> Vec<i64> {
                rows.iter().filter(|row| row.lane == *number).map(|row| row.id).collect()
            };
            let (late, fresh) = (ids(&answer.late), ids(&answer.fresh));
            let Some(held) = self.lane_mut(*number) else { continue };
            if !truncated {
                let position = fresh.last().copied().unwrap_or(held.read.position);
                held.read = Cursor { position, seen: Some(Arc::clone(seen)) };
            }
            let sequence = held.progress.begin_read(&late, &fresh, held.read.clone());
            if let Some(slot) = first.get_mut(lanes::index(*number)) {
                *slot = sequence;
            }
        }
        first
    }

    async fn publish(&mut self, answer: ReadAnswer, mut next: [u64; LANES]) -> Result<(), SessionError> {
        let mut parked = Vec::new();
        // Late rows before new ones: of one key, a late event is always the elder.
        for row in answer.late.into_iter().chain(answer.fresh) {
            let Some(sequence) = next.get_mut(lanes::index(row.lane)) else { continue };
            let ticket = Ticket::new(lanes::index(row.lane), *sequence);
            *sequence += 1;
            self.ensure_destination(&row.aggregate_type).await?;
            self.ensure_lease().await?;
            let key_is_parked = self.lane(row.lane).is_some_and(|lane| {
                !lane.parked.is_empty() && lane.parked.contains(&(row.aggregate_type.clone(), row.aggregate_id.clone()))
            });
            if key_is_parked {
                parked.push(Parked { ticket, id: row.id, reason: None });
            } else if let Some(reason) = self.send(&row, ticket).await? {
                tracing::error!(
                    event.id = %row.event_id,
                    outbox.id = row.id,
                    reason,
                    "Kafka refuses an event for good: its key is parked, see relay_parked"
                );
                parked.push(Parked { ticket, id: row.id, reason: Some(reason) });
                if let Some(lane) = self.lane_mut(row.lane) {
                    lane.parked.insert((row.aggregate_type, row.aggregate_id));
                }
            }
        }
        self.park(&parked).await
    }

    /// Hands a row to the producer, waiting for room in its queue. Returns a reason if Kafka will never take it.
    async fn send(&mut self, row: &Row, ticket: Ticket) -> Result<Option<String>, SessionError> {
        loop {
            match self.publisher.send(row, ticket) {
                Ok(()) => return Ok(None),
                Err(SendError::Refused(reason)) => return Ok(Some(reason)),
                Err(SendError::Broken(error)) => return Err(SessionError::Producer(error)),
                Err(SendError::QueueFull) => {
                    // Every record in the queue ends within the message time-out, so this does too: in room, or in a failure.
                    let _ = tokio::time::timeout(Duration::from_millis(100), self.outcome()).await;
                    self.collect()?;
                    self.ensure_lease().await?;
                }
            }
        }
    }

    /// A record may be handed over only while its lane's lease outlives the time the producer may take for it.
    async fn ensure_lease(&mut self) -> Result<(), SessionError> {
        let needed = self.config.limits.lease_needed_to_send();
        if Instant::now() + needed < self.lease_until {
            return Ok(());
        }
        // Here a relay arrives that was frozen between reading and sending: the renewal tells it that its lane is gone.
        self.renew().await?;
        if Instant::now() + needed < self.lease_until { Ok(()) } else { Err(SessionError::LeaseTooOld) }
    }

    async fn ensure_destination(&mut self, aggregate_type: &str) -> Result<(), SessionError> {
        let Some(topic) = self.publisher.new_topic(aggregate_type) else { return Ok(()) };
        let made = self.config.kafka.ensure_topics("outrider-relay", &[&topic]).await;
        made.map_err(|error| SessionError::Topic { topic, error })
    }

    /// Writes the rows into `relay_parked`; only then do they count as dealt with.
    async fn park(&mut self, parked: &[Parked]) -> Result<(), SessionError> {
        if parked.is_empty() {
            return Ok(());
        }
        for index in 0..LANES {
            let Some(lane) = self.lanes.get_mut(index).and_then(Option::as_mut) else { continue };
            let of_lane: Vec<&Parked> = parked.iter().filter(|parked| parked.ticket.lane() == index).collect();
            if of_lane.is_empty() {
                continue;
            }
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

    fn lane(&self, number: i16) -> Option<&HeldLane> {
        self.lanes.get(lanes::index(number)).and_then(Option::as_ref)
    }

    fn lane_mut(&mut self, number: i16) -> Option<&mut HeldLane> {
        self.lanes.get_mut(lanes::index(number)).and_then(Option::as_mut)
    }
}
