//! The relays of a history: they start, work, are killed, frozen, woken and stopped in good order.

use relay::lanes::HeldLane;

use super::broker::QUEUES;
use super::ground::Ground;
use super::lanes_table::{LEASE, Owner, Time};
use super::reads::ReadLimits;
use super::session::{Session, Stop};
use super::waiting::Waiting;

/// One relay's process.
#[derive(Debug)]
pub struct Relay {
    pub owner: Owner,
    pub session: Option<Session>,
    pub frozen: bool,
    pub stopping: bool,
    /// Steps in which it reads nothing, though it does everything else.
    reads_later: u32,
}

impl Relay {
    pub fn new(owner: Owner) -> Self {
        Self { owner, session: None, frozen: false, stopping: false, reads_later: 0 }
    }

    /// One step of any of its threads. Returns false when it has ended in good order.
    pub fn step(&mut self, ground: &mut Ground) -> bool {
        let (owner, stopping) = (self.owner, self.stopping);
        let reads_later = self.reads_later > 0 && !stopping;
        self.reads_later = self.reads_later.saturating_sub(1);
        let Some(session) = &mut self.session else {
            if stopping {
                return false;
            }
            self.start(ground);
            return true;
        };
        let may_read = !reads_later && !session.is_full(ground.now) && (!stopping || session.lanes.is_amid_read());
        let outcome = match ground.pick(14) {
            _ if ground.now >= session.next_balance && session.reading.is_none() => session.keep_leases(ground),
            0..3 if session.reading.is_some() => {
                session.accept(ground);
                Ok(())
            }
            0 if stopping => return self.stop_if_idle(ground),
            0..3 if may_read => {
                if stopping {
                    session.drain();
                }
                let limits = ReadLimits {
                    late_rows: 1 + ground.pick(5),
                    lane_rows: 1 + ground.pick(4),
                    rows: if ground.chance(300) { 1 + ground.pick(5) } else { usize::MAX },
                };
                session.read(ground, limits);
                Ok(())
            }
            0..3 => Ok(()),
            // What the session's thread does cannot be between a question to the database and its answer.
            3 if session.reading.is_none() => session.renew(ground).map(|_| ()),
            4 if session.reading.is_none() => session.collect(ground),
            5 if session.reading.is_none() && stopping => session.collect_waiting(ground),
            5 | 12 if session.reading.is_none() && !stopping => session.serve_waiting(ground),
            6 | 7 => {
                for _ in 0..=ground.pick(4) {
                    session.hand_over(ground, session.lease_until);
                }
                Ok(())
            }
            8 | 9 | 13 => {
                session.transmit(ground);
                Ok(())
            }
            _ => {
                session.hear(ground);
                Ok(())
            }
        };
        if let Err(stop) = outcome {
            ground.note(|| format!("relay {owner}: its session ends, {stop:?}"));
            self.end(ground, stop);
        }
        true
    }

    /// As much as it can do, when nothing goes wrong.
    pub fn round(&mut self, ground: &mut Ground) -> bool {
        let stopping = self.stopping;
        let Some(session) = &mut self.session else {
            if !stopping {
                self.start(ground);
            }
            return !stopping;
        };
        session.accept(ground);
        let outcome = (session.collect(ground))
            .and_then(|()| session.keep_leases(ground))
            .and_then(|()| session.collect_waiting(ground))
            .and_then(|()| if stopping { Ok(()) } else { session.catch_up(ground) });
        if let Err(stop) = outcome {
            self.end(ground, stop);
            return true;
        }
        if stopping {
            session.drain();
        }
        if !session.is_full(ground.now) && (!stopping || session.lanes.is_amid_read()) {
            session.read(ground, ReadLimits { late_rows: 4, lane_rows: 4, rows: 16 });
            session.accept(ground);
        }
        session.send_all(ground);
        self.stop_if_idle(ground)
    }

    fn start(&mut self, ground: &mut Ground) {
        self.session = Session::start(ground, self.owner).ok();
    }

    /// A session ends before its time: what it holds may be published again.
    fn end(&mut self, ground: &mut Ground, stop: Stop) {
        let Some(mut session) = self.session.take() else { return };
        if stop == Stop::Delivery {
            // Postgres is well: what was acknowledged is settled, if it can be.
            let _ = session.keep_leases(ground);
        }
        abandon(session, ground);
    }

    /// The process is killed.
    pub fn kill(self, ground: &mut Ground) {
        if let Some(session) = self.session {
            abandon(session, ground);
        }
    }

    /// Gives all lanes back and ends, once nothing is under way. Returns false when it has.
    fn stop_if_idle(&mut self, ground: &mut Ground) -> bool {
        let Some(session) = self.session.as_mut().filter(|session| self.stopping && session.is_idle()) else {
            return true;
        };
        let lanes: Vec<i16> = session.lanes.iter().map(|lane| lane.lane).collect();
        let released = session.renew(ground).and_then(|_| session.release(ground, &lanes));
        match released {
            Ok(()) => {
                ground.count("stopped in good order");
                ground.table.leave(self.owner);
                self.session = None;
            }
            Err(stop) => self.end(ground, stop),
        }
        false
    }

    /// A lane is given back although it takes part in a read that is not through: what the read has brought so far comes again.
    pub fn give_back_amid_read(&mut self, ground: &mut Ground) -> bool {
        let Some(session) = self.session.as_mut().filter(|session| session.reading.is_none()) else { return false };
        let takes_part = |held: &HeldLane| !session.lanes.can_be_given_back(held);
        let waits = |held: &HeldLane| session.waiting.values().any(|waiting| waiting.lanes.in_flight_of(held.lane) > 0);
        let may = |held: &&HeldLane| held.progress.in_flight() == 0 && takes_part(held) && !waits(held);
        let Some(lane) = session.lanes.iter().find(may).map(|held| held.lane) else { return false };
        ground.count("lane given back amid a read");
        ground.disturbed.insert((lane, ground.table.token_of(lane)));
        ground.note(|| format!("relay {} gives lane {lane} back amid a read", self.owner));
        let released = session.release(ground, &[lane]);
        // Time for another relay to take the lane, to read on, and to hand it back before this read is through.
        self.reads_later = 150;
        session.next_balance = ground.now + LEASE / 2;
        ground.now += LEASE / 4;
        if let Err(stop) = released {
            self.end(ground, stop);
        }
        true
    }

    /// What a relay that was frozen may do in the worst instant, before it notices: its sender goes on where it was, and its producer gives
    /// up records that are too old and sends younger ones.
    pub fn wake_in_the_worst_instant(&mut self, ground: &mut Ground) {
        let Some(session) = &mut self.session else { return };
        for stream in session.streams() {
            stream.hand_over(ground, Time::MAX);
            for queue in 0..QUEUES {
                stream.overtake(ground, queue);
            }
        }
    }

    /// Requests that a frozen relay had already made arrive.
    pub fn let_requests_arrive(&mut self, ground: &mut Ground) {
        let Some(session) = &mut self.session else { return };
        let (queue, count) = (ground.pick(QUEUES), ground.pick(3));
        for stream in session.streams() {
            let sent = stream.let_arrive(ground, queue, count);
            ground.write(sent, false);
        }
    }
}

/// Nothing of a session is left but what is on the wire.
fn abandon(session: Session, ground: &mut Ground) {
    for lane in session.lanes.iter() {
        ground.disturbed.insert((lane.lane, lane.token));
    }
    session.main.throw_away(ground);
    for stream in session.waiting.into_values().filter_map(Waiting::into_stream) {
        stream.throw_away(ground);
    }
}
