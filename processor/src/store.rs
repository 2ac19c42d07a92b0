//! All SQL of the processor itself: positions, inbox, dead letters. That of the order handler is in [`orders`].

use std::collections::{HashMap, HashSet};

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::dead_letter::DeadLetter;
use crate::record::{Partition, Record};

pub mod orders;
pub mod status;

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

/// Writes dead letters.
pub(crate) async fn bury(
    connection: &mut PgConnection,
    group: &str,
    partition: &Partition,
    letters: &[DeadLetter<'_>],
) -> Result<(), sqlx::Error> {
    let records = || letters.iter().map(|letter| letter.record);
    let offsets: Vec<i64> = records().map(|record| record.offset).collect();
    let keys: Vec<Option<&[u8]>> = records().map(|record| record.key.as_deref()).collect();
    let payloads: Vec<Option<&[u8]>> = records().map(|record: &Record| record.payload.as_deref()).collect();
    let event_ids: Vec<Option<Uuid>> = letters.iter().map(|letter| letter.event_id).collect();
    let event_types: Vec<Option<&str>> = letters.iter().map(|letter| letter.event_type.as_deref()).collect();
    let headers: Vec<&serde_json::Value> = letters.iter().map(|letter| &letter.headers).collect();
    let reasons: Vec<&str> = letters.iter().map(|letter| letter.reason.as_str()).collect();
    let fingerprints: Vec<&str> = letters.iter().map(|letter| letter.fingerprint.as_str()).collect();
    // The conflict is a record that was given up before its partition was set back.
    sqlx::query!(
        r#"-- bury
        INSERT INTO dead_letters
            (group_id, topic, partition, record_offset, record_key, event_id, event_type, headers, payload, reason,
                fingerprint)
        SELECT $1, $2, $3, record_offset, record_key, event_id, event_type, headers, payload, reason, fingerprint
        FROM UNNEST($4::bigint[], $5::bytea[], $6::uuid[], $7::text[], $8::jsonb[], $9::bytea[], $10::text[], $11::text[])
            AS new (record_offset, record_key, event_id, event_type, headers, payload, reason, fingerprint)
        ON CONFLICT ON CONSTRAINT dead_letters_record_key DO NOTHING"#,
        group,
        &partition.topic,
        partition.number,
        &offsets,
        &keys as _,
        &event_ids as _,
        &event_types as _,
        &headers as _,
        &payloads as _,
        &reasons as _,
        &fingerprints as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}
