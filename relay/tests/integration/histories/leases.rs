//! The part of a session that keeps its leases: `relay/src/session/leases.rs`.

use relay::lanes::HeldLane;

use super::database::LANES_USED;
use super::ground::Ground;
use super::lanes_table::LEASE;
use super::sender::Work;
use super::session::{Session, Stop};

impl Session {
    pub fn keep_leases(&mut self, ground: &mut Ground) -> Result<(), Stop> {
        self.next_balance = ground.now + LEASE / 4;
        let relays = self.renew(ground)?;
        let drained: Vec<i16> = self.lanes.iter().filter(|lane| lane.draining).map(|lane| lane.lane).collect();
        let drained: Vec<i16> = drained.into_iter().filter(|lane| self.may_give_back(*lane)).collect();
        if !drained.is_empty() {
            ground.count("lane handed over");
            self.release(ground, &drained)?;
        }
        let share = LANES_USED.len().div_ceil(relays);
        let held = self.lanes.iter().filter(|lane| !lane.draining).count();
        if held < share {
            self.claim(ground, share - held)?;
        }
        for lane in self.lanes.iter_mut().filter(|lane| !lane.draining).skip(share) {
            lane.draining = true;
        }
        Ok(())
    }

    /// Nothing more is read but what is left of detours.
    pub fn drain(&mut self) {
        for lane in self.lanes.iter_mut() {
            lane.draining = true;
        }
    }

    /// Whether the lane can be given back without a repeat.
    pub fn may_give_back(&self, lane: i16) -> bool {
        let waiting: usize = self.waiting.values().map(|waiting| waiting.lanes.in_flight_of(lane)).sum();
        waiting == 0 && self.lanes.iter().any(|held| held.lane == lane && self.lanes.can_be_given_back(held))
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.reading.is_none() && self.lanes.iter().all(|lane| self.may_give_back(lane.lane))
    }

    pub fn renew(&mut self, ground: &mut Ground) -> Result<usize, Stop> {
        let held: Vec<&HeldLane> = self.lanes.iter().collect();
        let (hit, relays) = ground.ask(|ground| ground.table.renew_and_settle(ground.now, self.owner, &held))?;
        if held.iter().any(|lane| !hit.contains(&lane.lane)) {
            ground.count("lane lost");
            return Err(Stop::LaneLost);
        }
        self.lease_until = ground.now + LEASE;
        self.settle_waiting(ground)?;
        Ok(relays)
    }

    fn claim(&mut self, ground: &mut Ground, count: usize) -> Result<(), Stop> {
        let held: Vec<i16> = self.lanes.iter().map(|lane| lane.lane).collect();
        let owner = self.owner;
        let claimed = ground.ask(|ground| ground.table.claim(ground.now, owner, &held, count))?;
        let numbers: Vec<i16> = claimed.iter().map(|(lane, ..)| *lane).collect();
        for (lane, token, cursor) in claimed {
            ground.note(|| format!("  relay {owner} takes lane {lane}, token {token}, at {cursor:?}"));
            self.main.pipe.push_back(Work::Lane(lane, ground.table.parked_keys(lane)));
            if !self.together.is_empty() && self.together.contains(&lane) {
                ground.count("lane taken again amid a read");
            }
            self.lanes.insert(HeldLane::new(lane, token, cursor));
        }
        self.take_waiting(ground, &numbers)?;
        self.join_waiting(ground, &numbers)
    }

    pub fn release(&mut self, ground: &mut Ground, numbers: &[i16]) -> Result<(), Stop> {
        self.settle_waiting(ground)?;
        let lanes: Vec<&HeldLane> = self.lanes.iter().filter(|lane| numbers.contains(&lane.lane)).collect();
        let released = ground.ask(|ground| ground.table.release(self.owner, &lanes))?;
        if released != lanes.len() {
            return Err(Stop::LaneLost);
        }
        self.note_late_rows_that_come_again(ground, numbers);
        for number in numbers {
            self.lanes.remove(*number);
            self.waiting.values_mut().for_each(|waiting| waiting.lanes.remove(*number));
        }
        Ok(())
    }
}
