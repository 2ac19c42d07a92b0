//! All of the relay's SQL.
//!
//! Every statement is a transaction of its own, so none is ever open while Kafka answers. The database's clock alone dates leases.

pub mod parked;
pub mod routes;

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::lanes::{HeldLane, LANES, Snapshot};

/// A row of the outbox, as it is to be published.
#[derive(Debug)]
pub struct Row {
    /// `outbox.id`.
    pub id: i64,
    /// `outbox.txid`.
    pub txid: i64,
    /// `outbox.lane`.
    pub lane: i16,
    /// `outbox.event_id`.
    pub event_id: Uuid,
    /// `outbox.aggregate_type`.
    pub aggregate_type: String,
    /// `outbox.aggregate_id`.
    pub aggregate_id: String,
    /// `outbox.aggregate_version`.
    pub aggregate_version: i64,
    /// `outbox.type`.
    pub event_type: String,
    /// `outbox.payload`, as its writer wrote it.
    pub payload: String,
    /// `outbox.headers`, JSON text of an object.
    pub headers: String,
    /// `outbox.occurred_at`.
    pub occurred_at: DateTime<Utc>,
}

/// What to read.
#[derive(Debug)]
pub struct ReadRequest<'a> {
    /// Lane and position of each lane to read.
    pub lanes: &'a [(i16, i64)],
    /// Lowest `xmax` of the lanes' snapshots: every row of a transaction from here on may be late. `i64::MAX` for none.
    pub late_from: i64,
    /// Transactions below `late_from` that ran in one of the snapshots.
    pub late_running: &'a [i64],
    /// At most this many late rows.
    pub late_rows_max: i64,
    /// At most this many new rows of each lane.
    pub lane_rows_max: i64,
    /// Going on with a read whose late rows were too many: those after this id, and only if visible in this snapshot.
    pub rest: Option<&'a (i64, Snapshot)>,
}

/// What was read.
#[derive(Debug)]
pub struct ReadAnswer {
    /// The statement's own snapshot: the next `seen`.
    pub snapshot: String,
    /// Rows at or below a position that may be late, by id. Which of them are is for the caller to say, by each lane's own snapshot.
    pub late: Vec<Row>,
    /// Rows above the positions, by id within each lane.
    pub fresh: Vec<Row>,
}

/// Reads all the lanes in one statement.
///
/// # Errors
/// What the database says.
pub async fn read(connection: &mut PgConnection, request: &ReadRequest<'_>) -> Result<ReadAnswer, sqlx::Error> {
    let mut positions = [-1_i64; LANES];
    for (lane, position) in request.lanes {
        if let Some(slot) = usize::try_from(*lane).ok().and_then(|lane| positions.get_mut(lane)) {
            *slot = *position;
        }
    }
    let lanes: Vec<i16> = request.lanes.iter().map(|(lane, _)| *lane).collect();
    let (after, through) = request.rest.map_or((0, None), |(after, through)| (*after, Some(through.as_str())));
    // Part 0 is the snapshot. Part 1 goes over (txid), for `id + 0` keeps the planner off (lane, id), which would be walked whole; its
    // two branches are a range and a few equalities, and each row is in one of them. Part 2 is one short range of (lane, id) a lane.
    // All three see the same snapshot: this is one statement in READ COMMITTED. No lock is taken.
    let records = sqlx::query!(
        r#"-- read_lanes
        SELECT 0::smallint AS "part!", pg_current_snapshot()::text AS snapshot, NULL::bigint AS id, NULL::bigint AS txid,
            NULL::smallint AS lane, NULL::uuid AS event_id, NULL::text AS aggregate_type, NULL::text AS aggregate_id,
            NULL::bigint AS aggregate_version, NULL::text AS type, NULL::text AS payload, NULL::text AS headers,
            NULL::timestamptz AS occurred_at
        UNION ALL
        (SELECT 1::smallint, NULL, late.id, late.txid, late.lane, late.event_id, late.aggregate_type, late.aggregate_id,
            late.aggregate_version, late.type, late.payload::text, late.headers::text, late.occurred_at
        FROM (
            SELECT * FROM outbox a WHERE a.txid >= $1 AND a.id + 0 <= ($3::bigint[])[a.lane + 1]
            UNION ALL
            SELECT * FROM outbox b WHERE b.txid < $1 AND b.txid = ANY ($2::bigint[]) AND b.id + 0 <= ($3::bigint[])[b.lane + 1]
        ) late
        WHERE late.id + 0 > $4
            AND ($5::text IS NULL OR pg_visible_in_snapshot(late.txid::text::xid8, $5::text::pg_snapshot))
        ORDER BY late.id
        LIMIT $6)
        UNION ALL
        SELECT 2::smallint, NULL, fresh.id, fresh.txid, fresh.lane, fresh.event_id, fresh.aggregate_type, fresh.aggregate_id,
            fresh.aggregate_version, fresh.type, fresh.payload::text, fresh.headers::text, fresh.occurred_at
        FROM UNNEST($7::smallint[]) held (lane)
        CROSS JOIN LATERAL (
            SELECT * FROM outbox o
            WHERE o.lane = held.lane AND o.id > ($3::bigint[])[held.lane + 1]
            ORDER BY o.id
            LIMIT $8
        ) fresh"#,
        request.late_from,
        request.late_running,
        &positions,
        after,
        through,
        request.late_rows_max,
        &lanes,
        if through.is_some() { 0 } else { request.lane_rows_max },
    )
    .fetch_all(connection)
    .await?;

    let mut answer = ReadAnswer { snapshot: String::new(), late: Vec::new(), fresh: Vec::new() };
    for record in records {
        if let Some(snapshot) = record.snapshot {
            answer.snapshot = snapshot;
            continue;
        }
        let missing = || sqlx::Error::Decode("a row of the outbox without a value".into());
        let row = Row {
            id: record.id.ok_or_else(missing)?,
            txid: record.txid.ok_or_else(missing)?,
            lane: record.lane.ok_or_else(missing)?,
            event_id: record.event_id.ok_or_else(missing)?,
            aggregate_type: record.aggregate_type.ok_or_else(missing)?,
            aggregate_id: record.aggregate_id.ok_or_else(missing)?,
            aggregate_version: record.aggregate_version.ok_or_else(missing)?,
            event_type: record.r#type.ok_or_else(missing)?,
            payload: record.payload.ok_or_else(missing)?,
            headers: record.headers.ok_or_else(missing)?,
            occurred_at: record.occurred_at.ok_or_else(missing)?,
        };
        if record.part == 1 { answer.late.push(row) } else { answer.fresh.push(row) }
    }
    Ok(answer)
}

/// The snapshot of this moment: unchanged while nothing commits, and then there is nothing to read.
///
/// # Errors
/// What the database says.
pub async fn current_snapshot(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    sqlx::query_scalar!(
        r#"-- current_snapshot
        SELECT pg_current_snapshot()::text AS "snapshot!""#
    )
    .fetch_one(connection)
    .await
}

/// Identifies the Postgres cluster: transaction ids mean nothing in another one.
///
/// # Errors
/// What the database says.
pub async fn system_identifier(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        r#"-- system_identifier
        SELECT system_identifier AS "system_identifier!" FROM pg_control_system()"#
    )
    .fetch_one(connection)
    .await
}

/// A lane as it was taken.
#[derive(Debug)]
pub struct ClaimedLane {
    /// Which one.
    pub lane: i16,
    /// The new fencing token.
    pub token: i64,
    /// The settled position.
    pub position: i64,
    /// The settled snapshot.
    pub seen: Option<String>,
    /// The cluster that the snapshot is of.
    pub system_identifier: Option<i64>,
}

/// Takes up to `count` lanes that are free, whose lease has ended, or that this very relay holds from before it lost its connection
/// (those not in `held`). Every take-over raises the token, which fences whoever held the lane.
///
/// # Errors
/// What the database says.
pub async fn claim_lanes(
    connection: &mut PgConnection,
    relay: &str,
    lease: Duration,
    held: &[i16],
    count: i64,
) -> Result<Vec<ClaimedLane>, sqlx::Error> {
    // Row locks on the lanes taken, for this statement; lanes that another relay is just taking are passed over. FOR UPDATE looks at
    // the condition again once it has the lock, so two relays never take the same lane.
    sqlx::query_as!(
        ClaimedLane,
        r#"-- claim_lanes
        UPDATE relay_lanes l
        SET owner = $1, token = l.token + 1, expires_at = now() + make_interval(secs => $2)
        FROM (
            SELECT lane FROM relay_lanes
            WHERE owner IS NULL OR expires_at <= now() OR (owner = $1 AND lane <> ALL ($3::smallint[]))
            ORDER BY lane
            LIMIT $4
            FOR UPDATE SKIP LOCKED
        ) free
        WHERE l.lane = free.lane
        RETURNING l.lane, l.token, l.position, l.seen::text AS seen, l.system_identifier"#,
        relay,
        lease.as_secs_f64(),
        held,
        count,
    )
    .fetch_all(connection)
    .await
}

/// What a renewal found.
#[derive(Debug)]
pub struct Renewal {
    /// Lanes whose lease was renewed and whose cursor was written: those that are still this relay's.
    pub lanes: Vec<i16>,
    /// How many relays are running, this one included.
    pub relays: usize,
}

/// Renews this relay's membership and the leases of `lanes`, and settles their cursors, all in one statement. Each lane is named with
/// its token: a lane that another relay has taken is not touched, and is missing from the answer.
///
/// # Errors
/// What the database says.
pub async fn renew_and_settle(
    connection: &mut PgConnection,
    relay: &str,
    lease: Duration,
    lanes: &[&HeldLane],
    system_identifier: i64,
) -> Result<Renewal, sqlx::Error> {
    let columns = Columns::of(lanes);
    // Row locks on this relay's lanes and member row. Of a relay that is about to be counted out, nothing is waited for: each row is
    // locked by its owner alone, except in the instant of a take-over.
    let record = sqlx::query!(
        r#"-- renew_and_settle
        WITH member AS (
            INSERT INTO relay_members (relay, expires_at) VALUES ($1, now() + make_interval(secs => $2))
            ON CONFLICT (relay) DO UPDATE SET expires_at = excluded.expires_at
        ), renewed AS (
            UPDATE relay_lanes l
            SET expires_at = now() + make_interval(secs => $2), position = s.position, seen = s.seen::pg_snapshot,
                system_identifier = $7, settled_at = now()
            FROM UNNEST($3::smallint[], $4::bigint[], $5::bigint[], $6::text[]) s (lane, token, position, seen)
            WHERE l.lane = s.lane AND l.token = s.token AND l.owner = $1
            RETURNING l.lane
        )
        SELECT
            ARRAY(SELECT lane FROM renewed) AS "lanes!",
            (SELECT count(*) FROM relay_members WHERE expires_at > now() AND relay <> $1) AS "others!""#,
        relay,
        lease.as_secs_f64(),
        &columns.lanes,
        &columns.tokens,
        &columns.positions,
        &columns.seen as &[Option<&str>],
        system_identifier,
    )
    .fetch_one(connection)
    .await?;
    Ok(Renewal { lanes: record.lanes, relays: usize::try_from(record.others).unwrap_or(0) + 1 })
}

/// Settles `lanes` for the last time and gives them back. Returns how many were still this relay's.
///
/// # Errors
/// What the database says.
pub async fn release_lanes(
    connection: &mut PgConnection,
    relay: &str,
    lanes: &[&HeldLane],
) -> Result<u64, sqlx::Error> {
    let columns = Columns::of(lanes);
    let released = sqlx::query!(
        r#"-- release_lanes
        UPDATE relay_lanes l
        SET owner = NULL, expires_at = '-infinity', position = s.position, seen = s.seen::pg_snapshot, settled_at = now()
        FROM UNNEST($2::smallint[], $3::bigint[], $4::bigint[], $5::text[]) s (lane, token, position, seen)
        WHERE l.lane = s.lane AND l.token = s.token AND l.owner = $1"#,
        relay,
        &columns.lanes,
        &columns.tokens,
        &columns.positions,
        &columns.seen as &[Option<&str>],
    )
    .execute(connection)
    .await?;
    Ok(released.rows_affected())
}

/// Takes this relay off the list of running ones, and with it those that have been gone for an hour.
///
/// # Errors
/// What the database says.
pub async fn leave(connection: &mut PgConnection, relay: &str) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"-- leave
        DELETE FROM relay_members WHERE relay = $1 OR expires_at < now() - interval '1 hour'"#,
        relay
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes outbox partitions until `ahead` of them lie beyond the last id. Returns how many were made.
///
/// # Errors
/// What the database says, for example that a lock could not be had in time.
pub async fn make_partitions(pool: &PgPool, ahead: i32) -> Result<i32, sqlx::Error> {
    sqlx::query_scalar!(
        r#"-- make_partitions
        SELECT outbox_make_partitions($1) AS "made!""#,
        ahead
    )
    .fetch_one(pool)
    .await
}

/// Lanes with their tokens and settleable cursors, one array a column.
struct Columns<'a> {
    lanes: Vec<i16>,
    tokens: Vec<i64>,
    positions: Vec<i64>,
    seen: Vec<Option<&'a str>>,
}

impl<'a> Columns<'a> {
    fn of(lanes: &[&'a HeldLane]) -> Self {
        let cursors = || lanes.iter().map(|lane| lane.progress.cursor());
        Self {
            lanes: lanes.iter().map(|lane| lane.lane).collect(),
            tokens: lanes.iter().map(|lane| lane.token).collect(),
            positions: cursors().map(|cursor| cursor.position).collect(),
            seen: cursors().map(|cursor| cursor.seen.as_ref().map(|seen| seen.as_str())).collect(),
        }
    }
}
