//! All SQL of the processor itself: positions and inbox here, blocked keys in [`blocked`], what waits in [`letters`], what operators
//! ask for in [`requests`]. That of the order handler is in [`orders`].

use std::collections::{HashMap, HashSet};

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::record::Partition;

pub(crate) mod blocked;
pub(crate) mod letters;
pub mod orders;
pub(crate) mod requests;

/// Where `partitions` go on, for those that have a position.
pub(crate) async fn positions(
    pool: &PgPool,
    group: &str,
    partitions: &[Partition],
) -> Result<HashMap<Partition, i64>, sqlx::Error> {
    let topics: Vec<String> = partitions.iter().map(|partition| partition.topic.to_string()).collect();
    let numbers: Vec<i32> = partitions.iter().map(|partition| partition.number).collect();
    // One primary key look-up a partition.
    let rows = sqlx::query!(
        r#"-- positions
        SELECT wanted.place AS "place!", found.next_offset
        FROM UNNEST($2::text[], $3::integer[]) WITH ORDINALITY AS wanted (topic, partition, place)
        JOIN consumer_offsets AS found
            ON found.group_id = $1 AND found.topic = wanted.topic AND found.partition = wanted.partition"#,
        group,
        &topics,
        &numbers,
    )
    .fetch_all(pool)
    .await?;
    let found = rows.into_iter().filter_map(|row| {
        let place = usize::try_from(row.place).ok()?.checked_sub(1)?;
        Some((partitions.get(place)?.clone(), row.next_offset))
    });
    Ok(found.collect())
}

/// Moves the position of a partition from `old` (none: it has no row yet) to `new`. Returns whether it was at `old`.
///
/// This alone fences a zombie, a processor that was frozen or cut off while its partition went to another one. Say both hold
/// the same batch: both try this first, in their transactions. One gets the row lock; the other waits for it. When the first one
/// commits, the other's WHERE is evaluated anew on the row's new version (READ COMMITTED), hits nothing, and it rolls back
/// before it has had any effect. When the first one rolls back, the other goes on. An INSERT waits in the same way for the
/// other's row and then does nothing.
pub(crate) async fn advance(
    connection: &mut PgConnection,
    group: &str,
    partition: &Partition,
    old: Option<i64>,
    new: i64,
) -> Result<bool, sqlx::Error> {
    let hit = if let Some(old) = old {
        // Locks its one row, found by the primary key, until the transaction ends.
        sqlx::query!(
            r#"-- advance
            UPDATE consumer_offsets SET next_offset = $5, updated_at = now()
            WHERE group_id = $1 AND topic = $2 AND partition = $3 AND next_offset = $4"#,
            group,
            &partition.topic,
            partition.number,
            old,
            new,
        )
        .execute(connection)
        .await?
    } else {
        sqlx::query!(
            r#"-- advance_first
            INSERT INTO consumer_offsets (group_id, topic, partition, next_offset) VALUES ($1, $2, $3, $4)
            ON CONFLICT DO NOTHING"#,
            group,
            &partition.topic,
            partition.number,
            new,
        )
        .execute(connection)
        .await?
    };
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

/// Takes event ids into the inbox. Returns those that were not in it, each once, however often it is in `event_ids`.
pub(crate) async fn take_in(
    connection: &mut PgConnection,
    group: &str,
    event_ids: &[Uuid],
) -> Result<HashSet<Uuid>, sqlx::Error> {
    // Waits for a transaction that is taking the same id in; the ids are sorted, so two such cannot wait for each other.
    let fresh = sqlx::query_scalar!(
        r#"-- take_in
        INSERT INTO inbox (group_id, event_id) SELECT $1, event_id FROM UNNEST($2::uuid[]) AS new (event_id)
        ON CONFLICT DO NOTHING RETURNING event_id"#,
        group,
        event_ids,
    )
    .fetch_all(connection)
    .await?;
    Ok(fresh.into_iter().collect())
}

/// Takes events out of the inbox that this transaction has taken in and could not apply.
pub(crate) async fn take_out(
    connection: &mut PgConnection,
    group: &str,
    event_ids: &[Uuid],
) -> Result<(), sqlx::Error> {
    // By the primary key. Nobody else has seen these rows.
    sqlx::query!(
        r#"-- take_out
        DELETE FROM inbox WHERE group_id = $1 AND event_id = ANY($2)"#,
        group,
        event_ids,
    )
    .execute(connection)
    .await?;
    Ok(())
}
