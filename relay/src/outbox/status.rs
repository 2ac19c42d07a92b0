//! SQL for those who want to know how the relays are doing. It reads only, and each statement is bounded, whatever the backlog.
//!
//! A row may say that it occurred at infinity, of which Postgres 15 computes no age. Ages are therefore those of a time between the year 1
//! and now.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

/// How a lane stands.
#[derive(Debug, Clone, PartialEq)]
pub struct LaneStatus {
    /// Which one.
    pub lane: i16,
    /// The relay that holds it; none when it is free or its lease is over.
    pub owner: Option<String>,
    /// How long the lease still holds, in seconds.
    pub lease_secs: Option<f64>,
    /// The settled position.
    pub position: i64,
    /// When it was settled last.
    pub settled_at: Option<DateTime<Utc>>,
    /// How long ago that was, in seconds.
    pub settled_age_secs: Option<f64>,
    /// Rows above the position, counted up to the given number.
    pub rows: i64,
    /// The highest id that was counted.
    pub reached: Option<i64>,
    /// The lowest id above the position.
    pub oldest_id: Option<i64>,
    /// How long ago the event with that id occurred, in seconds; none if it did at an infinite time, which Postgres takes no age of.
    pub oldest_age_secs: Option<f64>,
}

/// All lanes, by number; `rows_max` bounds what is counted of each one's backlog.
///
/// # Errors
/// What the database says.
pub async fn lanes(connection: &mut PgConnection, rows_max: i64) -> Result<Vec<LaneStatus>, sqlx::Error> {
    // A short range of (lane, id) a lane, from the index alone where the partition was vacuumed.
    sqlx::query_as!(
        LaneStatus,
        r#"-- lane_status
        SELECT l.lane, CASE WHEN l.expires_at > now() THEN l.owner END AS owner,
            CASE WHEN l.owner IS NOT NULL AND l.expires_at > now() THEN extract(epoch FROM l.expires_at - now())::float8 END AS lease_secs,
            l.position, l.settled_at, extract(epoch FROM now() - l.settled_at)::float8 AS settled_age_secs,
            counted.rows AS "rows!", counted.reached, oldest.id AS "oldest_id?",
            CASE WHEN isfinite(oldest.occurred_at)
                THEN (extract(epoch FROM now()) - extract(epoch FROM oldest.occurred_at))::float8 END AS oldest_age_secs
        FROM relay_lanes l
        CROSS JOIN LATERAL (
            SELECT count(*) AS rows, max(f.id) AS reached
            FROM (
                SELECT o.id FROM outbox o WHERE o.lane = l.lane AND o.id > l.position ORDER BY o.id LIMIT $1
            ) f
        ) counted
        LEFT JOIN LATERAL (
            SELECT o.id, least(greatest(o.occurred_at, '0001-01-01 00:00:00+00'), now()) AS occurred_at
            FROM outbox o WHERE o.lane = l.lane AND o.id > l.position ORDER BY o.id LIMIT 1
        ) oldest ON true
        ORDER BY l.lane"#,
        rows_max
    )
    .fetch_all(connection)
    .await
}

/// Rows of a lane that committed behind its position and are still to be published.
#[derive(Debug, Clone, PartialEq)]
pub struct LateRows {
    /// The lane.
    pub lane: i16,
    /// How many.
    pub rows: i64,
    /// The lowest id of them.
    pub oldest_id: i64,
    /// How long ago the oldest occurred, in seconds. Infinite times are passed over.
    pub oldest_age_secs: f64,
}

/// Late rows, of those lanes that have any; looks at no more than `rows_max` rows of transactions that ran at the last settle, and as many
/// of newer ones.
///
/// # Errors
/// What the database says.
pub async fn late_rows(connection: &mut PgConnection, rows_max: i64) -> Result<Vec<LateRows>, sqlx::Error> {
    // Goes over (txid). Of the transactions that are newer than the settled snapshots, those that can have drawn an id before
    // the read and not yet have had their number are the first ones: hence ORDER BY, and a limit that a backlog does not fill with luck.
    sqlx::query_as!(
        LateRows,
        r#"-- late_rows
        WITH cursors AS MATERIALIZED (
            SELECT min(pg_snapshot_xmax(seen)::text::bigint) AS late_from,
                ARRAY(
                    SELECT DISTINCT x.txid::text::bigint FROM relay_lanes, pg_snapshot_xip(seen) x (txid)
                    WHERE pg_visible_in_snapshot(x.txid, pg_current_snapshot())) AS running
            FROM relay_lanes
        )
        SELECT o.lane AS "lane!", count(*) AS "rows!", min(o.id) AS "oldest_id!",
            extract(epoch FROM now() - least(greatest(min(o.occurred_at), '0001-01-01 00:00:00+00'), now()))::float8 AS "oldest_age_secs!"
        FROM (
            (SELECT a.lane, a.id, a.txid, a.occurred_at FROM outbox a
            WHERE a.txid = ANY ((SELECT running FROM cursors)::bigint[]) AND a.txid < (SELECT late_from FROM cursors)
            LIMIT $1)
            UNION ALL
            (SELECT b.lane, b.id, b.txid, b.occurred_at FROM outbox b
            WHERE b.txid >= (SELECT late_from FROM cursors)
                AND b.txid < pg_snapshot_xmax(pg_current_snapshot())::text::bigint
            ORDER BY b.txid
            LIMIT $1)
        ) o
        JOIN relay_lanes l ON l.lane = o.lane
        WHERE o.id <= l.position AND NOT pg_visible_in_snapshot(o.txid::text::xid8, l.seen)
        GROUP BY o.lane"#,
        rows_max
    )
    .fetch_all(connection)
    .await
}

/// What a lane has published since an earlier look.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// Rows between the positions.
    pub rows: i64,
    /// Seconds between the two settles; none if there was none.
    pub secs: Option<f64>,
}

/// What each lane has published since `before`, at most `rows_max` rows of each.
///
/// # Errors
/// What the database says.
pub async fn published_since(
    connection: &mut PgConnection,
    before: &[LaneStatus],
    rows_max: i64,
) -> Result<Vec<Published>, sqlx::Error> {
    let lanes: Vec<i16> = before.iter().map(|lane| lane.lane).collect();
    let positions: Vec<i64> = before.iter().map(|lane| lane.position).collect();
    let settled: Vec<Option<DateTime<Utc>>> = before.iter().map(|lane| lane.settled_at).collect();
    // A short range of (lane, id) a lane. By the times of the settles and not of the looks: they come a few times a second only.
    sqlx::query_as!(
        Published,
        r#"-- published_since
        SELECT counted.rows AS "rows!", nullif(extract(epoch FROM l.settled_at - b.settled_at), 0)::float8 AS secs
        FROM UNNEST($1::smallint[], $2::bigint[], $3::timestamptz[]) b (lane, position, settled_at)
        JOIN relay_lanes l ON l.lane = b.lane
        CROSS JOIN LATERAL (
            SELECT count(*) AS rows
            FROM (
                SELECT FROM outbox o WHERE o.lane = l.lane AND o.id > b.position AND o.id <= l.position LIMIT $4
            ) f
        ) counted"#,
        &lanes,
        &positions,
        &settled as &[Option<DateTime<Utc>>],
        rows_max,
    )
    .fetch_all(connection)
    .await
}

/// The highest id given out; 0 for none.
///
/// # Errors
/// What the database says.
pub async fn last_id(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        r#"-- last_id
        SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END AS "last_id!" FROM outbox_id_seq"#
    )
    .fetch_one(connection)
    .await
}

/// A relay that is running.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Its name.
    pub relay: String,
    /// For how long it counts without being heard of, in seconds.
    pub lease_secs: f64,
}

/// Relays that are running.
///
/// # Errors
/// What the database says.
pub async fn members(connection: &mut PgConnection) -> Result<Vec<Member>, sqlx::Error> {
    sqlx::query_as!(
        Member,
        r#"-- members
        SELECT relay, extract(epoch FROM expires_at - now())::float8 AS "lease_secs!"
        FROM relay_members WHERE expires_at > now() ORDER BY relay"#
    )
    .fetch_all(connection)
    .await
}

/// What waits because Kafka refuses it.
#[derive(Debug, Clone, PartialEq)]
pub struct ParkedStatus {
    /// How many keys.
    pub keys: i64,
    /// How many events.
    pub events: i64,
    /// For how long the oldest has been waiting, in seconds.
    pub oldest_age_secs: Option<f64>,
}

/// What waits because Kafka refuses it.
///
/// # Errors
/// What the database says.
pub async fn parked(connection: &mut PgConnection) -> Result<ParkedStatus, sqlx::Error> {
    // Over the whole table, which is small or worth the wait.
    sqlx::query_as!(
        ParkedStatus,
        r#"-- parked_status
        SELECT count(DISTINCT (lane, key_hash)) AS "keys!", count(*) AS "events!",
            extract(epoch FROM now() - min(parked_at))::float8 AS oldest_age_secs
        FROM relay_parked"#
    )
    .fetch_one(connection)
    .await
}

/// An aggregate type that waits in a lane because its topic takes no records.
#[derive(Debug, Clone, PartialEq)]
pub struct WaitingStatus {
    /// The lane.
    pub lane: i16,
    /// `outbox.aggregate_type`.
    pub aggregate_type: String,
    /// Where its events go.
    pub topic: String,
    /// What the topic lacks.
    pub reason: String,
    /// For how long it has been waiting, in seconds.
    pub age_secs: f64,
}

/// Aggregate types that wait because their topic takes no records.
///
/// # Errors
/// What the database says.
pub async fn waiting(connection: &mut PgConnection) -> Result<Vec<WaitingStatus>, sqlx::Error> {
    sqlx::query_as!(
        WaitingStatus,
        r#"-- waiting_status
        SELECT lane, aggregate_type, topic, reason, extract(epoch FROM now() - since)::float8 AS "age_secs!"
        FROM relay_waiting ORDER BY since, aggregate_type, lane"#
    )
    .fetch_all(connection)
    .await
}
