//! The integer that travels with a record through the producer and comes back with its outcome.

use super::LANES;

/// Lane and sequence number of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(usize);

/// Bits of a ticket that are the sequence number: enough for a million records a second over nine thousand years.
const SEQUENCE_BITS: u32 = 58;

/// Set while a ticket travels with a record that has a span: most have none, and then nobody looks for it.
const TRACED: usize = 1 << SEQUENCE_BITS;

/// Set in the ticket of a record that was parked and is tried again: it is none of its lane's reads.
const RETRY: usize = 1 << (SEQUENCE_BITS + 1);

/// Above that is the lane.
const LANE_SHIFT: u32 = SEQUENCE_BITS + 2;

const _: () = assert!(
    usize::BITS == 64 && LANES <= 16,
    "a ticket fits into a pointer: four bits of lane, one for retries, one for spans, and the sequence number"
);

impl Ticket {
    /// The ticket of record `sequence` of the lane with this index.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits, see above")]
    pub const fn new(lane: usize, sequence: u64) -> Self {
        Self((lane << LANE_SHIFT) | sequence as usize)
    }

    /// The ticket of the parked record that is tried again as number `sequence`.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits, see above")]
    pub const fn retry(sequence: u64) -> Self {
        Self(RETRY | sequence as usize)
    }

    /// Whether it is of a parked record.
    #[must_use]
    pub const fn is_retry(self) -> bool {
        self.0 & RETRY != 0
    }

    /// The ticket that became this integer, and whether its record has a span.
    #[must_use]
    pub const fn from_integer(integer: usize) -> (Self, bool) {
        (Self(integer & !TRACED), integer & TRACED != 0)
    }

    /// As it travels with a record that has a span, or none.
    #[must_use]
    pub const fn to_integer(self, traced: bool) -> usize {
        if traced { self.0 | TRACED } else { self.0 }
    }

    /// The lane's index.
    #[must_use]
    pub const fn lane(self) -> usize {
        self.0 >> LANE_SHIFT
    }

    /// The sequence number.
    #[must_use]
    pub const fn sequence(self) -> u64 {
        (self.0 & (TRACED - 1)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_keeps_lane_and_sequence() {
        for (lane, sequence) in [(0, 0), (15, (1 << SEQUENCE_BITS) - 1), (7, 123_456)] {
            for has_span in [false, true] {
                let (ticket, traced) = Ticket::from_integer(Ticket::new(lane, sequence).to_integer(has_span));
                assert_eq!((ticket.lane(), ticket.sequence(), ticket.is_retry()), (lane, sequence, false));
                assert_eq!((ticket, traced), (Ticket::new(lane, sequence), has_span));
            }
        }
        assert!(Ticket::retry(5).is_retry() && Ticket::retry(5).sequence() == 5);
    }
}
