//! SQL of `dead_letters`: records that wait.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::anchor::Anchor;
use crate::dead_letter::{DeadLetter, Reason, headers_of};
use crate::record::{Partition, Record};

/// What is known of a record that waits, beside the record.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// `dead_letters.id`.
    pub(crate) id: i64,
    /// Whether it has a reason: it was the first one to fail, and is not just behind that.
    pub(crate) has_failed: bool,
}

/// How much may be read at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page {
    /// Rows, of all keys together.
    pub(crate) rows_max: usize,
    /// Bytes of payloads; one more record may be above.
    pub(crate) bytes_max: usize,
}

/// Writes records down that wait.
pub(crate) async fn bury(
    connection: &mut PgConnection,
    group: &str,
    partition: &Partition,
    letters: &[DeadLetter<'_>],
) -> Result<(), sqlx::Error> {
    let records = || letters.iter().map(|letter| letter.record);
    let offsets: Vec<i64> = records().map(|record| record.offset).collect();
    let hashes: Vec<i64> = records().map(|record| Anchor::of(record).hash).collect();
    let keys: Vec<Option<&[u8]>> = records().map(Record::ordering_key).collect();
    let unordered_keys: Vec<Option<&[u8]>> =
        records().map(|record| record.key.as_deref().filter(|_| record.ordering_key().is_none())).collect();
    let payloads: Vec<Option<&[u8]>> = records().map(|record: &Record| record.payload.as_deref()).collect();
    let event_ids: Vec<Option<Uuid>> = letters.iter().map(|letter| letter.event_id).collect();
    let event_types: Vec<Option<&str>> = letters.iter().map(|letter| letter.event_type.as_deref()).collect();
    let versions: Vec<Option<i64>> = letters.iter().map(|letter| letter.aggregate_version).collect();
    let headers: Vec<&serde_json::Value> = letters.iter().map(|letter| &letter.headers).collect();
    let reasons = || letters.iter().map(|letter| letter.reason.as_ref());
    let texts: Vec<Option<&str>> = reasons().map(|reason| reason.map(|reason| reason.text.as_str())).collect();
    let fingerprints: Vec<Option<&str>> =
        reasons().map(|reason| reason.map(|reason| reason.fingerprint.as_str())).collect();
    // The conflict is a record that waits already, of a partition that was set back. Its hash tells it from another record at the same
    // offset, which there is when the topic was made anew: that one must wait too.
    sqlx::query!(
        r#"-- bury
        INSERT INTO dead_letters
            (group_id, topic, partition, record_offset, record_key, event_id, event_type, aggregate_version, headers,
                payload, reason, fingerprint, record_hash, unordered_key)
        SELECT $1, $2, $3, record_offset, record_key, event_id, event_type, aggregate_version, headers, payload, reason,
            fingerprint, record_hash, unordered_key
        FROM UNNEST($4::bigint[], $5::bytea[], $6::uuid[], $7::text[], $8::bigint[], $9::jsonb[], $10::bytea[],
            $11::text[], $12::text[], $13::bigint[], $14::bytea[])
            AS new (record_offset, record_key, event_id, event_type, aggregate_version, headers, payload, reason,
                fingerprint, record_hash, unordered_key)
        ON CONFLICT ON CONSTRAINT dead_letters_record_key DO NOTHING"#,
        group,
        &partition.topic,
        partition.number,
        &offsets,
        &keys as _,
        &event_ids as _,
        &event_types as _,
        &versions as _,
        &headers as _,
        &payloads as _,
        &texts as _,
        &fingerprints as _,
        &hashes,
        &unordered_keys as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The first records of each of `keys`, in the order in which they are to be applied: an elder version that came late goes first.
pub(crate) async fn of_keys(
    connection: &mut PgConnection,
    group: &str,
    topic: &str,
    keys: &[&[u8]],
    page: Page,
) -> Result<Vec<(Waiting, Record)>, sqlx::Error> {
    // Each key gets the same share, so that no long one keeps the others waiting.
    let rows = i64::try_from((page.rows_max / keys.len().max(1)).max(1)).unwrap_or(i64::MAX);
    let bytes = i64::try_from(page.bytes_max).unwrap_or(i64::MAX);
    // Walks dead_letters_key_idx once for each key, in its order, and stops at the limit. The size of a payload is known without reading
    // it. No lock: the keys' rows in blocked_keys are locked by this transaction.
    let rows = sqlx::query!(
        r#"-- letters_of_keys
        SELECT id AS "id!", reason IS NOT NULL AS "has_failed!", record_offset AS "record_offset!",
            record_key, headers AS "headers!", payload
        FROM (
            SELECT ranked.*, sum(size) OVER (ORDER BY rank, place) - size AS bytes_before
            FROM (
                SELECT d.*, key.place, coalesce(octet_length(d.payload), 0)::bigint AS size,
                    row_number() OVER (
                        PARTITION BY key.place ORDER BY d.aggregate_version NULLS FIRST, d.partition, d.record_offset
                    ) AS rank
                FROM UNNEST($3::bytea[]) WITH ORDINALITY AS key (record_key, place)
                CROSS JOIN LATERAL (
                    SELECT * FROM dead_letters AS d
                    WHERE d.group_id = $1 AND d.topic = $2 AND d.key_hash = sha256(key.record_key)
                    ORDER BY d.aggregate_version NULLS FIRST, d.partition, d.record_offset
                    LIMIT $4
                ) AS d
            ) AS ranked
        ) AS sized
        WHERE bytes_before < $5::bigint
        ORDER BY rank, event_type, place"#,
        group,
        topic,
        keys as _,
        rows,
        bytes,
    )
    .fetch_all(connection)
    .await?;
    let waiting = rows.into_iter().map(|row| {
        let headers = headers_of(&row.headers);
        let record = Record {
            offset: row.record_offset,
            key: row.record_key,
            payload: row.payload,
            headers,
            ..Record::default()
        };
        (Waiting { id: row.id, has_failed: row.has_failed }, record)
    });
    Ok(waiting.collect())
}

/// Those of the records that wait by themselves, locked.
pub(crate) async fn without_key(
    connection: &mut PgConnection,
    ids: &[i64],
) -> Result<Vec<(Waiting, Record)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"-- letters_without_key
        SELECT id, reason IS NOT NULL AS "has_failed!", record_offset, unordered_key, headers, payload
        FROM dead_letters WHERE id = ANY($1) AND record_key IS NULL ORDER BY id FOR UPDATE"#,
        ids,
    )
    .fetch_all(connection)
    .await?;
    let waiting = rows.into_iter().map(|row| {
        let headers = headers_of(&row.headers);
        let record = Record {
            offset: row.record_offset,
            key: row.unordered_key,
            payload: row.payload,
            headers,
            ..Record::default()
        };
        (Waiting { id: row.id, has_failed: row.has_failed }, record)
    });
    Ok(waiting.collect())
}

/// Deletes records that were applied. Returns how many there were.
pub(crate) async fn remove(connection: &mut PgConnection, ids: &[i64]) -> Result<u64, sqlx::Error> {
    let deleted = sqlx::query!(
        r#"-- remove_letters
        DELETE FROM dead_letters WHERE id = ANY($1)"#,
        ids,
    )
    .execute(connection)
    .await?;
    Ok(deleted.rows_affected())
}

/// Writes down why records could not be applied; none for those that are now behind another one.
pub(crate) async fn mark(connection: &mut PgConnection, marks: &[(i64, Option<Reason>)]) -> Result<(), sqlx::Error> {
    let ids: Vec<i64> = marks.iter().map(|(id, _)| *id).collect();
    let texts: Vec<Option<&str>> =
        marks.iter().map(|(_, reason)| reason.as_ref().map(|reason| reason.text.as_str())).collect();
    let fingerprints: Vec<Option<&str>> =
        marks.iter().map(|(_, reason)| reason.as_ref().map(|reason| reason.fingerprint.as_str())).collect();
    sqlx::query!(
        r#"-- mark_letters
        UPDATE dead_letters AS d SET reason = new.reason, fingerprint = new.fingerprint
        FROM UNNEST($1::bigint[], $2::text[], $3::text[]) AS new (id, reason, fingerprint)
        WHERE d.id = new.id"#,
        &ids,
        &texts as _,
        &fingerprints as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// How many records of each of `keys` wait, in the order of `keys`.
pub(crate) async fn count(
    connection: &mut PgConnection,
    group: &str,
    topic: &str,
    keys: &[&[u8]],
) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"-- count_letters
        SELECT (SELECT count(*) FROM dead_letters AS d
            WHERE d.group_id = $1 AND d.topic = $2 AND d.key_hash = sha256(key.record_key)) AS "count!"
        FROM UNNEST($3::bytea[]) WITH ORDINALITY AS key (record_key, place) ORDER BY place"#,
        group,
        topic,
        keys as _,
    )
    .fetch_all(connection)
    .await
}
