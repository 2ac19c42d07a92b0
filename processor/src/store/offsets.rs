//! SQL of `consumer_offsets`: where each partition goes on, and by which record that is known to be the same partition as before.

use std::collections::HashMap;

use sqlx::PgConnection;

use crate::anchor::Anchor;
use crate::gaps::Gap;
use crate::offsets::{Lost, Operator};
use crate::record::{Partition, Record};

/// A partition whose records are applied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share<'a> {
    pub(crate) partition: &'a Partition,
    /// Where it stands; none: it has no row yet.
    pub(crate) position: Option<i64>,
}

/// A position, and the record before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Offset of the next record to apply.
    pub(crate) next_offset: i64,
    /// The last record that was applied; none if the position was set by hand.
    pub(crate) anchor: Option<Anchor>,
}

/// Where `partitions` go on, for those that have a position.
pub(crate) async fn positions(
    connection: &mut PgConnection,
    group: &str,
    partitions: &[Partition],
) -> Result<HashMap<Partition, i64>, sqlx::Error> {
    let stored = stored(connection, group, partitions).await?;
    Ok(stored.into_iter().map(|(partition, stored)| (partition, stored.next_offset)).collect())
}

/// Like [`positions`], with what is known of the records before them.
pub(crate) async fn stored(
    connection: &mut PgConnection,
    group: &str,
    partitions: &[Partition],
) -> Result<HashMap<Partition, Stored>, sqlx::Error> {
    let topics: Vec<String> = partitions.iter().map(|partition| partition.topic.to_string()).collect();
    let numbers: Vec<i32> = partitions.iter().map(|partition| partition.number).collect();
    // One primary key look-up a partition.
    let rows = sqlx::query!(
        r#"-- stored
        SELECT wanted.place AS "place!", found.next_offset, found.anchor_offset, found.anchor_hash, found.anchor_time_ms,
            found.empty_from
        FROM UNNEST($2::text[], $3::integer[]) WITH ORDINALITY AS wanted (topic, partition, place)
        JOIN consumer_offsets AS found
            ON found.group_id = $1 AND found.topic = wanted.topic AND found.partition = wanted.partition"#,
        group,
        &topics,
        &numbers,
    )
    .fetch_all(connection)
    .await?;
    let found = rows.into_iter().filter_map(|row| {
        let place = usize::try_from(row.place).ok()?.checked_sub(1)?;
        let anchor = row.anchor_offset.zip(row.anchor_hash);
        let anchor = anchor.map(|(offset, hash)| Anchor { offset, hash, time_ms: row.anchor_time_ms });
        // An anchor that is neither right before the position nor before the empty offsets belongs to another position: somebody has set
        // this one by hand. A processor of the release before this one knows nothing of empty offsets, and leaves `empty_from` as it is.
        let is_before = |anchor: &Anchor| {
            let follows = anchor.offset + 1;
            follows == row.next_offset || (Some(follows) == row.empty_from && follows <= row.next_offset)
        };
        let anchor = anchor.filter(is_before);
        Some((partitions.get(place)?.clone(), Stored { next_offset: row.next_offset, anchor }))
    });
    Ok(found.collect())
}

/// Moves the positions of partitions of a topic, each to after the last of its records that is applied. Returns the partitions whose position was
/// not where their share says: nothing of them has changed.
///
/// This alone fences a zombie, a processor that was frozen or cut off while its partition went to another one. Say both hold
/// the same batch: both try this first, in their transactions. One gets the row lock; the other waits for it. When the first one
/// commits, the other's WHERE is evaluated anew on the row's new version (READ COMMITTED), hits nothing, and it rolls back
/// before it has had any effect. When the first one rolls back, the other goes on. An INSERT waits in the same way for the
/// other's row and then does nothing.
pub(crate) async fn advance(
    connection: &mut PgConnection,
    group: &str,
    shares: &[Share<'_>],
    lasts: impl Iterator<Item = &Record>,
) -> Result<Vec<i32>, sqlx::Error> {
    let topic = shares.first().map_or("", |share| &*share.partition.topic);
    let numbers: Vec<i32> = shares.iter().map(|share| share.partition.number).collect();
    let olds: Vec<Option<i64>> = shares.iter().map(|share| share.position).collect();
    let anchors: Vec<Anchor> = lasts.map(Anchor::of).collect();
    let offsets: Vec<i64> = anchors.iter().map(|anchor| anchor.offset).collect();
    let hashes: Vec<i64> = anchors.iter().map(|anchor| anchor.hash).collect();
    let times: Vec<Option<i64>> = anchors.iter().map(|anchor| anchor.time_ms).collect();
    // Locks their rows, each found by the primary key, in the order of the partitions, until the transaction ends.
    sqlx::query_scalar!(
        r#"-- advance
        SELECT consumer_advance($1, $2, $3, $4, $5, $6, $7) AS "missed!""#,
        group,
        topic,
        &numbers,
        &olds as _,
        &offsets,
        &hashes,
        &times as _,
    )
    .fetch_one(connection)
    .await
}

/// Moves the position of a partition past offsets that hold no record. Returns whether it was where they begin.
///
/// The record before them stays the anchor. It fences, and is fenced, like [`advance`].
pub(crate) async fn pass(
    connection: &mut PgConnection,
    group: &str,
    partition: &Partition,
    gap: Gap,
) -> Result<bool, sqlx::Error> {
    // One row, found by the primary key.
    let hit = sqlx::query!(
        r#"-- pass
        UPDATE consumer_offsets
        SET next_offset = $5, updated_at = now(),
            empty_from = CASE WHEN anchor_offset + 1 = empty_from THEN empty_from ELSE next_offset END
        WHERE group_id = $1 AND topic = $2 AND partition = $3 AND next_offset = $4"#,
        group,
        &partition.topic,
        partition.number,
        gap.from,
        gap.end,
    )
    .execute(connection)
    .await?;
    Ok(hit.rows_affected() == 1)
}

/// Locks the position of a partition until the transaction ends. Returns whether it was at `position`.
///
/// It fences like [`advance`]: of two processors that hold the partition, one waits here for the other's transaction, which is a batch or
/// another work on keys. After a batch the position has moved, and this hits nothing; after work on keys, whatever is
/// read from now on is what that has left.
pub(crate) async fn hold(
    connection: &mut PgConnection,
    group: &str,
    partition: &Partition,
    position: i64,
) -> Result<bool, sqlx::Error> {
    // Locks its one row, found by the primary key.
    let held = sqlx::query_scalar!(
        r#"-- hold
        SELECT next_offset FROM consumer_offsets
        WHERE group_id = $1 AND topic = $2 AND partition = $3 AND next_offset = $4 FOR UPDATE"#,
        group,
        &partition.topic,
        partition.number,
        position,
    )
    .fetch_optional(connection)
    .await?;
    Ok(held.is_some())
}

/// Sets the position of a partition from `old` (none: it has no row) to `new`, whatever record is before that. Returns whether it was
/// at `old`.
pub(crate) async fn set(
    connection: &mut PgConnection,
    group: &str,
    partition: &Partition,
    old: Option<i64>,
    new: i64,
) -> Result<bool, sqlx::Error> {
    // A processor that works on the partition is fenced by it, and reads the position anew.
    let hit = sqlx::query!(
        r#"-- set
        INSERT INTO consumer_offsets AS o (group_id, topic, partition, next_offset) VALUES ($1, $2, $3, $5)
        ON CONFLICT (group_id, topic, partition) DO UPDATE
            SET next_offset = $5, anchor_offset = NULL, anchor_hash = NULL, anchor_time_ms = NULL, empty_from = NULL,
                updated_at = now()
            WHERE o.next_offset = $4"#,
        group,
        &partition.topic,
        partition.number,
        old,
        new,
    )
    .execute(connection)
    .await?;
    Ok(hit.rows_affected() == 1)
}

/// Writes down that a lost position was accepted.
pub(crate) async fn log(connection: &mut PgConnection, lost: &Lost, operator: Operator<'_>) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"-- log_accepted
        INSERT INTO offset_log (group_id, topic, partition, old_offset, new_offset, cause, os_user, why)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"#,
        &lost.group,
        &lost.partition.topic,
        lost.partition.number,
        lost.in_postgres.then_some(lost.offset),
        lost.view.low,
        lost.to_string(),
        operator.os_user,
        operator.why,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A row of the table, for people to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) group: String,
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) next_offset: i64,
}

/// All positions, or those of a group or a topic, in the order of the primary key.
pub(crate) async fn rows(
    connection: &mut PgConnection,
    group: Option<&str>,
    topic: Option<&str>,
) -> Result<Vec<Row>, sqlx::Error> {
    sqlx::query_as!(
        Row,
        r#"-- rows
        SELECT group_id AS "group", topic, partition, next_offset FROM consumer_offsets
        WHERE ($1::text IS NULL OR group_id = $1) AND ($2::text IS NULL OR topic = $2)
        ORDER BY group_id, topic, partition"#,
        group,
        topic,
    )
    .fetch_all(connection)
    .await
}
