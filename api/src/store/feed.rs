//! SQL of the feed: what of the outbox a snapshot sees that an earlier one does not.
//!
//! The outbox has one event for each version of each order, and both are written by one statement; so to read the events is to read the
//! transitions. The outbox has what a reader needs to miss no late commit, and its indexes are there for the relay already: writers
//! pay nothing for being watched.

use std::time::Duration;

use chrono::{DateTime, Utc};
use shared::db::{Connector, DatabaseConfig};
use sqlx::PgConnection;
use tokio::time::timeout;
use uuid::Uuid;

use super::{Orders, StoreError, open, timed_out};
use crate::config::Limits;
use crate::feed::cursor::{Cursor, Part};
use crate::feed::snapshot::Snapshot;

/// Rows of each of the sixteen lanes, and late ones, that one statement may bring.
pub const LANE_ROWS_MAX: i64 = 250;
/// Late rows that one statement may bring.
pub const LATE_ROWS_MAX: i64 = 2_000;

/// Where the outbox stands.
#[derive(Debug, Clone)]
pub struct Anchor {
    /// What is visible.
    pub snapshot: Snapshot,
    /// Which database this is.
    pub cluster: u64,
    /// The highest id that is visible; 0 for none.
    pub position: i64,
    /// The lowest id that a partition is there for.
    pub first_id: i64,
}

/// An event of an order.
#[derive(Debug)]
pub struct Row {
    /// `outbox.id`.
    pub id: i64,
    /// The order.
    pub order_id: i64,
    /// The order's version.
    pub version: i64,
    /// Identity of the event.
    pub event_id: Uuid,
    /// Database time of the transaction.
    pub occurred_at: DateTime<Utc>,
    /// What happened, as in `order.created`.
    pub kind: String,
    /// The order as JSON.
    pub document: String,
}

/// What one read brought.
#[derive(Debug)]
pub struct Page {
    /// Events of orders, by id.
    pub rows: Vec<Row>,
    /// The snapshot up to which this reads.
    pub next: Snapshot,
    /// The cursor after these rows.
    pub cursor: Cursor,
}

/// The feed's own connection. It opens itself; whoever meets an error drops it.
#[derive(Debug)]
pub struct FeedConnection {
    connector: Connector,
    connect_timeout: Duration,
    statement_patience: Duration,
    connection: Option<PgConnection>,
}

impl FeedConnection {
    /// One that is not open yet.
    #[must_use]
    pub fn new(database: &DatabaseConfig, limits: &Limits) -> Self {
        Self {
            connector: database.connector(),
            connect_timeout: limits.connect_timeout(),
            statement_patience: limits.statement_patience(),
            connection: None,
        }
    }

    /// Where the outbox stands.
    ///
    /// # Errors
    /// When Postgres does not say.
    pub async fn anchor(&mut self) -> Result<Anchor, StoreError> {
        self.run(feed_anchor).await
    }

    /// What is visible.
    ///
    /// # Errors
    /// When Postgres does not say.
    pub async fn snapshot(&mut self) -> Result<Snapshot, StoreError> {
        self.run(feed_snapshot).await
    }

    /// The next rows after `cursor`.
    ///
    /// # Errors
    /// When Postgres does not say.
    pub async fn read(&mut self, cursor: &Cursor) -> Result<Page, StoreError> {
        self.run(async |connection| read_feed(connection, cursor).await).await
    }

    /// Whether a connection is open.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.connection.is_some()
    }

    /// Closes the connection; the next statement opens another one.
    pub async fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            let _ = timeout(self.connect_timeout, sqlx::Connection::close(connection)).await;
        }
    }

    async fn run<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        // Taken out meanwhile: after a time-out or an error it is not used again.
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => open(&self.connector, self.connect_timeout).await?,
        };
        let done = timeout(self.statement_patience, work(&mut connection)).await;
        let done = done.unwrap_or_else(|_| Err(timed_out("no answer to a statement")))?;
        self.connection = Some(connection);
        Ok(done)
    }
}

impl Orders {
    /// Where the outbox stands.
    ///
    /// # Errors
    /// When Postgres does not say.
    pub async fn feed_anchor(&self) -> Result<Anchor, StoreError> {
        self.on_connection(feed_anchor).await
    }

    /// The next rows after `cursor`.
    ///
    /// # Errors
    /// When Postgres does not say.
    pub async fn read_feed(&self, cursor: &Cursor) -> Result<Page, StoreError> {
        self.on_connection(async |connection| read_feed(connection, cursor).await).await
    }
}

fn decode(text: &str) -> Result<Snapshot, sqlx::Error> {
    Snapshot::parse(text).ok_or_else(|| sqlx::Error::Decode(format!("'{text}' is not a pg_snapshot").into()))
}

async fn feed_snapshot(connection: &mut PgConnection) -> Result<Snapshot, sqlx::Error> {
    let text = sqlx::query_scalar!(
        r#"-- feed_snapshot
        SELECT pg_current_snapshot()::text AS "snapshot!""#
    )
    .fetch_one(connection)
    .await?;
    decode(&text)
}

async fn feed_anchor(connection: &mut PgConnection) -> Result<Anchor, sqlx::Error> {
    // The highest id of each lane is one step in (lane, id). Transaction ids are those of a server, outbox ids those of a database.
    let row = sqlx::query!(
        r#"-- feed_anchor
        SELECT pg_current_snapshot()::text AS "snapshot!",
            (SELECT outrider_cluster() # d.oid::bigint FROM pg_database d WHERE d.datname = current_database()) AS "cluster!",
            (SELECT coalesce(max(newest.id), 0) FROM generate_series(0, 15) lanes (lane) CROSS JOIN LATERAL (
                SELECT o.id FROM outbox o WHERE o.lane = lanes.lane::smallint ORDER BY o.id DESC LIMIT 1) newest) AS "position!",
            (SELECT coalesce(min(p.first_id), 1) FROM outbox_partitions p) AS "first_id!""#
    )
    .fetch_one(connection)
    .await?;
    Ok(Anchor {
        snapshot: decode(&row.snapshot)?,
        cluster: row.cluster.cast_unsigned(),
        position: row.position,
        first_id: row.first_id,
    })
}

async fn read_feed(connection: &mut PgConnection, cursor: &Cursor) -> Result<Page, sqlx::Error> {
    let through = cursor.part.as_ref();
    let after = through.map_or(0, |part| part.after);
    let (through_xmax, through_running) =
        through.map_or((i64::MAX, &[][..]), |part| (part.next.xmax, part.next.running.as_slice()));
    // Part 0 is the statement's own snapshot, in READ COMMITTED the same for all parts. Part 1 are rows at or below the position: few, found
    // over (txid, id). Of the transactions that were running, only those that have ended are looked for, or a bulk of rows that is not
    // committed yet would be walked at each read. Part 2 are rows above it, one short range of (lane, id) a lane. Whether a row is
    // one of the wanted is decided by its transaction alone, in both. No lock is taken.
    let rows = sqlx::query!(
        r#"-- read_feed
        SELECT 0 AS "part!", NULL::bigint AS id, NULL::smallint AS lane, NULL::uuid AS event_id, NULL::bigint AS version,
            NULL::timestamptz AS occurred_at, NULL::text AS aggregate_id, NULL::text AS kind, pg_current_snapshot()::text AS content
        UNION ALL
        (SELECT 1, late.id, late.lane, late.event_id, late.aggregate_version,
            CASE WHEN late.occurred_at >= '0001-01-01 00:00:00+00' AND late.occurred_at < '10000-01-01 00:00:00+00' THEN late.occurred_at END,
            late.aggregate_id, late.type,
            CASE WHEN late.aggregate_type = 'order' THEN late.payload::text END
        FROM (
            SELECT * FROM outbox a WHERE a.txid >= $1 AND a.id <= $3
            UNION ALL
            SELECT * FROM outbox b WHERE b.txid = ANY (ARRAY(
                SELECT x.txid FROM UNNEST($2::bigint[]) x (txid) WHERE pg_visible_in_snapshot(x.txid::text::xid8, pg_current_snapshot())
            )) AND b.id <= $3
        ) late
        WHERE $4::bigint < $3::bigint AND late.id + 0 > $4 AND late.txid < $5 AND late.txid <> ALL ($6::bigint[])
        ORDER BY late.id LIMIT $7)
        UNION ALL
        SELECT 2, fresh.id, fresh.lane, fresh.event_id, fresh.aggregate_version,
            CASE WHEN fresh.occurred_at >= '0001-01-01 00:00:00+00' AND fresh.occurred_at < '10000-01-01 00:00:00+00' THEN fresh.occurred_at END,
            fresh.aggregate_id, fresh.type,
            CASE WHEN fresh.aggregate_type = 'order' THEN fresh.payload::text END
        FROM generate_series(0, 15) lanes (lane) CROSS JOIN LATERAL (
            SELECT * FROM outbox o
            WHERE o.lane = lanes.lane::smallint AND o.id > greatest($3::bigint, $4::bigint)
                AND (o.txid >= $1 OR o.txid = ANY ($2::bigint[])) AND o.txid < $5 AND o.txid <> ALL ($6::bigint[])
            ORDER BY o.id LIMIT $8
        ) fresh"#,
        cursor.seen.xmax,
        &cursor.seen.running,
        cursor.position,
        after,
        through_xmax,
        through_running,
        LATE_ROWS_MAX,
        LANE_ROWS_MAX,
    )
    .fetch_all(connection)
    .await?;

    let mut next = through.map(|part| part.next.clone());
    let mut tally = Tally::default();
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        if row.part == 0 {
            if next.is_none() {
                next = Some(decode(row.content.as_deref().unwrap_or_default())?);
            }
            continue;
        }
        let Some(id) = row.id else { continue };
        tally.count(row.part, row.lane, id);
        // Others may write events of type "order" by hand; what is none of ours is passed over, and so is a time that chrono does not
        // have, on which decoding would panic.
        let (Some(order_id), Some(document)) = (row.aggregate_id.and_then(|id| id.parse().ok()), row.content) else {
            continue;
        };
        if let (Some(version), Some(event_id), Some(occurred_at), Some(kind)) =
            (row.version, row.event_id, row.occurred_at, row.kind)
        {
            found.push(Row { id, order_id, version, event_id, occurred_at, kind, document });
        }
    }
    let next = next.ok_or(sqlx::Error::RowNotFound)?;
    found.sort_unstable_by_key(|row| row.id);
    let mut cursor = Cursor { part: None, ..cursor.clone() };
    if let Some(cut) = tally.cut() {
        found.retain(|row| row.id <= cut);
        cursor.part = Some(Part { next: next.clone(), after: cut });
    } else {
        cursor.position = cursor.position.max(tally.highest).max(after);
        cursor.seen = next.clone();
    }
    Ok(Page { rows: found, next, cursor })
}

/// How much of each kind of row there was: where one was cut off, there may be more behind it, and what is above is left for the next read.
#[derive(Debug, Default)]
struct Tally {
    late: i64,
    late_last: i64,
    lanes: [(i64, i64); 16],
    highest: i64,
}

impl Tally {
    fn count(&mut self, part: i32, lane: Option<i16>, id: i64) {
        self.highest = self.highest.max(id);
        if part == 1 {
            self.late += 1;
            self.late_last = self.late_last.max(id);
        } else if let Some(lane) = lane.and_then(|lane| self.lanes.get_mut(usize::try_from(lane).ok()?)) {
            lane.0 += 1;
            lane.1 = lane.1.max(id);
        }
    }

    /// The id up to which there is nothing that was not brought; none: there is nothing at all.
    fn cut(&self) -> Option<i64> {
        let late = (self.late >= LATE_ROWS_MAX).then_some(self.late_last);
        let full = self.lanes.iter().filter(|lane| lane.0 >= LANE_ROWS_MAX).map(|lane| lane.1);
        full.chain(late).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_goes_as_far_as_its_fullest_lane() {
        let mut tally = Tally::default();
        for id in 1..LANE_ROWS_MAX {
            tally.count(2, Some(3), id);
            tally.count(2, Some(4), 10_000 + id);
        }
        assert_eq!(tally.cut(), None);
        tally.count(2, Some(4), 30_000);
        tally.count(2, Some(3), 20_000);
        assert_eq!((tally.cut(), tally.highest), (Some(20_000), 30_000));
        for id in 1..=LATE_ROWS_MAX {
            tally.count(1, Some(5), id);
        }
        assert_eq!(tally.cut(), Some(LATE_ROWS_MAX));
    }
}
