//! What the relays of a history stand on: database, broker, clock and chance.

use std::collections::{BTreeMap, HashSet, VecDeque};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::broker::{Luck, Queued, Written};
use super::database::{Database, TYPES};
use super::lanes_table::{LanesTable, Time};
use super::session::Stop;
use super::variant::Variant;
use super::waiting_table::CursorOfType;

/// What becomes of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Statement {
    Answered,
    /// The connection broke before it was executed.
    Lost,
    /// It was executed, and the connection broke before the answer.
    Unanswered,
}

#[derive(Debug)]
pub struct Ground {
    pub rng: ChaCha8Rng,
    pub now: Time,
    pub database: Database,
    pub table: LanesTable,
    /// The topic, in the order of its records.
    pub log: Vec<Written>,
    /// Requests of relays that are gone, which may still arrive: a queue for each of their partitions.
    pub wire: Vec<VecDeque<Queued>>,
    /// Topics that take nothing, by type.
    pub down: [bool; TYPES],
    /// Lanes with the tokens under which they were held when something went wrong: only then may there be repeats.
    pub disturbed: HashSet<(i16, i64)>,
    /// What was begun again under a token: there may be repeats of rows beyond these.
    pub again: Vec<CursorOfType>,
    pub variant: Variant,
    /// How often something goes wrong, in 1,000 steps.
    pub trouble: u32,
    /// How often each kind of thing has happened.
    pub happened: BTreeMap<&'static str, u64>,
    /// The steps so far, if a reader wants them.
    steps: Option<Vec<String>>,
}

impl Ground {
    pub fn new(seed: u64, variant: Variant, traced: bool) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let trouble = [0, 4, 15, 40][rng.random_range(0..4)];
        Self {
            rng,
            now: 0,
            database: Database::new(),
            table: LanesTable::new(variant),
            log: Vec::new(),
            wire: Vec::new(),
            down: [false; TYPES],
            disturbed: HashSet::new(),
            again: Vec::new(),
            variant,
            trouble,
            happened: BTreeMap::new(),
            steps: traced.then(Vec::new),
        }
    }

    /// Notes a step for whoever replays the history.
    pub fn note(&mut self, step: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(steps) = &mut self.steps {
            steps.push(format!("{now:>5} {}", step()));
        }
    }

    pub fn steps(&mut self) -> Vec<String> {
        self.steps.take().unwrap_or_default()
    }

    pub fn count(&mut self, what: &'static str) {
        *self.happened.entry(what).or_default() += 1;
    }

    /// One of `0..choices`.
    pub fn pick(&mut self, choices: usize) -> usize {
        self.rng.random_range(0..choices)
    }

    /// Whether what happens `in_a_thousand` times happens now.
    pub fn chance(&mut self, in_a_thousand: u32) -> bool {
        self.rng.random_ratio(in_a_thousand, 1000)
    }

    /// What becomes of the next statement.
    fn statement(&mut self) -> Statement {
        if !self.chance(self.trouble) {
            return Statement::Answered;
        }
        self.count("statement failed");
        if self.rng.random_bool(0.5) { Statement::Lost } else { Statement::Unanswered }
    }

    /// Asks the database something: an error when the connection breaks before the answer.
    pub fn ask<T>(&mut self, ask: impl FnOnce(&mut Self) -> T) -> Result<T, Stop> {
        match self.statement() {
            Statement::Answered => Ok(ask(self)),
            Statement::Lost => Err(Stop::Database),
            Statement::Unanswered => {
                ask(self);
                Err(Stop::Database)
            }
        }
    }

    /// What a broker does with the next request.
    pub fn luck(&mut self) -> Luck {
        if self.trouble == 0 {
            return Luck::Good;
        }
        match self.pick(100) {
            0..15 => Luck::FirstRefused,
            15 => Luck::AnswerLost,
            _ => Luck::Good,
        }
    }

    /// A topic is in trouble from now on, or well again.
    pub fn toggle_topic(&mut self, of: usize) {
        self.down[of] = !self.down[of];
        let down = self.down[of];
        self.note(|| format!("topic {of} is down: {down}"));
        self.count(if down { "topic down" } else { "topic up" });
    }

    /// Records arrive at the broker.
    pub fn write(&mut self, records: Vec<Queued>, overtook: bool) {
        for Queued { row, token, .. } in records {
            let late = self.table.token_of(row.key.lane) != token;
            self.note(|| {
                let Written { row, token, late, overtook } = Written { row, token, late, overtook };
                let (id, aggregate, version) = (row.key.id, row.aggregate, row.version);
                format!("  written: id {id} = {aggregate}/{version}, token {token}, late {late}, overtook {overtook}")
            });
            if late {
                self.count("record of a former owner arrived");
            }
            self.log.push(Written { row, token, late, overtook });
        }
    }
}
