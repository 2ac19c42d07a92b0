//! The way back of a parked key, at the request of an operator.

use sqlx::PgConnection;

/// A key that is to be published again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryRequest {
    /// Its lane.
    pub lane: i16,
    /// `outbox.aggregate_type`.
    pub aggregate_type: String,
    /// `outbox.aggregate_id`.
    pub aggregate_id: String,
}

/// The oldest `keys_max` requests of these lanes. Takes no lock and writes nothing, so that it may be asked at each renewal.
///
/// # Errors
/// What the database says.
pub async fn retry_requests(
    connection: &mut PgConnection,
    lanes: &[i16],
    keys_max: i64,
) -> Result<Vec<RetryRequest>, sqlx::Error> {
    sqlx::query_as!(
        RetryRequest,
        r#"-- retry_requests
        SELECT lane, aggregate_type, aggregate_id FROM relay_parked_requests
        WHERE lane = ANY ($1)
        ORDER BY requested_at, lane, key_hash
        LIMIT $2"#,
        lanes,
        keys_max,
    )
    .fetch_all(connection)
    .await
}

/// A parked key of a lane that this relay holds.
#[derive(Debug, Clone, Copy)]
pub struct HeldKey<'a> {
    /// Its lane.
    pub lane: i16,
    /// The lane's fencing token.
    pub token: i64,
    /// `outbox.aggregate_type`.
    pub aggregate_type: &'a str,
    /// `outbox.aggregate_id`.
    pub aggregate_id: &'a str,
}

/// Whether a retry may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// It has: until it ends, nobody discards an event of the key.
    Begun,
    /// The request is there no more.
    Withdrawn,
    /// The lane is another relay's.
    LaneLost,
}

/// Marks the request of a key as begun under the lane's token. Once a session and retry is enough.
///
/// # Errors
/// What the database says.
pub async fn begin_retry(connection: &mut PgConnection, key: &HeldKey<'_>) -> Result<Beginning, sqlx::Error> {
    // Row lock on the request: waits for an operator's discard, and makes a later one wait. A share lock on the lane, as in `park`.
    let record = sqlx::query!(
        r#"-- begin_retry
        WITH fence AS (
            SELECT lane FROM relay_lanes WHERE lane = $1 AND token = $2 FOR SHARE
        ), begun AS (
            UPDATE relay_parked_requests r SET begun_token = $2
            FROM fence
            WHERE r.lane = fence.lane AND r.key_hash = relay_key_hash($3, $4)
                AND r.aggregate_type = $3 AND r.aggregate_id = $4
            RETURNING r.lane
        )
        SELECT EXISTS (SELECT FROM fence) AS "held!", EXISTS (SELECT FROM begun) AS "begun!""#,
        key.lane,
        key.token,
        key.aggregate_type,
        key.aggregate_id,
    )
    .fetch_one(connection)
    .await?;
    Ok(match (record.held, record.begun) {
        (false, _) => Beginning::LaneLost,
        (true, false) => Beginning::Withdrawn,
        (true, true) => Beginning::Begun,
    })
}

/// What is left of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remaining {
    /// Further rows: the key stays parked, and the request stays.
    Rows,
    /// Nothing: the key flows again from now on, and the request is done.
    Nothing,
    /// The lane is another relay's: nothing was written.
    LaneLost,
}

/// Deletes the rows `ids` of a key, which Kafka has acknowledged, and says what is left. When nothing is, the request is deleted too.
///
/// # Errors
/// What the database says.
pub async fn settle_retry(
    connection: &mut PgConnection,
    key: &HeldKey<'_>,
    ids: &[i64],
) -> Result<Remaining, sqlx::Error> {
    // All parts see the same snapshot, in which the rows of `published` are still there. Nobody parks a row of this key meanwhile: only
    // the holder of the token does, over this very connection. So "nothing is left" holds until this relay parks the next one.
    let record = sqlx::query!(
        r#"-- settle_retry
        WITH fence AS (
            SELECT lane FROM relay_lanes WHERE lane = $1 AND token = $2 FOR SHARE
        ), published AS (
            DELETE FROM relay_parked p USING fence
            WHERE p.lane = fence.lane AND p.key_hash = relay_key_hash($3, $4)
                AND p.aggregate_type = $3 AND p.aggregate_id = $4 AND p.id = ANY ($5)
        ), remaining AS (
            SELECT FROM relay_parked p
            WHERE p.lane = $1 AND p.key_hash = relay_key_hash($3, $4)
                AND p.aggregate_type = $3 AND p.aggregate_id = $4 AND p.id <> ALL ($5)
            LIMIT 1
        ), ended AS (
            DELETE FROM relay_parked_requests r USING fence
            WHERE r.lane = fence.lane AND r.key_hash = relay_key_hash($3, $4)
                AND r.aggregate_type = $3 AND r.aggregate_id = $4 AND NOT EXISTS (SELECT FROM remaining)
        )
        SELECT EXISTS (SELECT FROM fence) AS "held!", EXISTS (SELECT FROM remaining) AS "remaining!""#,
        key.lane,
        key.token,
        key.aggregate_type,
        key.aggregate_id,
        ids,
    )
    .fetch_one(connection)
    .await?;
    Ok(match (record.held, record.remaining) {
        (false, _) => Remaining::LaneLost,
        (true, true) => Remaining::Rows,
        (true, false) => Remaining::Nothing,
    })
}

/// Ends a retry because the row `id` is refused again: writes the new reason, cut to 1,000 characters, to it and deletes the request. The
/// key stays parked.
/// Returns whether the lane is still held; if not, nothing was written.
///
/// # Errors
/// What the database says.
pub async fn refuse_retry(
    connection: &mut PgConnection,
    key: &HeldKey<'_>,
    id: i64,
    reason: &str,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"-- refuse_retry
        WITH fence AS (
            SELECT lane FROM relay_lanes WHERE lane = $1 AND token = $2 FOR SHARE
        ), refused AS (
            UPDATE relay_parked p SET reason = left($6, 1000)
            FROM fence
            WHERE p.lane = fence.lane AND p.key_hash = relay_key_hash($3, $4)
                AND p.aggregate_type = $3 AND p.aggregate_id = $4 AND p.id = $5
        ), ended AS (
            DELETE FROM relay_parked_requests r USING fence
            WHERE r.lane = fence.lane AND r.key_hash = relay_key_hash($3, $4)
                AND r.aggregate_type = $3 AND r.aggregate_id = $4
        )
        SELECT EXISTS (SELECT FROM fence) AS "held!""#,
        key.lane,
        key.token,
        key.aggregate_type,
        key.aggregate_id,
        id,
        reason,
    )
    .fetch_one(connection)
    .await
}
