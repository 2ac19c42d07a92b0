//! Trying parked events of one key again.

use std::sync::Arc;

use shared::spans;

use super::Stop;
use super::feeder::Feeder;
use crate::lanes::{Ticket, TypeIndex};
use crate::outbox::parked::ParkedRow;
use crate::publisher::flow::FlowControl;
use crate::publisher::outcomes::Retried;
use crate::publisher::spans::Origin;

impl Feeder {
    /// Tries parked events of one key again. Those that were refused before go alone, so that a refusal is their own; the others
    /// follow them at full speed, unless one of those was refused in the company of its batch.
    pub(super) fn retry(&mut self, type_index: TypeIndex, rows: &[ParkedRow]) -> Result<(), Stop> {
        let outcomes = Arc::clone(&self.sender.outcomes);
        let Some(first) = rows.first() else {
            outcomes.end_retry(Retried::Ended { published: 0, refused: None });
            return Ok(());
        };
        let flow = match self.flow_for_retry(type_index, &first.aggregate_type, &first.aggregate_id) {
            Ok(Some(flow)) => flow,
            Ok(None) => {
                outcomes.end_retry(Retried::Later);
                return Ok(());
            }
            Err(reason) => {
                outcomes.end_retry(Retried::Ended { published: 0, refused: Some(reason) });
                return Ok(());
            }
        };
        outcomes.begin_retry();
        let read_at = spans::now();
        for (index, row) in rows.iter().enumerate() {
            // The first one introduces the producer to the partition.
            let alone = index == 0 || row.reason.is_some() || self.sender.retry_alone;
            if alone && !outcomes.all_retried(index) {
                return Err(Stop::Closed);
            }
            let origin = Origin { id: row.id, lane: None, read_at };
            let ticket = Ticket::retry(index as u64);
            if let Some(reason) = self.hand_over(ticket, type_index, &row.event(), alone, origin, flow)? {
                if !outcomes.all_retried(index) {
                    return Err(Stop::Closed);
                }
                outcomes.end_retry(Retried::Ended { published: index, refused: Some(reason) });
                return Ok(());
            }
        }
        if !outcomes.all_retried(rows.len()) {
            return Err(Stop::Closed);
        }
        outcomes.end_retry(Retried::Ended { published: rows.len(), refused: None });
        Ok(())
    }

    /// The flow of a key whose topic takes records, as far as is known; none if that is still to be found out. A reason if the type can
    /// have no topic.
    fn flow_for_retry(&mut self, index: TypeIndex, aggregate_type: &str, key: &str) -> Result<Option<usize>, String> {
        if let Err(illegal) = self.sender.destinations.topic_of(aggregate_type) {
            return Err(illegal.to_string());
        }
        if let Some(to) = self.open(index) {
            return Ok(Some(FlowControl::of_key(&to.flows, key)));
        }
        self.ask_unless_asked(index, aggregate_type);
        Ok(None)
    }
}
