//! What a stream may have in flight to each partition: `relay/src/publisher/flow.rs`.

use super::broker::QUEUES;
use super::lanes_table::Time;
use super::variant::Variant;

/// After so long without an acknowledgement, a producer introduces itself to a partition again.
const REST: Time = 2;

#[derive(Debug, Default)]
struct Flow {
    sent: u64,
    acknowledged: u64,
    /// So many must be acknowledged before more than one may be in flight.
    introduced_with: u64,
    heard_at: Time,
    /// A report without an offset has come: none after it is believed.
    doubted: bool,
}

#[derive(Debug)]
pub struct Flows {
    of_queue: [Flow; QUEUES],
    /// One record at a time goes to each partition.
    careful: bool,
    variant: Variant,
}

impl Flows {
    pub fn new(variant: Variant, careful: bool) -> Self {
        Self { of_queue: Default::default(), careful, variant }
    }

    /// Whether a record may be handed to this partition's producer now.
    pub fn is_open(&mut self, queue: usize, now: Time) -> bool {
        let flow = &mut self.of_queue[queue];
        if matches!(self.variant, Variant::TrustsConclusions | Variant::IntroducesNothing) {
            return true;
        }
        if flow.sent <= flow.acknowledged {
            let rested = now >= flow.heard_at + REST && self.variant != Variant::IntroducesItselfOnce;
            if flow.acknowledged == 0 || rested {
                flow.introduced_with = flow.sent + 1;
            }
            return true;
        }
        !self.careful && flow.acknowledged >= flow.introduced_with
    }

    pub fn sent(&mut self, queue: usize) {
        self.of_queue[queue].sent += 1;
    }

    /// A record that was sent alone was refused: it is not in flight any more.
    pub fn refused(&mut self, queue: usize) {
        if self.variant != Variant::RefusedStaysInFlight {
            self.of_queue[queue].sent -= 1;
        }
    }

    /// A record was reported as delivered. Returns whether a broker has said so.
    pub fn acknowledge(&mut self, queue: usize, has_offset: bool, now: Time) -> bool {
        let flow = &mut self.of_queue[queue];
        flow.doubted |= !has_offset && self.variant != Variant::TrustsConclusions;
        if !flow.doubted {
            flow.acknowledged += 1;
            flow.heard_at = now;
        }
        !flow.doubted
    }
}
