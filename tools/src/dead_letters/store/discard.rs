//! Giving records up, without getting into the way of a processor that is about to apply them.

use sqlx::types::Uuid;
use sqlx::{Connection, PgConnection};

use crate::dead_letters::key::RecordKey;

/// What to give up.
#[derive(Debug, Clone, Copy)]
pub struct Discard<'a> {
    /// Which record, or key.
    pub what: What<'a>,
    /// Only of this consumer group.
    pub group: Option<&'a str>,
    /// Only of this topic.
    pub topic: Option<&'a str>,
    /// Why; not empty.
    pub why: &'a str,
    /// Who does it, as far as the operating system knows.
    pub os_user: &'a str,
}

/// Which records to give up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What<'a> {
    /// The one of this `dead_letters.id`.
    Id(i64),
    /// The first one of this key, which is the one that failed.
    First(&'a [u8]),
    /// All of this key.
    All(&'a [u8]),
}

/// A record that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscardedRecord {
    /// `dead_letters.id`.
    pub id: i64,
    /// Identity of the event, if it could be read.
    pub event_id: Option<Uuid>,
    /// Its version, if it could be read.
    pub aggregate_version: Option<i64>,
}

/// What was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discarded {
    /// The records.
    pub records: Vec<DiscardedRecord>,
    /// Their key, if they have one.
    pub record_key: Option<RecordKey>,
    /// How many records of the key still wait.
    pub remaining: i64,
    /// How the key waits now; none if it does not.
    pub state: Option<String>,
}

/// Why nothing was given up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such record.
    #[error("no such record waits")]
    NotThere,
    /// Several groups or topics have this key.
    #[error("the key waits in several groups or topics, {0}: name one with --group and --topic")]
    Ambiguous(String),
    /// The first record of the key has not failed.
    #[error(
        "the first record of this key has not failed, what failed before it is gone: give it up by its --id, or have it applied with `replay`"
    )]
    NotFailed,
}

/// Deletes records for good, writes that down, and unblocks their key if nothing of it is left.
pub async fn discard(
    connection: &mut PgConnection,
    wanted: &Discard<'_>,
) -> Result<Result<Discarded, Refusal>, sqlx::Error> {
    let places = places(connection, wanted).await?;
    let place = match places.as_slice() {
        [] => return Ok(Err(Refusal::NotThere)),
        [place] => place,
        several => {
            let names: Vec<String> =
                several.iter().map(|place| format!("{} of {}", place.topic, place.group_id)).collect();
            return Ok(Err(Refusal::Ambiguous(names.join(", "))));
        }
    };
    let mut transaction = connection.begin().await?;
    // A statement of its own: what follows sees what whoever had the lock has committed. A batch that is putting a record behind the key
    // holds it too, so none is overlooked below when it is asked whether something is left.
    let state = sqlx::query_scalar!(
        r#"-- lock_blocked_key
        SELECT state FROM blocked_keys WHERE group_id = $1 AND topic = $2 AND key_hash = sha256($3) FOR UPDATE"#,
        place.group_id,
        place.topic,
        place.record_key,
    )
    .fetch_optional(&mut *transaction)
    .await?;
    if let What::First(_) = wanted.what
        && !first_has_failed(&mut transaction, place).await?
    {
        // Else the second of two operators who discard the same record would discard the one behind it.
        return Ok(Err(Refusal::NotFailed));
    }
    let records = delete(&mut transaction, wanted, place).await?;
    if records.is_empty() {
        return Ok(Err(Refusal::NotThere));
    }
    let remaining = settle(&mut transaction, place).await?;
    transaction.commit().await?;
    let state = state.filter(|_| remaining > 0);
    Ok(Ok(Discarded { records, record_key: place.record_key.clone().map(RecordKey), remaining, state }))
}

/// A key of a group and a topic, or a record without one.
struct Place {
    group_id: String,
    topic: String,
    record_key: Option<Vec<u8>>,
}

async fn places(connection: &mut PgConnection, wanted: &Discard<'_>) -> Result<Vec<Place>, sqlx::Error> {
    let (id, key) = match wanted.what {
        What::Id(id) => (Some(id), None),
        What::First(key) | What::All(key) => (None, Some(key)),
    };
    sqlx::query_as!(
        Place,
        r#"-- discard_places
        SELECT DISTINCT group_id, topic, record_key FROM dead_letters
        WHERE ($1::bigint IS NULL OR id = $1) AND ($2::bytea IS NULL OR record_key = $2)
            AND ($3::text IS NULL OR group_id = $3) AND ($4::text IS NULL OR topic = $4)
        ORDER BY group_id, topic LIMIT 10"#,
        id,
        key,
        wanted.group,
        wanted.topic,
    )
    .fetch_all(connection)
    .await
}

async fn first_has_failed(connection: &mut PgConnection, place: &Place) -> Result<bool, sqlx::Error> {
    let failed = sqlx::query_scalar!(
        r#"-- first_has_failed
        SELECT reason IS NOT NULL AS "failed!" FROM dead_letters
        WHERE group_id = $1 AND topic = $2 AND key_hash = sha256($3)
        ORDER BY aggregate_version NULLS FIRST, partition, record_offset LIMIT 1"#,
        place.group_id,
        place.topic,
        place.record_key,
    )
    .fetch_optional(connection)
    .await?;
    // None: there is nothing left, which the deletion will find out.
    Ok(failed.unwrap_or(true))
}

async fn delete(
    connection: &mut PgConnection,
    wanted: &Discard<'_>,
    place: &Place,
) -> Result<Vec<DiscardedRecord>, sqlx::Error> {
    let (id, is_all) = match wanted.what {
        What::Id(id) => (Some(id), false),
        What::First(_) => (None, false),
        What::All(_) => (None, true),
    };
    // The parts see one snapshot, in which the records are still there: they are counted among those that waited. A record without a key,
    // which no row of blocked_keys guards, is locked by its deletion; if a processor has applied it meanwhile, there is none to delete.
    sqlx::query_as!(
        DiscardedRecord,
        r#"-- discard_records
        WITH discarded AS (
            DELETE FROM dead_letters
            WHERE id = ANY (ARRAY(
                SELECT id FROM dead_letters
                WHERE group_id = $1 AND topic = $2 AND key_hash IS NOT DISTINCT FROM sha256($3) AND ($4::bigint IS NULL OR id = $4)
                ORDER BY aggregate_version NULLS FIRST, partition, record_offset
                LIMIT CASE WHEN $5::boolean THEN NULL ELSE 1 END))
            RETURNING *
        ), logged AS (
            INSERT INTO dead_letter_log (action, group_id, topic, record_key, event_id, event_type, aggregate_version, reason, waiting,
                os_user, why)
            SELECT 'discard', d.group_id, d.topic, d.record_key, d.event_id, d.event_type, d.aggregate_version, d.reason,
                CASE WHEN $3::bytea IS NULL THEN 1 ELSE
                    (SELECT count(*) FROM dead_letters WHERE group_id = $1 AND topic = $2 AND key_hash = sha256($3)) END,
                $6, $7
            FROM discarded d ORDER BY d.aggregate_version NULLS FIRST, d.partition, d.record_offset
        )
        SELECT id, event_id, aggregate_version FROM discarded ORDER BY aggregate_version NULLS FIRST, partition, record_offset"#,
        place.group_id,
        place.topic,
        place.record_key,
        id,
        is_all,
        wanted.os_user,
        wanted.why,
    )
    .fetch_all(connection)
    .await
}

/// Unblocks the key if nothing of it is left; else its reason is no longer that of what was given up. Returns how much is left.
async fn settle(connection: &mut PgConnection, place: &Place) -> Result<i64, sqlx::Error> {
    let Some(key) = &place.record_key else { return Ok(0) };
    let left = sqlx::query!(
        r#"-- count_left
        SELECT count(*) AS "records!", count(reason) AS "failed!" FROM dead_letters
        WHERE group_id = $1 AND topic = $2 AND key_hash = sha256($3)"#,
        place.group_id,
        place.topic,
        key,
    )
    .fetch_one(&mut *connection)
    .await?;
    if left.records == 0 {
        sqlx::query!(
            r#"-- unblock_key
            DELETE FROM blocked_keys WHERE group_id = $1 AND topic = $2 AND key_hash = sha256($3)"#,
            place.group_id,
            place.topic,
            key,
        )
        .execute(connection)
        .await?;
    } else if left.failed == 0 {
        sqlx::query!(
            r#"-- tell_of_discard
            UPDATE blocked_keys SET reason = 'what failed was discarded: the rest waits for a replay'
            WHERE group_id = $1 AND topic = $2 AND key_hash = sha256($3) AND state = 'parked'"#,
            place.group_id,
            place.topic,
            key,
        )
        .execute(connection)
        .await?;
    }
    Ok(left.records)
}
