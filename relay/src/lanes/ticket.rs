//! The integer that travels with a record through the producer and comes back with its outcome.

use super::LANES;

/// Lane and sequence number of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(usize);

/// Bits of a ticket that are the sequence number: enough for a million records a second over half a year in one session.
const SEQUENCE_BITS: u32 = 44;

/// Bits for the place among [`FLOWS`], while a ticket travels with its record.
const FLOW_BITS: u32 = 14;

/// How many partitions of topics can be told apart by what travels with a record.
pub const FLOWS: usize = 1 << FLOW_BITS;

/// Set while a ticket travels with a record that has a span: most have none, and then nobody looks for it.
const TRACED: usize = 1 << (SEQUENCE_BITS + FLOW_BITS);

/// Set in the ticket of a record that was parked and is tried again: it is none of its lane's reads.
const RETRY: usize = TRACED << 1;

/// Above that is the lane.
const LANE_SHIFT: u32 = SEQUENCE_BITS + FLOW_BITS + 2;

const _: () = assert!(
    usize::BITS == 64 && LANES <= 16 && LANE_SHIFT == 60,
    "a ticket fits into a pointer: four bits of lane, one for retries, one for spans, the flow, and the sequence number"
);

/// What comes back with an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrived {
    /// The record's ticket.
    pub ticket: Ticket,
    /// Whether the record has a span.
    pub traced: bool,
    /// The place of its partition among [`FLOWS`].
    pub flow: usize,
}

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

    /// What became this integer.
    #[must_use]
    pub const fn from_integer(integer: usize) -> Arrived {
        let flow = (integer >> SEQUENCE_BITS) & (FLOWS - 1);
        let ticket = Self(integer & !(TRACED | ((FLOWS - 1) << SEQUENCE_BITS)));
        Arrived { ticket, traced: integer & TRACED != 0, flow }
    }

    /// As it travels with a record to the partition at place `flow`, which has a span or none.
    #[must_use]
    pub const fn to_integer(self, traced: bool, flow: usize) -> usize {
        let integer = self.0 | ((flow & (FLOWS - 1)) << SEQUENCE_BITS);
        if traced { integer | TRACED } else { integer }
    }

    /// The lane's index.
    #[must_use]
    pub const fn lane(self) -> usize {
        self.0 >> LANE_SHIFT
    }

    /// The sequence number.
    #[must_use]
    pub const fn sequence(self) -> u64 {
        (self.0 & ((1 << SEQUENCE_BITS) - 1)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_keeps_lane_sequence_and_flow() {
        for (lane, sequence, flow) in [(0, 0, 0), (15, (1 << SEQUENCE_BITS) - 1, FLOWS - 1), (7, 123_456, 12)] {
            for has_span in [false, true] {
                let sent = Ticket::new(lane, sequence);
                let Arrived { ticket, traced, flow: found } = Ticket::from_integer(sent.to_integer(has_span, flow));
                assert_eq!((ticket.lane(), ticket.sequence(), ticket.is_retry()), (lane, sequence, false));
                assert_eq!((ticket, traced, found), (sent, has_span, flow));
            }
        }
        let retry = Ticket::from_integer(Ticket::retry(5).to_integer(false, 3)).ticket;
        assert!(retry.is_retry() && retry.sequence() == 5);
    }
}
