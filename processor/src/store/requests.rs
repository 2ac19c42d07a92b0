//! SQL of `dead_letter_requests`: what operators want to have applied, and whether there is anything to do beside batches.

use std::time::Duration;

use sqlx::PgConnection;

use crate::record::Partition;

/// What there is to do for a partition beside its batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Due {
    /// In which time the next key is to be tried again; none if no key of the partition is to be.
    pub(crate) key: Option<Duration>,
    /// Whether something is to be applied for an operator.
    pub(crate) is_requested: bool,
    /// Whether an operator wants to see what would come of it.
    pub(crate) is_rehearsed: bool,
}

/// A request that is locked.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) id: i64,
    /// The key, or none: a record without one.
    pub(crate) record_key: Option<Vec<u8>>,
    pub(crate) dead_letter_id: Option<i64>,
}

/// What came of a request.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Identity of the request.
    pub(crate) id: i64,
    /// Records that were applied.
    pub(crate) applied: i64,
    /// Records that still wait.
    pub(crate) waiting: i64,
    /// Why the first of them does.
    pub(crate) reason: Option<String>,
}

/// What there is to do for a partition beside its batches.
pub(crate) async fn due(connection: &mut PgConnection, group: &str, partition: &Partition) -> Result<Due, sqlx::Error> {
    // One entry of blocked_keys_due_idx, and two looks into dead_letter_requests_open_idx.
    let row = sqlx::query!(
        r#"-- key_work_due
        SELECT
            (SELECT EXTRACT(EPOCH FROM next_attempt_at - now())::double precision FROM blocked_keys
                WHERE group_id = $1 AND topic = $2 AND partition = $3 AND next_attempt_at IS NOT NULL
                ORDER BY next_attempt_at LIMIT 1) AS wait_secs,
            EXISTS (SELECT FROM dead_letter_requests WHERE group_id = $1 AND topic = $2 AND partition = $3
                AND done_at IS NULL AND NOT dry_run) AS "is_requested!",
            EXISTS (SELECT FROM dead_letter_requests WHERE group_id = $1 AND topic = $2 AND partition = $3
                AND done_at IS NULL AND dry_run) AS "is_rehearsed!""#,
        group,
        &partition.topic,
        partition.number,
    )
    .fetch_one(connection)
    .await?;
    Ok(Due {
        key: row.wait_secs.map(|secs| Duration::try_from_secs_f64(secs).unwrap_or_default()),
        is_requested: row.is_requested,
        is_rehearsed: row.is_rehearsed,
    })
}

/// Locks open requests of a partition in their order, at most `requests_max`.
pub(crate) async fn lock(
    connection: &mut PgConnection,
    group: &str,
    partition: &Partition,
    is_dry_run: bool,
    requests_max: i64,
) -> Result<Vec<Request>, sqlx::Error> {
    // Walks dead_letter_requests_open_idx. One that an operator is about to withdraw is left alone.
    sqlx::query_as!(
        Request,
        r#"-- lock_requests
        SELECT id, record_key, dead_letter_id FROM dead_letter_requests
        WHERE group_id = $1 AND topic = $2 AND partition = $3 AND done_at IS NULL AND dry_run = $4
        ORDER BY id LIMIT $5 FOR UPDATE SKIP LOCKED"#,
        group,
        &partition.topic,
        partition.number,
        is_dry_run,
        requests_max,
    )
    .fetch_all(connection)
    .await
}

/// Writes down what came of requests.
pub(crate) async fn answer(connection: &mut PgConnection, answers: &[Answer]) -> Result<(), sqlx::Error> {
    let ids: Vec<i64> = answers.iter().map(|answer| answer.id).collect();
    let applied: Vec<i64> = answers.iter().map(|answer| answer.applied).collect();
    let waiting: Vec<i64> = answers.iter().map(|answer| answer.waiting).collect();
    let reasons: Vec<Option<&str>> = answers.iter().map(|answer| answer.reason.as_deref()).collect();
    // One that was withdrawn meanwhile, which a dry run does not keep anyone from, is not there any more.
    sqlx::query!(
        r#"-- answer_requests
        UPDATE dead_letter_requests AS r
        SET done_at = now(), applied = new.applied, waiting = new.waiting, reason = new.reason
        FROM UNNEST($1::bigint[], $2::bigint[], $3::bigint[], $4::text[]) AS new (id, applied, waiting, reason)
        WHERE r.id = new.id AND r.done_at IS NULL"#,
        &ids,
        &applied,
        &waiting,
        &reasons as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}
