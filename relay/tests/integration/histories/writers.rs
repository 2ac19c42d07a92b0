//! The writers of a history.

use super::database::Refusal;
use super::history::History;

/// Rows of a history, about.
const ROWS: usize = 70;

impl History {
    pub fn write(&mut self) {
        let ground = &mut self.ground;
        let held_too = ground.chance(50);
        let active = ground.database.active(held_too);
        if active.is_empty() || (ground.database.transactions() < 5 && ground.chance(250)) {
            if ground.database.rows_inserted() < ROWS {
                ground.database.begin();
            }
            return;
        }
        let number = active[ground.pick(active.len())];
        match ground.pick(10) {
            0..2 => {
                let free = ground.database.lockable(number);
                if !free.is_empty() {
                    let aggregate = free[ground.pick(free.len())];
                    ground.database.lock(number, aggregate);
                }
            }
            2..7 => {
                let locked = ground.database.locked(number).to_vec();
                if locked.is_empty() {
                    return;
                }
                let aggregate = locked[ground.pick(locked.len())];
                let refusal = match ground.pick(60) {
                    0 => Refusal::Sender,
                    1 => Refusal::Broker,
                    _ => Refusal::Nobody,
                };
                let id = ground.database.insert(number, aggregate, refusal);
                ground.note(|| format!("insert {id}: aggregate {aggregate}, {refusal:?}"));
            }
            7 => {
                if let Some(id) = ground.database.roll_back_to_savepoint(number) {
                    ground.count("savepoint rolled back");
                    ground.note(|| format!("rolled back to the savepoint before {id}"));
                }
            }
            8 if ground.chance(300) => ground.database.hold(number),
            _ => self.end(number),
        }
    }

    pub fn end(&mut self, number: usize) {
        let commit = !self.ground.chance(150);
        if let Some(txid) = self.ground.database.end(number, commit) {
            self.ground.note(|| format!("transaction {txid} ends, committed: {commit}"));
        }
    }
}
