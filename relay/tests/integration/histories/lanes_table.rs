//! `relay_lanes`, `relay_members`, `relay_waiting` and `relay_parked`, and the statements of `relay/src/outbox.rs` on them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use relay::lanes::{Cursor, HeldLane, Snapshot};

use super::database::{Database, LANES_USED, lane_of};
use super::variant::Variant;

/// Milliseconds of the model's clock.
pub type Time = u64;

/// Length of a lease.
pub const LEASE: Time = 200;

/// A relay's process; a restarted one has a new number.
pub type Owner = u32;

#[derive(Debug)]
pub struct LaneRow {
    pub lane: i16,
    pub owner: Option<Owner>,
    pub token: i64,
    expires_at: Time,
    pub position: i64,
    pub seen: Option<String>,
}

impl LaneRow {
    pub fn cursor(&self) -> Cursor {
        let seen = self.seen.clone().map(|text| Arc::new(Snapshot::parse(text).expect("what was settled")));
        Cursor { position: self.position, seen }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParkedRow {
    pub aggregate: usize,
    pub version: i64,
    pub refused: bool,
}

#[derive(Debug)]
pub struct LanesTable {
    pub lanes: Vec<LaneRow>,
    members: HashMap<Owner, Time>,
    pub parked: BTreeMap<i64, ParkedRow>,
    /// By lane and type.
    pub waiting: BTreeMap<(i16, usize), Cursor>,
    pub(super) variant: Variant,
    /// A settle that took a lane back, which nothing may do.
    pub went_back: Option<String>,
}

impl LanesTable {
    pub fn new(variant: Variant) -> Self {
        let lane = |lane| LaneRow { lane, owner: None, token: 0, expires_at: 0, position: 0, seen: None };
        Self {
            lanes: LANES_USED.into_iter().map(lane).collect(),
            members: HashMap::new(),
            parked: BTreeMap::new(),
            waiting: BTreeMap::new(),
            variant,
            went_back: None,
        }
    }

    pub fn token_of(&self, lane: i16) -> i64 {
        self.lanes.iter().find(|row| row.lane == lane).map_or(0, |row| row.token)
    }

    /// `claim_lanes`.
    pub fn claim(&mut self, now: Time, owner: Owner, held: &[i16], count: usize) -> Vec<(i16, i64, Cursor)> {
        let free = |row: &&mut LaneRow| {
            !held.contains(&row.lane) && (row.owner.is_none() || row.expires_at <= now || row.owner == Some(owner))
        };
        let taken = self.lanes.iter_mut().filter(free).take(count);
        taken
            .map(|row| {
                row.owner = Some(owner);
                row.token += 1;
                row.expires_at = now + LEASE;
                (row.lane, row.token, row.cursor())
            })
            .collect()
    }

    /// `renew_and_settle`: the lanes that were hit, and how many relays are running.
    pub fn renew_and_settle(&mut self, now: Time, owner: Owner, lanes: &[&HeldLane]) -> (Vec<i16>, usize) {
        self.members.insert(owner, now + LEASE);
        let mut hit = Vec::new();
        for held in lanes {
            if let Some(row) = self.fenced(owner, held) {
                row.expires_at = now + LEASE;
                hit.push(held.lane);
                self.settle(held);
            }
        }
        let others = self.members.iter().filter(|(member, until)| **member != owner && **until > now).count();
        (hit, others + 1)
    }

    /// `release_lanes`: how many were hit.
    pub fn release(&mut self, owner: Owner, lanes: &[&HeldLane]) -> usize {
        let mut hit = 0;
        for held in lanes {
            if let Some(row) = self.fenced(owner, held) {
                row.owner = None;
                row.expires_at = 0;
                hit += 1;
                self.settle(held);
            }
        }
        hit
    }

    /// `leave`.
    pub fn leave(&mut self, owner: Owner) {
        self.members.remove(&owner);
    }

    fn fenced(&mut self, owner: Owner, held: &HeldLane) -> Option<&mut LaneRow> {
        let fence = self.variant != Variant::SettleWithoutToken;
        let row = self.lanes.iter_mut().find(|row| row.lane == held.lane)?;
        (!fence || (row.token == held.token && row.owner == Some(owner))).then_some(row)
    }

    fn settle(&mut self, held: &HeldLane) {
        let cursor = self.variant.cursor_to_settle(held);
        let Some(row) = self.lanes.iter_mut().find(|row| row.lane == held.lane) else { return };
        let before = row.cursor();
        let xmax = |cursor: &Cursor| cursor.seen.as_ref().map_or(0, |seen| seen.xmax());
        if cursor.position < before.position || xmax(&cursor) < xmax(&before) {
            self.went_back = Some(format!("lane {} from {before:?} to {cursor:?}", row.lane));
        }
        row.position = cursor.position;
        row.seen = cursor.seen.as_ref().map(|seen| seen.as_str().to_owned());
    }

    /// `parked_keys`.
    pub fn parked_keys(&self, lane: i16) -> HashSet<usize> {
        self.parked.values().map(|row| row.aggregate).filter(|aggregate| lane_of(*aggregate) == lane).collect()
    }

    /// `park`: whether the lane is still held under `token`.
    pub fn park(&mut self, database: &Database, lane: i16, token: i64, rows: &[(i64, bool)]) -> bool {
        if self.token_of(lane) != token {
            return false;
        }
        for (id, refused) in rows {
            if let Some(row) = database.visible(*id) {
                let parked = ParkedRow { aggregate: row.aggregate, version: row.version, refused: *refused };
                self.parked.entry(*id).or_insert(parked);
            }
        }
        true
    }

    /// Whether the settled cursors cover every row that can be seen, and no type waits.
    pub fn cover_all(&self, database: &Database) -> bool {
        let mut visible = database.committed().filter(|row| database.is_visible(row));
        let none_waits = self.waiting.is_empty() || self.variant == Variant::ForgetsWhatWaits;
        none_waits && visible.all(|row| self.covers(row))
    }

    /// Whether the oldest partition may be dropped: every settled position is past it, every row in it is covered, and no
    /// transaction that wrote into it is running (in Postgres, its lock on the partition keeps the DROP waiting).
    pub fn may_drop(&self, database: &Database) -> bool {
        let Some(rows) = database.oldest_partition() else { return false };
        let end = rows.last().map_or(0, |row| row.key.id);
        if self.lanes.iter().any(|row| row.position < end) {
            return false;
        }
        if self.variant == Variant::DropByPositionOnly {
            return true;
        }
        rows.iter().all(|row| !database.is_running(row) && (!database.is_visible(row) || self.covers(row)))
    }
}
