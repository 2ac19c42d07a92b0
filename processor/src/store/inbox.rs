//! SQL of the inbox: which events a group has taken in. A partition of it is for the events of one day, so that old ones can be
//! dropped whole and what is asked of it always goes to the one partition of the event's day.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use shared::duration::Retention;
use shared::event::Envelope;
use sqlx::PgConnection;
use sqlx::postgres::types::PgInterval;
use sqlx::types::chrono::NaiveDate;
use uuid::Uuid;

use crate::record::Partition;

/// What the inbox knows an event by. In the order of the ids: transactions that take several in do it in the same order, and so
/// cannot lock each other out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct InboxKey {
    /// Identity of the event.
    pub(crate) event_id: Uuid,
    /// The day it is filed under, the same for every repeat.
    pub(crate) occurred_on: NaiveDate,
}

impl InboxKey {
    /// That of the event of `envelope`. One that tells no day is filed under one long past.
    pub(crate) fn of(envelope: &Envelope) -> Self {
        let occurred_on = envelope.occurred_on.or_else(|| NaiveDate::from_ymd_opt(1, 1, 1)).unwrap_or_default();
        Self { event_id: envelope.event_id, occurred_on }
    }
}

/// An event to be taken in, and the record that it came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Arrival {
    /// What it is known by.
    pub(crate) key: InboxKey,
    /// Which of the partitions the record is of.
    pub(crate) part: usize,
    /// Offset of the record.
    pub(crate) offset: i64,
    /// Kafka's timestamp of the record, milliseconds since 1970; none if it does not come from Kafka just now.
    pub(crate) time_ms: Option<i64>,
}

/// Takes events into the inbox, with the place of their records if they come from Kafka just now: one that has waited may be of another
/// partition, if some were added. Returns the ids of those that were not in it, each once, however often it is in `arrivals`. The
/// partitions are of one topic.
pub(crate) async fn take_in(
    connection: &mut PgConnection,
    group: &str,
    partitions: &[&Partition],
    arrivals: &[Arrival],
) -> Result<HashSet<Uuid>, sqlx::Error> {
    let ids: Vec<Uuid> = arrivals.iter().map(|arrival| arrival.key.event_id).collect();
    let days: Vec<NaiveDate> = arrivals.iter().map(|arrival| arrival.key.occurred_on).collect();
    let offsets: Vec<i64> = arrivals.iter().map(|arrival| arrival.offset).collect();
    let times: Vec<Option<i64>> = arrivals.iter().map(|arrival| arrival.time_ms).collect();
    let number = |arrival: &Arrival| partitions.get(arrival.part).map(|partition| partition.number);
    let numbers: Vec<Option<i32>> = arrivals.iter().map(number).collect();
    let topic = partitions.first().map_or("", |partition| &*partition.topic);
    // Each row goes to the partition of its day, and only that one's primary key is looked at for a conflict. Waits for a
    // transaction that is taking the same id in; the keys are sorted, so two such cannot wait for each other.
    let fresh = sqlx::query_scalar!(
        r#"-- take_in
        INSERT INTO inbox (group_id, event_id, occurred_on, topic, partition, record_offset, record_time)
        SELECT $1, event_id, occurred_on, CASE WHEN time_ms IS NOT NULL THEN $6::text END,
            CASE WHEN time_ms IS NOT NULL THEN partition END, CASE WHEN time_ms IS NOT NULL THEN record_offset END,
            to_timestamp(time_ms / 1000.0)
        FROM UNNEST($2::uuid[], $3::date[], $4::bigint[], $5::bigint[], $7::integer[])
            AS new (event_id, occurred_on, record_offset, time_ms, partition)
        ON CONFLICT DO NOTHING RETURNING event_id"#,
        group,
        &ids,
        &days,
        &offsets,
        &times as _,
        topic,
        &numbers as _,
    )
    .fetch_all(&mut *connection)
    .await?;
    let fresh: HashSet<Uuid> = fresh.into_iter().collect();
    let repeated: Vec<InboxKey> =
        arrivals.iter().map(|arrival| arrival.key).filter(|key| !fresh.contains(&key.event_id)).collect();
    if !repeated.is_empty() {
        renew(connection, group, &repeated).await?;
    }
    Ok(fresh)
}

/// Takes events out of the inbox that this transaction has taken in and could not apply.
pub(crate) async fn take_out(connection: &mut PgConnection, group: &str, keys: &[InboxKey]) -> Result<(), sqlx::Error> {
    // Each by its primary key. Nobody else has seen these rows.
    let ids: Vec<Uuid> = keys.iter().map(|key| key.event_id).collect();
    let days: Vec<NaiveDate> = keys.iter().map(|key| key.occurred_on).collect();
    sqlx::query!(
        r#"-- take_out
        SELECT FROM inbox_take_out($1, $2, $3)"#,
        group,
        &ids,
        &days,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes of rows that are older than an hour that their events were met again: the record of the repeat may stay in Kafka for as
/// long as any, and be read again then.
///
/// What is younger need not be touched, which spares most redeliveries all of the writing. What is not there any more was deleted by
/// age between our INSERT, which still met it, and now: it is put back. The upsert locks the row, and so waits for a deletion
/// that is under way, or keeps it from coming.
async fn renew(connection: &mut PgConnection, group: &str, repeated: &[InboxKey]) -> Result<(), sqlx::Error> {
    let mut stale: HashSet<InboxKey> = repeated.iter().copied().collect();
    for (day, ids) in by_day(repeated) {
        // The day as a parameter of its own, and not from a join, prunes all other partitions; then one look-up of the primary key
        // an id, whatever the planner thinks: `event_id = ANY ($3)` became a walk over the whole index of the day for every batch,
        // by a plan from when it was small.
        let young = sqlx::query_scalar!(
            r#"-- renew_not
            SELECT given.event_id AS "event_id!" FROM UNNEST($3::uuid[]) AS given (event_id)
            CROSS JOIN LATERAL (
                SELECT i.received_at FROM inbox i
                WHERE i.group_id = $1 AND i.occurred_on = $2 AND i.event_id = given.event_id LIMIT 1
            ) AS found
            WHERE found.received_at > now() - interval '1 hour'"#,
            group,
            day,
            &ids,
        )
        .fetch_all(&mut *connection)
        .await?;
        for event_id in young {
            stale.remove(&InboxKey { event_id, occurred_on: day });
        }
    }
    if stale.is_empty() {
        return Ok(());
    }
    let mut stale: Vec<InboxKey> = stale.into_iter().collect();
    stale.sort_unstable();
    let ids: Vec<Uuid> = stale.iter().map(|key| key.event_id).collect();
    let days: Vec<NaiveDate> = stale.iter().map(|key| key.occurred_on).collect();
    sqlx::query!(
        r#"-- renew
        INSERT INTO inbox (group_id, event_id, occurred_on)
        SELECT $1, event_id, occurred_on FROM UNNEST($2::uuid[], $3::date[]) AS old (event_id, occurred_on)
        ON CONFLICT (group_id, event_id, occurred_on) DO UPDATE SET received_at = excluded.received_at"#,
        group,
        &ids,
        &days,
    )
    .execute(connection)
    .await?;
    Ok(())
}

fn by_day(keys: &[InboxKey]) -> BTreeMap<NaiveDate, Vec<Uuid>> {
    let mut days: BTreeMap<NaiveDate, Vec<Uuid>> = BTreeMap::new();
    for key in keys {
        days.entry(key.occurred_on).or_default().push(key.event_id);
    }
    days
}

/// Says for how long this group wants to know repeats.
pub(crate) async fn register_group(
    connection: &mut PgConnection,
    group: &str,
    retention: Retention,
) -> Result<(), sqlx::Error> {
    let retention = match retention {
        Retention::Forever => None,
        Retention::For(length) => Some(interval(length)),
    };
    // Locks its own row only.
    sqlx::query!(
        r#"-- register_group
        INSERT INTO inbox_groups (group_id, retention) VALUES ($1, $2)
        ON CONFLICT (group_id) DO UPDATE SET retention = excluded.retention, seen_at = excluded.seen_at"#,
        group,
        retention as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

fn interval(length: Duration) -> PgInterval {
    let microseconds = i64::try_from(length.as_micros()).unwrap_or(i64::MAX);
    PgInterval { months: 0, days: 0, microseconds }
}

/// Makes one of the partitions that are missing. Returns its name, or none when nothing is to be, or can be, made now.
pub(crate) async fn make_partition(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    // In its own transaction, this statement, as the next two: the locks end with it. See the functions for which they are.
    sqlx::query_scalar!(
        r#"-- make_partition
        SELECT inbox_make_partition()"#
    )
    .fetch_one(connection)
    .await
}

/// What came of an old partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// The partition.
    pub(crate) name: String,
    /// `dropped`, `emptied` or `busy`.
    pub(crate) outcome: String,
}

/// Does away with an old partition. None when there is none, or another processor is at it.
pub(crate) async fn drop_partition(connection: &mut PgConnection) -> Result<Option<Attempt>, sqlx::Error> {
    sqlx::query_as!(
        Attempt,
        r#"-- drop_partition
        SELECT name AS "name!", outcome AS "outcome!" FROM inbox_drop_partition()"#
    )
    .fetch_optional(connection)
    .await
}

/// Deletes old rows of events that have no partition of their day, `rows_max` at most of each kind. Returns how many.
pub(crate) async fn clean(connection: &mut PgConnection, rows_max: i32) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        r#"-- clean
        SELECT inbox_clean($1) AS "deleted!""#,
        rows_max,
    )
    .fetch_one(connection)
    .await
}

/// How many partitions for one day there are.
pub(crate) async fn partitions(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        r#"-- partitions
        SELECT count(*) AS "count!" FROM inbox_partitions"#
    )
    .fetch_one(connection)
    .await
}
