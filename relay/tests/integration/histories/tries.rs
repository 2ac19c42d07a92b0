//! Trying the topics of types that wait: the other half of `relay/src/session/waiting.rs`.

use super::ground::Ground;
use super::sender::Work;
use super::session::{Session, Stop};
use super::stream::{Cause, Outcomes, Stream};
use super::waiting::{Try, Waiting};

impl Session {
    /// Takes what came of the tries.
    pub fn collect_waiting(&mut self, ground: &mut Ground) -> Result<(), Stop> {
        for of in self.waiting.keys().copied().collect::<Vec<_>>() {
            let Some(stream) = self.waiting.get_mut(&of).and_then(Waiting::stream) else { continue };
            let (acknowledged, put_aside) = (&mut stream.outcomes.acknowledged, &mut stream.outcomes.put_aside);
            let taken = Outcomes {
                acknowledged: std::mem::take(acknowledged),
                put_aside: std::mem::take(put_aside),
                ..Outcomes::default()
            };
            self.take_outcomes(ground, of, &taken)?;
            if self.waiting.get(&of).is_some_and(|waiting| waiting.is_over(ground.now)) {
                self.end_try(ground, of)?;
            }
        }
        Ok(())
    }

    fn take_outcomes(&mut self, ground: &mut Ground, of: usize, outcomes: &Outcomes) -> Result<(), Stop> {
        let parked = self.park(ground, &outcomes.put_aside)?;
        let Some(waiting) = self.waiting.get_mut(&of) else { return Ok(()) };
        for ticket in outcomes.acknowledged.iter().chain(&parked) {
            waiting.lanes.acknowledge(*ticket);
        }
        if let Some(attempt) = &mut waiting.attempt {
            attempt.flows |= !outcomes.acknowledged.is_empty();
        }
        Ok(())
    }

    /// What was not acknowledged is read again by the next try.
    fn end_try(&mut self, ground: &mut Ground, of: usize) -> Result<(), Stop> {
        let Some(attempt) = self.waiting.get_mut(&of).and_then(|waiting| waiting.attempt.take()) else { return Ok(()) };
        let outcomes = attempt.stream.close(ground);
        self.take_outcomes(ground, of, &outcomes)?;
        ground.again.extend(self.cursors_of(of));
        let Some(waiting) = self.waiting.get_mut(&of) else { return Ok(()) };
        let suspects = outcomes.refused.iter().filter_map(|ticket| Some(waiting.lanes.row_of(*ticket)?.1));
        let suspects: Vec<i64> = suspects.collect();
        match outcomes
            .failure
            .map(|(_, cause)| cause)
            .or((!outcomes.set_aside.is_empty()).then_some(Cause::Unavailable))
        {
            None => {
                ground.count("suspects cleared");
                waiting.suspects.clear();
            }
            Some(cause) => {
                ground.count(if cause == Cause::Refused { "refused in its own stream" } else { "try failed" });
                waiting.look_into(ground, cause, &suspects);
            }
        }
        waiting.lanes.restart();
        Ok(())
    }

    pub fn begin_tries(&mut self, ground: &mut Ground) -> Result<(), Stop> {
        let now = ground.now;
        for (of, _) in self.waiting.extract_if(.., |_, waiting| waiting.attempt.is_none() && waiting.lanes.is_empty()) {
            self.main.pipe.push_back(Work::Resume(of));
        }
        let is_due = |waiting: &&mut Waiting| waiting.attempt.is_none() && waiting.next_try <= now;
        for waiting in self.waiting.values_mut().filter(is_due) {
            let mut stream = Stream::new(ground.variant, waiting.suspects.clone());
            for (lane, _) in waiting.lanes.cursors() {
                let parked = ground.ask(|ground| ground.table.parked_keys(lane))?;
                stream.pipe.push_back(Work::Lane(lane, parked));
            }
            waiting.attempt = Some(Try { stream, begun: now, flows: false });
        }
        Ok(())
    }
}
