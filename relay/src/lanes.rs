//! Lanes: sixteen parts of the outbox, each held by one relay at a time.
//!
//! All events of one aggregate are in one lane, and one relay at a time publishes a lane, in the order of the outbox ids: this
//! is what keeps order per key with many relays. How far a lane is published is its [`Cursor`], which rows that commit late do not
//! slip past. [`HeldLanes`] says what to read and what of it to publish; more late rows than one read may bring are a [`detour`]. [`Progress`] moves the cursor over what Kafka has acknowledged; [`fair_share`] says how many lanes a relay should hold.

pub mod cursor;
mod detour;
pub mod held;
mod key_filter;
pub mod plan;
pub mod progress;
pub mod ticket;
pub mod types;
pub mod waiting;

pub use cursor::{Cursor, Snapshot};
pub use held::{HeldLane, HeldLanes, LaneLimits};
pub use plan::RowKey;
pub use progress::Progress;
pub use ticket::Ticket;
pub use types::{TypeIndex, TypeNames};
pub use waiting::WaitingType;

/// Number of lanes; as many as `outbox.lane` has values.
pub const LANES: usize = 16;

/// Where a lane is kept among the sixteen. The database's CHECK lets no number below 0 through.
#[must_use]
pub const fn index(lane: i16) -> usize {
    lane.unsigned_abs() as usize
}

/// How many lanes each of `relays` running relays may hold, so that all lanes are held and none has more than one lane more
/// than another.
#[must_use]
pub const fn fair_share(relays: usize) -> usize {
    if relays <= 1 { LANES } else { LANES.div_ceil(relays) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_all_lanes() {
        assert_eq!([0, 1, 2, 3, 5, 16, 40].map(fair_share), [16, 16, 8, 6, 4, 1, 1]);
        assert!((1..100).all(|relays| fair_share(relays) * relays >= LANES));
    }
}
