//! What an operator asks the processors to apply, and what came of it.

use sqlx::PgConnection;

use crate::dead_letters::store::WaitingKey;

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// Names this run alone, so that all of its requests can be found again, whatever was interrupted.
    pub run: &'a str,
    /// The user of the operating system.
    pub os_user: &'a str,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The request.
    pub id: i64,
    /// Records that were applied, or would have been.
    pub applied: i64,
    /// Records of the key that still wait, or would have.
    pub waiting: i64,
    /// Why the first of them was refused again.
    pub reason: Option<String>,
}

/// Asks the processors to apply `keys`, or to find out what would come of it, and writes a real one down. Returns the requests, in the
/// order of `keys`.
pub async fn ask(
    connection: &mut PgConnection,
    keys: &[WaitingKey],
    is_dry_run: bool,
    asker: Asker<'_>,
) -> Result<Vec<i64>, sqlx::Error> {
    let groups: Vec<&str> = keys.iter().map(|key| key.group_id.as_str()).collect();
    let topics: Vec<&str> = keys.iter().map(|key| key.topic.as_str()).collect();
    let partitions: Vec<i32> = keys.iter().map(|key| key.partition).collect();
    let record_keys: Vec<Option<&[u8]>> =
        keys.iter().map(|key| key.record_key.as_ref().map(|key| key.0.as_slice())).collect();
    // A record without a key is asked for by its id, anything else by its key.
    let ids: Vec<Option<i64>> =
        keys.iter().map(|key| key.dead_letter_id.filter(|_| key.record_key.is_none())).collect();
    let waiting: Vec<i64> = keys.iter().map(|key| key.waiting).collect();
    let reasons: Vec<&str> = keys.iter().map(|key| key.reason.as_str()).collect();
    // One statement: a request and its line in the log are there together or not at all. INSERT ... SELECT ... ORDER BY numbers the
    // rows in that order, so the ids come back in it when sorted.
    let mut requests = sqlx::query_scalar!(
        r#"-- ask
        WITH asked AS (
            SELECT * FROM UNNEST($1::text[], $2::text[], $3::integer[], $4::bytea[], $5::bigint[], $6::bigint[], $7::text[])
                WITH ORDINALITY
                AS new (group_id, topic, partition, record_key, dead_letter_id, waiting, reason, place)
        ), logged AS (
            INSERT INTO dead_letter_log (action, group_id, topic, record_key, event_id, event_type, aggregate_version, reason, waiting,
                os_user)
            SELECT 'replay', a.group_id, a.topic, a.record_key, d.event_id, d.event_type, d.aggregate_version, a.reason, a.waiting, $9
            FROM asked a LEFT JOIN dead_letters d ON d.id = a.dead_letter_id
            WHERE NOT $8::boolean ORDER BY a.place
        )
        INSERT INTO dead_letter_requests (group_id, topic, partition, record_key, dead_letter_id, dry_run, requested_by)
        SELECT group_id, topic, partition, record_key, dead_letter_id, $8, session_user || ', ' || $9::text || ', ' || $10::text
        FROM asked ORDER BY place
        RETURNING id"#,
        &groups as _,
        &topics as _,
        &partitions,
        &record_keys as _,
        &ids as _,
        &waiting,
        &reasons as _,
        is_dry_run,
        asker.os_user,
        asker.run,
    )
    .fetch_all(connection)
    .await?;
    requests.sort_unstable();
    Ok(requests)
}

/// Takes the answers to those of `requests` that are answered, at most `rows_max`; what was asked stays in the log.
pub async fn take_answers(
    connection: &mut PgConnection,
    requests: &[i64],
    rows_max: i64,
) -> Result<Vec<Answer>, sqlx::Error> {
    sqlx::query_as!(
        Answer,
        r#"-- take_answers
        DELETE FROM dead_letter_requests
        WHERE id = ANY (ARRAY(
            SELECT id FROM dead_letter_requests WHERE id = ANY ($1) AND done_at IS NOT NULL ORDER BY id LIMIT $2))
        RETURNING id, applied AS "applied!", waiting AS "waiting!", reason"#,
        requests,
        rows_max,
    )
    .fetch_all(connection)
    .await
}

/// Takes all requests of a run back that nobody has carried out. Returns how many there were. One that a processor is carrying out is
/// waited for, and counts as carried out if that comes to pass.
pub async fn take_back(connection: &mut PgConnection, asker: Asker<'_>) -> Result<u64, sqlx::Error> {
    // The race: a processor has locked the request and answers it while we wait for its row. Postgres then looks at the new row again, and
    // done_at keeps it from being deleted.
    let taken = sqlx::query!(
        r#"-- take_back
        DELETE FROM dead_letter_requests
        WHERE done_at IS NULL AND requested_by = session_user || ', ' || $1::text || ', ' || $2::text"#,
        asker.os_user,
        asker.run,
    )
    .execute(connection)
    .await?;
    Ok(taken.rows_affected())
}
