//! The one statement that reads the outbox.

use futures_util::TryStreamExt;
use sqlx::{PgConnection, Row};

use super::rows::{self, row_columns};
use crate::batch::Batch;
use crate::lanes::plan::ReadPlan;
use crate::lanes::{LANES, index};

/// How much one read may bring.
#[derive(Debug, Clone, Copy)]
pub struct ReadLimits {
    /// Late rows, of all lanes. If there are more, none is read.
    pub late_rows: i64,
    /// New rows of each lane.
    pub lane_rows: i64,
    /// No row above this id is looked for. If there may be one, there may be more of the second kind.
    pub id_max: i64,
    /// Bytes of all texts, counting those that are fetched later; the row that reaches it is the last one.
    pub bytes: usize,
}

/// What a read brought, beside its rows.
#[derive(Debug)]
pub struct ReadAnswer {
    /// The statement's own snapshot: the next `seen`.
    pub snapshot: String,
    /// The last id that was given out.
    pub last_id: i64,
    /// The rows: those at or below a position that may be late, by id; then those above, by id within each lane.
    pub batch: Batch,
    /// How many of the first kind. Which of them are late indeed is for the caller to say, by each lane's own snapshot.
    pub late: usize,
    /// Whether there are more of the first kind than one read may bring. What was read is of no use then.
    pub late_cut: bool,
    /// Whether there may be more of the second kind.
    pub fresh_cut: bool,
}

// Part 0 is the snapshot, in the place of the aggregate type, how many late rows there are, in that of the id, and the last id, in that of
// the transaction. Late rows are found over (txid, id), in two branches: transactions that may have begun since, and single ones that were
// running. Each row is in one of them. Those that still run are left out, of the first branch the three oldest: one may have a million
// rows, and each read would walk over all of them to see none. Rows above the highest position are left out by the index, and partitions
// above it are not looked into; `id + 0` keeps the planner from (lane, id), which would be walked whole. ORDER BY keeps it from a walk over
// the table: with a LIMIT alone it expects to come upon enough late rows soon, and there are none. Only their ids are limited and sorted.
// Part 1 is the rows themselves, one by one and in that order because of OFFSET 0. With one late row too many, there is no part 1 and no
// part 2: there are no lanes to read then, which costs less than a condition that each row passes through. Part 2 is one short range of
// (lane, id) a lane. All see the same snapshot: this is one statement in READ COMMITTED. No lock is taken.
//
// Where few rows come at a time, most of the cost is to make the plan's nodes ready, for each partition of each part. Hence the bounds of ids that
// seem to say nothing: the parameters alone tell which partitions have no such ids, those ahead and those long read, and these have no nodes then.
//
// Not one of the checked queries: those give each text a String of its own, which is six allocations a row.
const READ_LANES: &str = concat!(
    "-- read_lanes
WITH ranges AS MATERIALIZED (
    SELECT lag(bound.txid, 1, $1 - 1) OVER (ORDER BY bound.txid) + 1 AS first, bound.txid - 1 AS last
    FROM (
        (SELECT txid::text::bigint FROM pg_snapshot_xip(pg_current_snapshot()) running (txid)
        WHERE txid::text::bigint >= $1
        ORDER BY txid
        LIMIT 3)
        UNION ALL
        SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint
    ) bound (txid)
), late AS MATERIALIZED (
    (SELECT a.lane, a.id
    FROM ranges
    CROSS JOIN LATERAL (
        SELECT a.lane, a.id FROM outbox a
        WHERE a.txid BETWEEN ranges.first AND ranges.last AND a.id <= $4 AND a.id + 0 <= ($3::bigint[])[a.lane + 1]
        ORDER BY a.txid, a.id
        LIMIT $5 + 1
    ) a
    LIMIT $5 + 1)
    UNION ALL
    SELECT b.lane, b.id
    FROM (
        SELECT txid FROM UNNEST($2::bigint[]) running (txid)
        WHERE pg_visible_in_snapshot(txid::text::xid8, pg_current_snapshot())
    ) ended
    CROSS JOIN LATERAL (
        SELECT b.lane, b.id FROM outbox b
        WHERE b.txid = ended.txid AND b.id <= $4 AND b.id + 0 <= ($3::bigint[])[b.lane + 1]
        ORDER BY b.id
        LIMIT $5 + 1
    ) b
    LIMIT $5 + 1
)
SELECT 0::smallint, (SELECT count(*) FROM late), (SELECT last_value FROM outbox_id_seq), NULL::smallint, NULL::uuid, NULL::bigint, NULL::timestamptz,
    pg_current_snapshot()::text, NULL::text, NULL::text, NULL::json, NULL::jsonb, NULL::integer, NULL::bigint
UNION ALL
(SELECT 1::smallint, late_row.*
FROM (SELECT lane, id FROM late WHERE (SELECT count(*) FROM late) <= $5 ORDER BY id) n
CROSS JOIN LATERAL (
    SELECT ",
    row_columns!(),
    ", CASE WHEN $8 THEN hashtextextended(o.aggregate_type || '/' || o.aggregate_id, 0) END
    FROM outbox o WHERE o.lane = n.lane AND o.id = n.id AND o.id <= $4
    OFFSET 0
) late_row
ORDER BY n.id)
UNION ALL
SELECT 2::smallint, fresh.*
FROM UNNEST(CASE WHEN (SELECT count(*) FROM late) <= $5 THEN $6::smallint[] END) held (lane)
CROSS JOIN LATERAL (
    SELECT ",
    row_columns!(),
    ", CASE WHEN $8 THEN hashtextextended(o.aggregate_type || '/' || o.aggregate_id, 0) END
    FROM outbox o
    WHERE o.lane = held.lane AND o.id > ($3::bigint[])[held.lane + 1] AND o.id > $9 AND o.id <= $10
    ORDER BY o.id
    LIMIT $7
) fresh"
);

/// Reads all the lanes of the plan in one statement, but for large payloads and headers: see [`super::large`]. `batch` is an empty one,
/// whose room is used.
///
/// # Errors
/// What the database says.
pub async fn read(
    connection: &mut PgConnection,
    plan: &ReadPlan,
    limits: ReadLimits,
    batch: Batch,
) -> Result<ReadAnswer, sqlx::Error> {
    let positions = positions(&plan.lanes);
    let lanes: Vec<i16> = plan.lanes.iter().map(|(lane, _)| *lane).collect();
    let mut rows = sqlx::query(READ_LANES)
        .bind(plan.late_from)
        .bind(&plan.late_running)
        .bind(positions.as_slice())
        .bind(positions.iter().copied().max())
        .bind(limits.late_rows)
        .bind(&lanes)
        .bind(limits.lane_rows)
        .bind(plan.with_hashes)
        .bind(plan.lanes.iter().map(|(_, position)| *position).min())
        .bind(limits.id_max)
        .fetch(connection);

    let mut answer =
        ReadAnswer { snapshot: String::new(), last_id: 0, batch, late: 0, late_cut: false, fresh_cut: false };
    // Rows of each lane, to see which one had more than was asked for.
    let mut of_lane = [0_i64; LANES];
    while let Some(row) = rows.try_next().await? {
        let part: i16 = row.try_get_unchecked(0)?;
        if part == 0 {
            answer.snapshot = row.try_get_unchecked(7)?;
            answer.last_id = row.try_get_unchecked(2)?;
            answer.fresh_cut |= answer.last_id > limits.id_max;
            answer.late_cut = row.try_get_unchecked::<i64, _>(1)? > limits.late_rows;
            continue;
        }
        let key_hash: Option<i64> = row.try_get_unchecked(13)?;
        let key = rows::push(&mut answer.batch, &row, 1, key_hash.unwrap_or(0))?;
        if part == 1 {
            answer.late += 1;
        } else if let Some(count) = of_lane.get_mut(index(key.lane)) {
            *count += 1;
            answer.fresh_cut |= *count >= limits.lane_rows;
        }
        if answer.batch.bytes() >= limits.bytes {
            // What the server still sends is thrown away by the next statement. The caller asks for fewer rows then.
            answer.late_cut |= part == 1;
            answer.fresh_cut = true;
            break;
        }
    }
    Ok(answer)
}

/// The position of each lane in the order of their numbers; none of a lane that is not read is at or below its own.
pub(super) fn positions(lanes: &[(i16, i64)]) -> [i64; LANES] {
    let mut positions = [-1; LANES];
    for (lane, position) in lanes {
        if let Some(slot) = positions.get_mut(index(*lane)) {
            *slot = *position;
        }
    }
    positions
}
