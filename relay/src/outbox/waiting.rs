//! The cursors of aggregate types that wait for their topic, and the rows behind them. See [`crate::lanes::waiting`].
//!
//! Only the relay that holds a lane writes rows of it, each time under the lane's token: the share lock on the lane keeps a successor from
//! taking it before these rows are there for it to see.

use futures_util::TryStreamExt;
use sqlx::PgConnection;

use super::rows::{self, row_columns};
use crate::batch::Batch;
use crate::lanes::waiting::Part;
use crate::lanes::{Cursor, Snapshot};

/// A lane that is held, and a cursor in it.
#[derive(Debug, Clone)]
pub struct CursorOfType<'a> {
    /// Its lane.
    pub lane: i16,
    /// The lane's fencing token.
    pub token: i64,
    /// `outbox.aggregate_type`.
    pub aggregate_type: &'a str,
    /// What of the type is published.
    pub cursor: Cursor,
}

/// A type that waits in a lane.
#[derive(Debug)]
pub struct WaitingRow {
    /// Its lane.
    pub lane: i16,
    /// `outbox.aggregate_type`.
    pub aggregate_type: String,
    /// The cursor's position.
    pub position: i64,
    /// The cursor's snapshot.
    pub seen: Option<String>,
    /// Where its events go.
    pub topic: String,
    /// Why they wait.
    pub reason: String,
}

/// Cursors as columns, one array a column.
struct Columns<'a> {
    lanes: Vec<i16>,
    tokens: Vec<i64>,
    types: Vec<&'a str>,
    positions: Vec<i64>,
    seen: Vec<Option<&'a str>>,
}

impl<'a> Columns<'a> {
    fn of(cursors: &'a [CursorOfType<'a>]) -> Self {
        Self {
            lanes: cursors.iter().map(|of| of.lane).collect(),
            tokens: cursors.iter().map(|of| of.token).collect(),
            types: cursors.iter().map(|of| of.aggregate_type).collect(),
            positions: cursors.iter().map(|of| of.cursor.position).collect(),
            seen: cursors.iter().map(|of| of.cursor.seen.as_deref().map(Snapshot::as_str)).collect(),
        }
    }
}

/// Types that wait in these lanes.
///
/// # Errors
/// What the database says.
pub async fn waiting_types(connection: &mut PgConnection, lanes: &[i16]) -> Result<Vec<WaitingRow>, sqlx::Error> {
    sqlx::query_as!(
        WaitingRow,
        r#"-- waiting_types
        SELECT lane, aggregate_type, position, seen::text AS seen, topic, reason FROM relay_waiting WHERE lane = ANY ($1)"#,
        lanes
    )
    .fetch_all(connection)
    .await
}

/// Lets types wait from these cursors on. Returns the lanes that are still held under their tokens: for the others nothing was written. A
/// type that waits in the lane already stays as it is.
///
/// # Errors
/// What the database says.
pub async fn begin_waiting(
    connection: &mut PgConnection,
    cursors: &[CursorOfType<'_>],
    topic: &str,
    reason: &str,
) -> Result<Vec<i16>, sqlx::Error> {
    let columns = Columns::of(cursors);
    sqlx::query_scalar!(
        r#"-- begin_waiting
        WITH fence AS (
            SELECT l.lane, w.aggregate_type, w.position, w.seen
            FROM UNNEST($1::smallint[], $2::bigint[], $3::text[], $4::bigint[], $5::text[]) w (lane, token, aggregate_type, position, seen)
            JOIN relay_lanes l ON l.lane = w.lane AND l.token = w.token
            FOR SHARE OF l
        ), waiting AS (
            INSERT INTO relay_waiting (lane, aggregate_type, position, seen, topic, reason)
            SELECT lane, aggregate_type, position, seen::pg_snapshot, $6, $7 FROM fence
            ON CONFLICT (lane, aggregate_type) DO NOTHING
        )
        SELECT DISTINCT lane AS "lane!" FROM fence"#,
        &columns.lanes,
        &columns.tokens,
        &columns.types as &[&str],
        &columns.positions,
        &columns.seen as &[Option<&str>],
        topic,
        reason,
    )
    .fetch_all(connection)
    .await
}

/// Writes the cursors of types that wait. A lane that is another relay's now is left out.
///
/// # Errors
/// What the database says.
pub async fn settle_waiting(connection: &mut PgConnection, cursors: &[CursorOfType<'_>]) -> Result<(), sqlx::Error> {
    let columns = Columns::of(cursors);
    sqlx::query!(
        r#"-- settle_waiting
        WITH fence AS (
            SELECT l.lane, w.aggregate_type, w.position, w.seen
            FROM UNNEST($1::smallint[], $2::bigint[], $3::text[], $4::bigint[], $5::text[]) w (lane, token, aggregate_type, position, seen)
            JOIN relay_lanes l ON l.lane = w.lane AND l.token = w.token
            FOR SHARE OF l
        )
        UPDATE relay_waiting w SET position = fence.position, seen = fence.seen::pg_snapshot
        FROM fence
        WHERE w.lane = fence.lane AND w.aggregate_type = fence.aggregate_type AND w.position <= fence.position"#,
        &columns.lanes,
        &columns.tokens,
        &columns.types as &[&str],
        &columns.positions,
        &columns.seen as &[Option<&str>],
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The types wait no more: they are where their lanes are. Returns how many cursors were deleted; those of lanes that are another relay's
/// now are not.
///
/// # Errors
/// What the database says.
pub async fn end_waiting(connection: &mut PgConnection, cursors: &[CursorOfType<'_>]) -> Result<u64, sqlx::Error> {
    let columns = Columns::of(cursors);
    let ended = sqlx::query!(
        r#"-- end_waiting
        WITH fence AS (
            SELECT l.lane, w.aggregate_type
            FROM UNNEST($1::smallint[], $2::bigint[], $3::text[]) w (lane, token, aggregate_type)
            JOIN relay_lanes l ON l.lane = w.lane AND l.token = w.token
            FOR SHARE OF l
        )
        DELETE FROM relay_waiting w USING fence
        WHERE w.lane = fence.lane AND w.aggregate_type = fence.aggregate_type"#,
        &columns.lanes,
        &columns.tokens,
        &columns.types as &[&str],
    )
    .execute(connection)
    .await?;
    Ok(ended.rows_affected())
}

/// The lowest id of a row that one of these cursors may not cover although it is at or below its position: where a pass begins.
///
/// # Errors
/// What the database says.
pub async fn first_late_id(
    connection: &mut PgConnection,
    cursors: impl Iterator<Item = &Cursor> + Clone,
) -> Result<Option<i64>, sqlx::Error> {
    let seen = || cursors.clone().filter_map(|cursor| cursor.seen.as_deref());
    let Some(late_from) = seen().map(Snapshot::xmax).min() else { return Ok(None) };
    let running: Vec<i64> = seen().flat_map(Snapshot::xip).copied().filter(|txid| *txid < late_from).collect();
    let highest = cursors.clone().map(|cursor| cursor.position).max().unwrap_or(0);
    // Over (txid, id), and over nothing but this index; not over transactions that still run, which may have millions of rows.
    sqlx::query_scalar!(
        r#"-- first_late_id
        SELECT min(id) FROM (
            SELECT a.id FROM outbox a
            WHERE a.txid >= $1 AND a.txid < pg_snapshot_xmax(pg_current_snapshot())::text::bigint AND a.id <= $3
            UNION ALL
            SELECT b.id FROM outbox b
            WHERE b.txid < $1 AND b.id <= $3 AND b.txid = ANY (ARRAY(
                SELECT txid FROM UNNEST($2::bigint[]) running (txid)
                WHERE pg_visible_in_snapshot(txid::text::xid8, pg_current_snapshot())))
        ) late"#,
        late_from,
        &running,
        highest,
    )
    .fetch_one(connection)
    .await
}

// One range of (lane, id) a lane. Its rows of other types are looked at and left out, so the caller bounds the range.
const READ_WAITING: &str = concat!(
    "-- read_waiting
SELECT ",
    row_columns!(),
    "
FROM UNNEST($1::smallint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::text[]) p (lane, after, upto, position, seen, through)
CROSS JOIN LATERAL (
    SELECT * FROM outbox f
    WHERE f.lane = p.lane AND f.id > p.after AND f.id <= p.upto AND f.aggregate_type = $7
        AND pg_visible_in_snapshot(f.txid::text::xid8, p.through::pg_snapshot)
        AND (f.id > p.position OR p.seen IS NULL OR NOT pg_visible_in_snapshot(f.txid::text::xid8, p.seen::pg_snapshot))
    ORDER BY f.id
    LIMIT $8
) o"
);

/// How much one read may bring.
#[derive(Debug, Clone, Copy)]
pub struct PartsLimits {
    /// Rows of each lane.
    pub lane_rows: i64,
    /// Bytes of all texts, counting those that are fetched later; the row that reaches it is the last one.
    pub bytes: usize,
}

/// Reads these parts of an aggregate type into `batch`, by id within each lane, but for large payloads and headers. Returns whether all
/// rows came that were asked for; if not, the lane of the last row may have more, and a lane without a row was perhaps not read.
///
/// # Errors
/// What the database says.
pub async fn read_parts(
    connection: &mut PgConnection,
    aggregate_type: &str,
    parts: &[Part],
    limits: PartsLimits,
    batch: &mut Batch,
) -> Result<bool, sqlx::Error> {
    let text = |cursor: &Cursor| cursor.seen.as_deref().map(|seen| seen.as_str().to_owned());
    let mut rows = sqlx::query(READ_WAITING)
        .bind(parts.iter().map(|part| part.lane).collect::<Vec<_>>())
        .bind(parts.iter().map(|part| part.after).collect::<Vec<_>>())
        .bind(parts.iter().map(|part| part.to).collect::<Vec<_>>())
        .bind(parts.iter().map(|part| part.start.position).collect::<Vec<_>>())
        .bind(parts.iter().map(|part| text(&part.start)).collect::<Vec<_>>())
        .bind(parts.iter().map(|part| text(&part.through)).collect::<Vec<_>>())
        .bind(aggregate_type)
        .bind(limits.lane_rows)
        .fetch(connection);
    while let Some(row) = rows.try_next().await? {
        rows::push(batch, &row, 0, 0)?;
        if batch.bytes() >= limits.bytes {
            return Ok(false);
        }
    }
    Ok(true)
}
