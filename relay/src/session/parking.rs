//! Writing refused events, and all later ones of their keys, into `relay_parked`.

use super::{Session, SessionError, in_time};
use crate::lanes::LANES;
use crate::outbox;
use crate::publisher::outcomes::Parked;

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
            let held = outbox::park(&mut self.connection, lane.lane, lane.token, &ids, &reasons);
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
}
