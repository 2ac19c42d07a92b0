//! All of the relay's SQL.
//!
//! Every statement is a transaction of its own, so none is ever open while Kafka answers. The database's clock alone dates leases.

pub mod cluster;
pub mod detour;
pub mod holders;
pub mod large;
pub mod parked;
pub mod read;
pub mod replay;
pub mod retention;
pub mod routes;
pub mod rows;
pub mod sequence;
pub mod slots;
pub mod status;
pub mod waiting;

use std::time::Duration;

use sqlx::PgConnection;

use crate::lanes::HeldLane;

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

/// The server that a connection has ended at.
#[derive(Debug)]
pub struct Server {
    /// Identifies the Postgres cluster: transaction ids mean nothing in another one. A standby has that of its primary.
    pub system_identifier: i64,
    /// Whether it is a standby.
    pub in_recovery: bool,
}

/// Which server this is.
///
/// # Errors
/// What the database says.
pub async fn server(connection: &mut PgConnection) -> Result<Server, sqlx::Error> {
    sqlx::query_as!(
        Server,
        r#"-- server
        SELECT outrider_cluster() AS "system_identifier!", pg_is_in_recovery() AS "in_recovery!""#
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
    // the condition again once it has the lock, so two relays never take the same lane. A lease that ends ten leases from now was dated
    // by a clock that has gone back since: its owner, if it is there, will have dated it anew by the time that anybody looks, and the
    // lane of one that is not there would lie still until the clock is where it was. A clock that jumps ahead between the renewal and
    // this ends our own leases too: the lanes in `held` are ours all the same, with records in flight, and are not taken again.
    sqlx::query_as!(
        ClaimedLane,
        r#"-- claim_lanes
        UPDATE relay_lanes l
        SET owner = $1, token = l.token + 1, expires_at = now() + make_interval(secs => $2)
        FROM (
            SELECT lane FROM relay_lanes
            WHERE lane <> ALL ($3::smallint[])
                AND (owner IS NULL OR owner = $1 OR expires_at <= now() OR expires_at > now() + 10 * make_interval(secs => $2))
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
            (SELECT count(*) FROM relay_members
             WHERE expires_at > now() AND expires_at <= now() + 10 * make_interval(secs => $2) AND relay <> $1) AS "others!""#,
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
