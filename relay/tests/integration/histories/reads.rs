//! What the relay asks the outbox for: `relay/src/outbox/{read,detour,waiting}.rs`.

use relay::lanes::plan::{FindPlan, PartPlan, ReadPlan};
use relay::lanes::waiting::Part;
use relay::lanes::{Cursor, LANES, RowKey, Snapshot, TypeIndex, index};

use super::database::{Database, Row};

/// How much one read may bring.
#[derive(Debug, Clone, Copy)]
pub struct ReadLimits {
    pub late_rows: usize,
    pub lane_rows: usize,
    /// Rows until the bytes are used up.
    pub rows: usize,
}

/// What a read brought.
#[derive(Debug, Clone)]
pub struct ReadAnswer {
    pub snapshot: String,
    pub last_id: i64,
    pub rows: Vec<Row>,
    pub late: usize,
    pub late_cut: bool,
    pub fresh_cut: bool,
}

impl Database {
    /// Rows at or below the position of their lane.
    fn below(&self, lanes: &[(i16, i64)]) -> impl Iterator<Item = &Row> {
        let mut positions = [-1_i64; LANES];
        for (lane, position) in lanes {
            positions[index(*lane)] = *position;
        }
        let visible = self.committed().filter(|row| row.key.id > self.dropped);
        visible.filter(move |row| row.key.id <= positions[index(row.key.lane)])
    }

    /// The rows that the plan calls late, by id.
    fn late(&self, plan: &ReadPlan) -> impl Iterator<Item = &Row> {
        let is_late = |txid| txid >= plan.late_from || plan.late_running.contains(&txid);
        self.below(&plan.lanes).filter(move |row| is_late(row.key.txid))
    }

    /// What `relay/src/outbox/read.rs` asks for.
    pub fn read(&self, plan: &ReadPlan, limits: ReadLimits) -> ReadAnswer {
        let late: Vec<&Row> = self.late(plan).collect();
        let late_cut = late.len() > limits.late_rows;
        let last_id = i64::try_from(self.rows_inserted()).expect("few rows");
        let mut answer =
            ReadAnswer { snapshot: self.snapshot(), last_id, rows: Vec::new(), late: 0, late_cut, fresh_cut: false };
        if late_cut {
            return answer;
        }
        let fresh = plan.lanes.iter().flat_map(|(lane, position)| {
            let visible = self.committed().filter(|row| row.key.id > self.dropped);
            visible.filter(move |row| row.key.lane == *lane && row.key.id > *position).take(limits.lane_rows)
        });
        let mut of_lane = [0; LANES];
        for (part, row) in late.into_iter().map(|row| (1, row)).chain(fresh.map(|row| (2, row))) {
            let key_hash = if plan.with_hashes { row.key.key_hash } else { 0 };
            answer.rows.push(Row { key: RowKey { key_hash, ..row.key }, ..*row });
            if part == 1 {
                answer.late += 1;
            } else {
                of_lane[index(row.key.lane)] += 1;
                answer.fresh_cut |= of_lane[index(row.key.lane)] >= limits.lane_rows;
            }
            if answer.rows.len() >= limits.rows {
                answer.late_cut |= part == 1;
                answer.fresh_cut = true;
                break;
            }
        }
        answer
    }

    /// What `relay/src/outbox/detour.rs` finds: hashes of aggregates, and transactions; also of rows that have been committed since.
    pub fn find(&self, plan: &FindPlan) -> Vec<(i64, i64)> {
        self.late(&plan.read).map(|row| (row.key.key_hash, row.key.txid)).collect()
    }

    /// A part of a detour, and whether there may be more than it has brought.
    pub fn part(&self, plan: &PartPlan, limits: ReadLimits) -> (Vec<Row>, bool) {
        let (mut rows, rows_max): (Vec<Row>, usize) = match plan {
            PartPlan::Late { lanes, transactions, after } => {
                let of_part = |row: &&Row| row.key.id > *after && transactions.contains(&row.key.txid);
                (self.below(lanes).filter(of_part).take(limits.late_rows).copied().collect(), limits.late_rows)
            }
            PartPlan::Held(rows) => {
                let row = |(_, id): &(i16, i64)| *self.visible(*id).expect("no row is dropped that is not settled");
                (rows.iter().map(row).collect(), usize::MAX)
            }
        };
        rows.truncate(limits.rows);
        let cut = rows.len() >= rows_max.min(limits.rows);
        (rows, cut)
    }

    /// `first_late_id`: the lowest id of a row that one of these cursors may not cover although it is at or below its position.
    pub fn first_late_id(&self, cursors: &[Cursor]) -> Option<i64> {
        let seen = || cursors.iter().filter_map(|cursor| cursor.seen.as_deref());
        let late_from = seen().map(Snapshot::xmax).min()?;
        let running: Vec<i64> = seen().flat_map(Snapshot::xip).copied().collect();
        let highest = cursors.iter().map(|cursor| cursor.position).max()?;
        let is_late = |row: &&Row| row.key.txid >= late_from || running.contains(&row.key.txid);
        let visible = self.committed().filter(|row| row.key.id > self.dropped && row.key.id <= highest);
        visible.filter(is_late).map(|row| row.key.id).min()
    }

    /// `read_parts`: rows of a type that waits, and whether all came that were asked for.
    pub fn read_parts(&self, of: TypeIndex, parts: &[Part], limits: ReadLimits) -> (Vec<Row>, bool) {
        let mut rows = Vec::new();
        for part in parts {
            let is_late =
                |cursor: &Cursor, row: &Row| cursor.seen.as_ref().is_none_or(|seen| seen.is_late(row.key.txid));
            let is_of_part = |row: &&Row| {
                let key = row.key;
                key.lane == part.lane
                    && key.type_index == of
                    && (part.after + 1..=part.to).contains(&key.id)
                    && !is_late(&part.through, row)
                    && (key.id > part.start.position || is_late(&part.start, row))
            };
            let visible = self.committed().filter(|row| row.key.id > self.dropped);
            for row in visible.filter(is_of_part).take(limits.lane_rows) {
                rows.push(*row);
                if rows.len() >= limits.rows {
                    return (rows, false);
                }
            }
        }
        (rows, true)
    }
}
