//! SQL of `blocked_keys`: keys whose events wait.

use std::time::Duration;

use sqlx::PgConnection;

use self::change::Columns;
pub(crate) use self::change::{Change, State};
use crate::record::Partition;

mod change;

/// A blocked key that is locked.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "the name of the column, and of the key's own")]
pub(crate) struct Key {
    pub(crate) record_key: Vec<u8>,
    pub(crate) is_parked: bool,
    pub(crate) attempts: i32,
    pub(crate) age: Duration,
}

/// Which of `keys` are blocked, and locks their rows against being unblocked until the transaction ends.
///
/// The lock matters when a key's partition is not where it was blocked, because partitions were added: the worker of that one could
/// otherwise apply the last waiting event and unblock the key, while we put another event behind it that nobody would look at
/// again. With it, one of us comes first: either that worker waits and finds our event, or we wait and find the key free.
pub(crate) async fn among(
    connection: &mut PgConnection,
    group: &str,
    topic: &str,
    keys: &[&[u8]],
) -> Result<Vec<Vec<u8>>, sqlx::Error> {
    // Looks each key up in the primary key, which is empty most of the time, whatever the planner thinks: a join by the keys may
    // become a walk over all keys of the topic. In the order of `keys`, which are sorted, so that two such cannot lock each other out.
    sqlx::query_scalar!(
        r#"-- blocked_among
        SELECT found.record_key AS "record_key!" FROM UNNEST($3::bytea[]) AS given (record_key)
        CROSS JOIN LATERAL (
            SELECT b.record_key FROM blocked_keys b
            WHERE b.group_id = $1 AND b.topic = $2 AND b.key_hash = sha256(given.record_key) LIMIT 1 FOR SHARE
        ) AS found"#,
        group,
        topic,
        keys as _,
    )
    .fetch_all(connection)
    .await
}

/// Blocks keys.
pub(crate) async fn block(
    connection: &mut PgConnection,
    group: &str,
    partition: &Partition,
    changes: &[Change<'_>],
) -> Result<(), sqlx::Error> {
    let Columns { keys, states, texts, fingerprints, attempts, waits } = Columns::of(changes);
    // The conflict is a key that a worker of another partition has blocked since we looked, which happens when partitions were
    // added. It is updated so as to lock it, and our events wait behind that worker's.
    sqlx::query!(
        r#"-- block_keys
        INSERT INTO blocked_keys
            (group_id, topic, record_key, partition, state, reason, fingerprint, attempts, next_attempt_at)
        SELECT $1, $2, record_key, $3, state, reason, fingerprint, attempts, now() + make_interval(secs => wait_secs)
        FROM UNNEST($4::bytea[], $5::text[], $6::text[], $7::text[], $8::integer[], $9::double precision[])
            AS new (record_key, state, reason, fingerprint, attempts, wait_secs)
        ORDER BY record_key
        ON CONFLICT ON CONSTRAINT blocked_keys_pkey DO UPDATE SET last_failed_at = now()"#,
        group,
        &partition.topic,
        partition.number,
        &keys as _,
        &states as _,
        &texts as _,
        &fingerprints as _,
        &attempts,
        &waits as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Has those of `keys` tried again at once whose first event waits for an elder: what has come may be it. Returns how many there are.
pub(crate) async fn wake(
    connection: &mut PgConnection,
    group: &str,
    topic: &str,
    keys: &[&[u8]],
) -> Result<u64, sqlx::Error> {
    // Locked already, by `among`, so that a ctid stays what it is.
    let woken = sqlx::query!(
        r#"-- wake_keys
        UPDATE blocked_keys SET next_attempt_at = now()
        WHERE state = 'waiting' AND ctid = ANY (ARRAY(
            SELECT found.ctid FROM UNNEST($3::bytea[]) AS given (record_key)
            CROSS JOIN LATERAL (
                SELECT b.ctid FROM blocked_keys b
                WHERE b.group_id = $1 AND b.topic = $2 AND b.key_hash = sha256(given.record_key) LIMIT 1
            ) AS found))"#,
        group,
        topic,
        keys as _,
    )
    .execute(connection)
    .await?;
    Ok(woken.rows_affected())
}

/// Locks keys of a partition whose time has come, those longest due first, at most `keys_max`. Not those that somebody else is at.
pub(crate) async fn lock_due(
    connection: &mut PgConnection,
    group: &str,
    partition: &Partition,
    keys_max: i64,
) -> Result<Vec<Key>, sqlx::Error> {
    // Walks blocked_keys_due_idx. An operator may hold a row; it is due again at the next look.
    let rows = sqlx::query!(
        r#"-- lock_due_keys
        SELECT record_key, state, attempts, EXTRACT(EPOCH FROM now() - first_failed_at)::double precision AS "age_secs!"
        FROM blocked_keys
        WHERE group_id = $1 AND topic = $2 AND partition = $3 AND next_attempt_at <= now()
        ORDER BY next_attempt_at LIMIT $4 FOR UPDATE SKIP LOCKED"#,
        group,
        &partition.topic,
        partition.number,
        keys_max,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| key(row.record_key, &row.state, row.attempts, row.age_secs)).collect())
}

/// Has the key of a partition that is longest due wait for `wait`.
pub(crate) async fn postpone(
    connection: &mut PgConnection,
    group: &str,
    partition: &Partition,
    wait: Duration,
) -> Result<(), sqlx::Error> {
    // As `lock_due`, one of them.
    sqlx::query!(
        r#"-- postpone_key
        UPDATE blocked_keys SET next_attempt_at = now() + make_interval(secs => $4)
        WHERE (group_id, topic, key_hash) = (
            SELECT group_id, topic, key_hash FROM blocked_keys
            WHERE group_id = $1 AND topic = $2 AND partition = $3 AND next_attempt_at <= now()
            ORDER BY next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED)"#,
        group,
        &partition.topic,
        partition.number,
        wait.as_secs_f64(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Locks those of `keys` that are blocked.
pub(crate) async fn lock(
    connection: &mut PgConnection,
    group: &str,
    topic: &str,
    keys: &[&[u8]],
) -> Result<Vec<Key>, sqlx::Error> {
    // By the primary key, in the order of `keys`, which are sorted. Waits for an operator who is at one of them.
    let rows = sqlx::query!(
        r#"-- lock_keys
        SELECT found.record_key AS "record_key!", found.state AS "state!", found.attempts AS "attempts!",
            EXTRACT(EPOCH FROM now() - found.first_failed_at)::double precision AS "age_secs!"
        FROM UNNEST($3::bytea[]) AS given (record_key)
        CROSS JOIN LATERAL (
            SELECT b.record_key, b.state, b.attempts, b.first_failed_at FROM blocked_keys b
            WHERE b.group_id = $1 AND b.topic = $2 AND b.key_hash = sha256(given.record_key) LIMIT 1 FOR UPDATE
        ) AS found"#,
        group,
        topic,
        keys as _,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| key(row.record_key, &row.state, row.attempts, row.age_secs)).collect())
}

fn key(record_key: Vec<u8>, state: &str, attempts: i32, age_secs: f64) -> Key {
    // Below zero after the server's clock was set back.
    let age = Duration::try_from_secs_f64(age_secs).unwrap_or_default();
    Key { record_key, is_parked: state == State::Parked.name(), attempts, age }
}

/// Unblocks those of `keys`, which are locked, of which nothing waits any more. Returns them.
pub(crate) async fn unblock(
    connection: &mut PgConnection,
    group: &str,
    topic: &str,
    keys: &[&[u8]],
) -> Result<Vec<Vec<u8>>, sqlx::Error> {
    // Whoever puts an event behind a key has its row locked, so there is none that this does not see. In the order of the index of the
    // letters' keys, so that no other is worth using: while most letters are of one key, the planner would as soon walk over all of
    // them, in the index that begins alike, for each of `keys`.
    sqlx::query_scalar!(
        r#"-- unblock_keys
        DELETE FROM blocked_keys AS b
        WHERE b.ctid = ANY (ARRAY(
            SELECT found.ctid FROM UNNEST($3::bytea[]) AS given (record_key)
            CROSS JOIN LATERAL (
                SELECT k.ctid FROM blocked_keys k
                WHERE k.group_id = $1 AND k.topic = $2 AND k.key_hash = sha256(given.record_key) LIMIT 1
            ) AS found
            LEFT JOIN LATERAL (
                SELECT 1 AS one FROM dead_letters AS d
                WHERE d.group_id = $1 AND d.topic = $2 AND d.key_hash = sha256(given.record_key)
                ORDER BY d.aggregate_version NULLS FIRST LIMIT 1
            ) AS left_over ON true
            WHERE left_over.one IS NULL))
        RETURNING b.record_key"#,
        group,
        topic,
        keys as _,
    )
    .fetch_all(connection)
    .await
}

/// Writes down what becomes of keys that are locked. Returns how many there were.
pub(crate) async fn change(
    connection: &mut PgConnection,
    group: &str,
    topic: &str,
    changes: &[Change<'_>],
) -> Result<u64, sqlx::Error> {
    let Columns { keys, states, texts, fingerprints, attempts, waits } = Columns::of(changes);
    let new: Vec<bool> = changes.iter().map(|change| change.is_new).collect();
    let written = sqlx::query!(
        r#"-- change_keys
        UPDATE blocked_keys AS b SET
            state = new.state,
            reason = coalesce(new.reason, b.reason),
            fingerprint = coalesce(new.fingerprint, b.fingerprint),
            attempts = new.attempts,
            first_failed_at = CASE WHEN new.is_new THEN now() ELSE b.first_failed_at END,
            last_failed_at = CASE WHEN new.reason IS NULL THEN b.last_failed_at ELSE now() END,
            next_attempt_at = now() + make_interval(secs => new.wait_secs)
        FROM UNNEST($3::bytea[], $4::text[], $5::text[], $6::text[], $7::integer[], $8::double precision[], $9::boolean[])
            AS new (record_key, state, reason, fingerprint, attempts, wait_secs, is_new)
        CROSS JOIN LATERAL (
            SELECT k.ctid FROM blocked_keys k
            WHERE k.group_id = $1 AND k.topic = $2 AND k.key_hash = sha256(new.record_key) LIMIT 1
        ) AS found
        WHERE b.ctid = found.ctid"#,
        group,
        topic,
        &keys as _,
        &states as _,
        &texts as _,
        &fingerprints as _,
        &attempts,
        &waits as _,
        &new,
    )
    .execute(connection)
    .await?;
    Ok(written.rows_affected())
}

/// How many keys of a group wait, by the name of their state.
pub(crate) async fn count(connection: &mut PgConnection, group: &str) -> Result<Vec<(String, i64)>, sqlx::Error> {
    // A row a key that waits, found by the first column of the primary key.
    let rows = sqlx::query!(
        r#"-- count_blocked
        SELECT state, count(*) AS "keys!" FROM blocked_keys WHERE group_id = $1 GROUP BY state"#,
        group,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.state, row.keys)).collect())
}
