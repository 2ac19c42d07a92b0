//! Keeping leases: renewing and settling, taking lanes, giving lanes to relays that have fewer, and handing all back at the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::sender::Work;
use super::{Session, SessionError, in_time};
use crate::lanes::{Cursor, HeldLane, Snapshot, fair_share};
use crate::outbox::{self, ClaimedLane};

/// How long a change of the sequence may go unnoticed.
const SEQUENCE_CHECK_INTERVAL: Duration = Duration::from_mins(1);

impl Session<'_> {
    /// Renews, settles and balances, if it is time to.
    ///
    /// # Errors
    /// When Postgres fails, or a lane was lost.
    pub async fn keep_leases_if_due(&mut self) -> Result<(), SessionError> {
        let now = Instant::now();
        if now >= self.next_balance {
            self.keep_leases().await
        } else if self.unsettled && now >= self.next_settle {
            self.renew().await.map(|_| ())
        } else {
            Ok(())
        }
    }

    /// Renews and settles all lanes, then takes or gives lanes so that each relay has its share.
    ///
    /// # Errors
    /// When Postgres fails, or a lane was lost.
    pub async fn keep_leases(&mut self) -> Result<(), SessionError> {
        self.balance().await?;
        self.look_for_retries().await
    }

    /// Renews only: while parked events are tried again, lanes stay as they are.
    pub(super) async fn renew_if_due(&mut self) -> Result<(), SessionError> {
        if Instant::now() < self.next_balance {
            return Ok(());
        }
        self.next_balance = Instant::now() + self.streams.config.limits.renewal();
        self.renew().await.map(|_| ())
    }

    async fn balance(&mut self) -> Result<(), SessionError> {
        // Not moved by a settle between two of these: under load, settles follow each other closely, and lanes would never be balanced.
        self.next_balance = Instant::now() + self.streams.config.limits.renewal();
        let relays = self.renew().await?;
        self.check_sequence_if_due().await?;
        let routes = in_time(self.streams.config.limits.lease(), outbox::routes::routes(&mut self.connection)).await?;
        self.streams.routes = self.streams.config.routes.with_table(routes);
        self.main.pipe.send(Work::Routes(self.streams.routes.clone()));
        self.release_drained().await?;
        let share = fair_share(relays);
        let held = self.lanes.iter().filter(|lane| !lane.draining).count();
        if held < share {
            self.claim(share - held).await?;
        }
        for lane in self.lanes.iter_mut().filter(|lane| !lane.draining).skip(share) {
            lane.draining = true;
            tracing::info!(relay.lane = lane.lane, relay.count = relays, "giving a lane to another relay");
        }
        self.streams.metrics.lanes_held.set(i64::try_from(self.lanes.iter().count()).unwrap_or(i64::MAX));
        Ok(())
    }

    /// Looks whether ids are given out in order, at the start of a session and once a minute.
    async fn check_sequence_if_due(&mut self) -> Result<(), SessionError> {
        let now = Instant::now();
        if now < self.next_sequence_check {
            return Ok(());
        }
        self.next_sequence_check = now + SEQUENCE_CHECK_INTERVAL;
        let sequence = outbox::sequence::id_sequence(&mut self.connection);
        Ok(in_time(self.streams.config.limits.lease(), sequence).await?.check()?)
    }

    /// Renews the leases and settles the cursors. Returns how many relays are running.
    ///
    /// # Errors
    /// When Postgres fails, or a lane was lost.
    pub(super) async fn renew(&mut self) -> Result<usize, SessionError> {
        let limits = &self.streams.config.limits;
        let start = Instant::now();
        let held: Vec<&HeldLane> = self.lanes.iter().collect();
        let renewal = outbox::renew_and_settle(
            &mut self.connection,
            &self.streams.config.relay,
            limits.lease(),
            &held,
            self.system_identifier,
        );
        let renewal = in_time(limits.lease(), renewal).await?;
        // A settle that hits no row means that the token was raised: another relay holds the lane, and has held it since some moment at
        // which ours was over. Everything of this session is suspect then.
        if let Some(lost) = held.iter().find(|lane| !renewal.lanes.contains(&lane.lane)) {
            return Err(SessionError::LaneLost(lost.lane));
        }
        // The database dated the lease at some moment after `start`, so it holds at least until then.
        let until = start + limits.lease();
        self.streams.lease_until = until;
        self.main.lease.extend(until);
        self.waiting.values().for_each(|waiting| waiting.extend_lease(until));
        self.unsettled = false;
        self.settle_waiting().await?;
        let took = start.elapsed();
        self.streams.metrics.settle_seconds.inc_by(took.as_secs_f64());
        // A settle gets slower when a long transaction keeps its dead rows from being cleaned up; then settle less often.
        self.next_settle = start + Duration::from_millis(limits.settle_ms).max(took * 20);
        Ok(renewal.relays)
    }

    async fn claim(&mut self, count: usize) -> Result<(), SessionError> {
        let limits = &self.streams.config.limits;
        let held: Vec<i16> = self.lanes.iter().map(|lane| lane.lane).collect();
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let claimed =
            outbox::claim_lanes(&mut self.connection, &self.streams.config.relay, limits.lease(), &held, count);
        let claimed = in_time(limits.lease(), claimed).await?;
        if claimed.is_empty() {
            return Ok(());
        }
        self.refuse_foreign_cursors(&claimed).await?;
        let numbers: Vec<i16> = claimed.iter().map(|lane| lane.lane).collect();
        // The sender knows the lanes' parked keys before it sees their first events.
        for (lane, keys) in self.parked_keys(&numbers).await? {
            self.main.pipe.send(Work::Lane(lane, keys));
        }
        for lane in claimed {
            self.lanes.insert(held_lane(lane)?);
        }
        self.take_waiting(&numbers).await?;
        self.join_waiting(&numbers).await?;
        tracing::info!(relay.lanes = ?numbers, "lanes taken");
        Ok(())
    }

    fn can_be_given_back(&self, lane: &HeldLane) -> bool {
        let waiting = self.waiting.values().map(|waiting| waiting.lanes.in_flight_of(lane.lane)).sum::<usize>();
        self.lanes.can_be_given_back(lane) && waiting == 0
    }

    /// Looks whether the cursors hold in this cluster. They do after `pg_upgrade`: transaction ids have gone on.
    ///
    /// Where the cluster has the identifier that they were settled under, too: those who run Postgres for others may make clusters as copies
    /// of one, all with the same identifier. It costs two steps in an index.
    async fn refuse_foreign_cursors(&mut self, claimed: &[ClaimedLane]) -> Result<(), SessionError> {
        let foreign = outbox::cluster::foreign_cursors(&mut self.connection);
        if let Some(foreign) = in_time(self.streams.config.limits.lease(), foreign).await? {
            return Err(foreign.into());
        }
        let here = self.system_identifier;
        if let Some(stored) = claimed.iter().filter_map(|lane| lane.system_identifier).find(|stored| *stored != here) {
            tracing::info!(
                db.system_identifier = here,
                db.system_identifier.before = stored,
                "the cursors were settled in another Postgres cluster, whose transaction ids go on in this one: publishing goes on, too"
            );
        }
        Ok(())
    }

    async fn release_drained(&mut self) -> Result<(), SessionError> {
        let drained: Vec<&HeldLane> =
            self.lanes.iter().filter(|lane| lane.draining && self.can_be_given_back(lane)).collect();
        if drained.is_empty() {
            return Ok(());
        }
        let numbers: Vec<i16> = drained.iter().map(|lane| lane.lane).collect();
        self.release(&numbers).await
    }

    async fn release(&mut self, numbers: &[i16]) -> Result<(), SessionError> {
        self.settle_waiting().await?;
        let lanes: Vec<&HeldLane> = self.lanes.iter().filter(|lane| numbers.contains(&lane.lane)).collect();
        let released = outbox::release_lanes(&mut self.connection, &self.streams.config.relay, &lanes);
        let released = in_time(self.streams.config.limits.lease(), released).await?;
        if usize::try_from(released) != Ok(lanes.len()) {
            return Err(SessionError::LaneLost(numbers.first().copied().unwrap_or(-1)));
        }
        for number in numbers {
            self.lanes.remove(*number);
            self.waiting.values_mut().for_each(|waiting| waiting.lanes.remove(*number));
        }
        Ok(())
    }

    /// Sees a read in parts through, waits until Kafka has acknowledged all that was read, as long as that may take, and settles it.
    ///
    /// # Errors
    /// When Postgres or Kafka fails meanwhile.
    pub async fn drain(&mut self) -> Result<(), SessionError> {
        let deadline = Instant::now() + self.streams.config.limits.lease_needed_to_send();
        for lane in self.lanes.iter_mut() {
            lane.draining = true;
        }
        let caught_up = |session: &Self| session.waiting.values().all(|waiting| waiting.lanes.in_flight() == 0);
        while (self.in_flight() > 0 || self.lanes.is_amid_read() || !caught_up(self)) && Instant::now() < deadline {
            if self.lanes.is_amid_read() && !self.is_full() {
                self.read_and_publish().await?;
            } else {
                let _ = tokio::time::timeout(Duration::from_millis(100), self.outcome()).await;
            }
            self.collect().await?;
            self.collect_waiting().await?;
            self.keep_leases_if_due().await?;
        }
        self.renew().await.map(|_| ())
    }

    /// Gives all lanes back.
    ///
    /// # Errors
    /// When Postgres fails; the leases then end by themselves.
    pub async fn leave(&mut self) -> Result<(), SessionError> {
        let numbers: Vec<i16> = self.lanes.iter().map(|lane| lane.lane).collect();
        self.release(&numbers).await?;
        in_time(self.streams.config.limits.lease(), outbox::leave(&mut self.connection, &self.streams.config.relay))
            .await?;
        tracing::info!(relay.lanes = ?numbers, "lanes given back");
        Ok(())
    }
}

/// The lane as it was taken.
fn held_lane(lane: ClaimedLane) -> Result<HeldLane, SessionError> {
    let seen = lane.seen.map(Snapshot::parse).transpose()?.map(Arc::new);
    Ok(HeldLane::new(lane.lane, lane.token, Cursor { position: lane.position, seen }))
}
