//! What a detour asks of the outbox: its aggregates and transactions, and its rows in parts.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::TryStreamExt;
use sqlx::{PgConnection, Row};

use super::read::positions;
use super::rows::{self, row_columns};
use crate::batch::Batch;
use crate::lanes::Snapshot;
use crate::lanes::plan::{FindPlan, PartPlan};

/// Rows that are looked at in one statement, while nothing else is read: some tens of milliseconds.
const FIND_ROWS: i64 = 50_000;

/// How far a find has come: it goes over the transactions in ranges, and over each in pages.
#[derive(Debug)]
pub struct Finding {
    through: Arc<Snapshot>,
    /// First and last transaction.
    ranges: VecDeque<(i64, i64)>,
    /// Transaction and id of the last row of the last page.
    after: (i64, i64),
    /// The transactions of all rows, if they are known, until a page has brought them.
    transactions: Option<Vec<i64>>,
}

/// What a page has brought.
#[derive(Debug)]
pub struct FoundPage {
    /// Hashes of the rows' aggregates.
    pub key_hashes: Vec<i64>,
    /// The rows' transactions, or those of all rows.
    pub transactions: Vec<i64>,
    /// Whether they are those of all rows.
    pub are_all: bool,
    /// Whether there is no further page.
    pub is_last: bool,
}

impl Finding {
    /// Begins to look for the rows of a detour. Of the transactions that ran in one of the old snapshots, some still ran in the new one, and
    /// most of the others have no such row. Of those that have begun since, often only one has, a bulk: then its parts need not wait until
    /// all of its rows were looked at.
    ///
    /// # Errors
    /// What the database says.
    pub async fn begin(connection: &mut PgConnection, plan: &FindPlan) -> Result<Self, sqlx::Error> {
        let running = sqlx::query_scalar::<_, i64>(
            "-- find_transactions
            SELECT t.txid FROM UNNEST($1::bigint[]) t (txid)
            WHERE EXISTS (SELECT FROM outbox o WHERE o.txid = t.txid AND o.id <= $2)
            ORDER BY t.txid",
        );
        let highest = positions(&plan.read.lanes).into_iter().max();
        let ended: Vec<i64> =
            plan.read.late_running.iter().copied().filter(|txid| !plan.through.is_late(*txid)).collect();
        let running = running.bind(ended).bind(highest).fetch_all(&mut *connection).await?;
        let new = (plan.read.late_from, plan.through.xmax());
        let bounds = sqlx::query_as::<_, (Option<i64>, Option<i64>)>(
            "-- find_bounds
            SELECT
                (SELECT o.txid FROM outbox o WHERE o.txid BETWEEN $1 AND $2 AND o.id <= $3 ORDER BY o.txid LIMIT 1),
                (SELECT o.txid FROM outbox o WHERE o.txid BETWEEN $1 AND $2 AND o.id <= $3 ORDER BY o.txid DESC LIMIT 1)",
        );
        let (first_new, last_new) = bounds.bind(new.0).bind(new.1).bind(highest).fetch_one(connection).await?;
        let transactions = (first_new == last_new).then(|| running.iter().copied().chain(first_new).collect());
        let mut ranges: VecDeque<(i64, i64)> = running.into_iter().map(|txid| (txid, txid)).collect();
        ranges.push_back(new);
        Ok(Self { through: Arc::clone(&plan.through), after: first(&ranges), ranges, transactions })
    }

    /// Whether this is a find of that plan.
    #[must_use]
    pub fn is_of(&self, plan: &FindPlan) -> bool {
        Arc::ptr_eq(&self.through, &plan.through)
    }

    /// Looks at the next page. If the transactions are known from the beginning, the first page brings them alone, since its rows may never be
    /// needed.
    ///
    /// # Errors
    /// What the database says.
    pub async fn next_page(
        &mut self,
        connection: &mut PgConnection,
        plan: &FindPlan,
    ) -> Result<FoundPage, sqlx::Error> {
        if let Some(transactions) = self.transactions.take() {
            return Ok(FoundPage { key_hashes: Vec::new(), transactions, are_all: true, is_last: false });
        }
        // In the order of the index (txid, id); `id + 0` keeps the planner from (lane, id). The hash is that of the column `lane`.
        let page = sqlx::query(
            "-- find_page
            SELECT array_agg(f.hash), array_agg(f.txid), (array_agg(f.id))[count(*)]
            FROM (
                SELECT o.txid, o.id, hashtextextended(o.aggregate_type || '/' || o.aggregate_id, 0) AS hash
                FROM outbox o
                WHERE (o.txid, o.id) > ($1, $2) AND o.txid <= $3 AND o.id <= $4 AND o.id + 0 <= ($5::bigint[])[o.lane + 1]
                ORDER BY o.txid, o.id
                LIMIT $6
            ) f",
        );
        let positions = positions(&plan.read.lanes);
        let row = page
            .bind(self.after.0)
            .bind(self.after.1)
            .bind(self.ranges.front().map_or(0, |(_, last)| *last))
            .bind(positions.iter().copied().max())
            .bind(positions.as_slice())
            .bind(FIND_ROWS)
            .fetch_one(connection)
            .await?;
        let key_hashes = row.try_get_unchecked::<Option<Vec<i64>>, _>(0)?.unwrap_or_default();
        let mut transactions = row.try_get_unchecked::<Option<Vec<i64>>, _>(1)?.unwrap_or_default();
        let last_id = row.try_get_unchecked::<Option<i64>, _>(2)?.unwrap_or(0);
        if i64::try_from(key_hashes.len()).is_ok_and(|rows| rows < FIND_ROWS) {
            self.ranges.pop_front();
            self.after = first(&self.ranges);
        } else {
            self.after = (transactions.last().copied().unwrap_or(0), last_id);
        }
        transactions.dedup();
        Ok(FoundPage { key_hashes, transactions, are_all: false, is_last: self.ranges.is_empty() })
    }
}

/// Before the first row of the first range.
fn first(ranges: &VecDeque<(i64, i64)>) -> (i64, i64) {
    (ranges.front().map_or(0, |(first, _)| *first), 0)
}

/// How much a part may bring.
#[derive(Debug, Clone, Copy)]
pub struct PartLimits {
    /// Rows, if they are late ones: the plan says how many were held back.
    pub rows: i64,
    /// Bytes of all texts, counting those that are fetched later; the row that reaches it is the last one.
    pub bytes: usize,
}

// The rows of one transaction, as they are in the index (txid, id); `id + 0` keeps the planner from (lane, id).
const READ_LATE_OF_ONE: &str = concat!(
    "-- read_detour_of_one
SELECT ",
    row_columns!(),
    " FROM outbox o
WHERE o.txid = $1 AND o.id > $2 AND o.id <= $3 AND o.id + 0 <= ($4::bigint[])[o.lane + 1]
ORDER BY o.id
LIMIT $5"
);

// Of several, each one's rows are in that order, so no more than `rows` of each are looked at and sorted. Only ids are, which would spill to
// the disk with their texts: the rows themselves come one by one, in that order because of OFFSET 0. That costs twice as much.
const READ_LATE: &str = concat!(
    "-- read_detour
SELECT part.*
FROM (
    SELECT n.lane, n.id
    FROM UNNEST($1::bigint[]) t (txid)
    CROSS JOIN LATERAL (
        SELECT o.lane, o.id FROM outbox o
        WHERE o.txid = t.txid AND o.id > $2 AND o.id <= $3 AND o.id + 0 <= ($4::bigint[])[o.lane + 1]
        ORDER BY o.id
        LIMIT $5
    ) n
    ORDER BY n.id
    LIMIT $5
) n
CROSS JOIN LATERAL (SELECT ",
    row_columns!(),
    " FROM outbox o WHERE o.lane = n.lane AND o.id = n.id OFFSET 0) part
ORDER BY n.id"
);

const READ_HELD: &str = concat!(
    "-- read_held_back
SELECT part.*
FROM UNNEST($1::smallint[], $2::bigint[]) WITH ORDINALITY n (lane, id, number)
CROSS JOIN LATERAL (SELECT ",
    row_columns!(),
    " FROM outbox o WHERE o.lane = n.lane AND o.id = n.id OFFSET 0) part
ORDER BY n.number"
);

/// Reads a part of a detour into an empty batch, but for large payloads and headers: see [`super::large`]. Returns whether there may be
/// more than it has brought. The statement sees another snapshot than the read that began the detour, which is safe: a row of the outbox
/// is never changed, and the transactions are those that were visible then.
///
/// # Errors
/// What the database says.
pub async fn read_part(
    connection: &mut PgConnection,
    plan: &PartPlan,
    limits: PartLimits,
    batch: &mut Batch,
) -> Result<bool, sqlx::Error> {
    let (query, rows_max) = match plan {
        PartPlan::Late { lanes, transactions, after } => {
            let positions = positions(lanes);
            let query = match transactions.as_ref() {
                [one] => sqlx::query(READ_LATE_OF_ONE).bind(*one),
                several => sqlx::query(READ_LATE).bind(several),
            };
            let query = query.bind(*after);
            let query = query.bind(positions.iter().copied().max()).bind(positions.to_vec()).bind(limits.rows);
            (query, usize::try_from(limits.rows).unwrap_or(usize::MAX))
        }
        PartPlan::Held(rows) => {
            let (lanes, ids): (Vec<i16>, Vec<i64>) = rows.iter().copied().unzip();
            (sqlx::query(READ_HELD).bind(lanes).bind(ids), rows.len())
        }
    };
    let mut rows = query.fetch(connection);
    while let Some(row) = rows.try_next().await? {
        rows::push(batch, &row, 0, 0)?;
        if batch.bytes() >= limits.bytes {
            return Ok(true);
        }
    }
    if matches!(plan, PartPlan::Held(_)) && batch.len() < rows_max {
        // No row is dropped before the relay has settled beyond it.
        return Err(sqlx::Error::RowNotFound);
    }
    Ok(batch.len() >= rows_max)
}
