//! All SQL of `outrider parked`. The relay's half is `relay::outbox::parked`, where the race between both is written down.

use serde::Serialize;
use sqlx::types::Uuid;
use sqlx::types::chrono::{DateTime, Utc};
use sqlx::{Connection, PgConnection, Postgres, Transaction};

use super::list::counted;
pub use discard::{Discard, Discarded, Refusal, discard};

mod discard;

/// Which parked keys are meant; all that is given must fit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Selection<'a> {
    /// Aggregate type, `/`, aggregate id.
    pub key: Option<&'a str>,
    /// One of these aggregate types.
    pub aggregate_types: Option<&'a [String]>,
    /// A pattern of ILIKE for the reason of the key's first event.
    pub reason_like: Option<&'a str>,
}

/// A parked key. What is said of an event is said of its first one, which is the one that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ParkedKey {
    /// `outbox.aggregate_type`.
    pub aggregate_type: String,
    /// `outbox.aggregate_id`.
    pub aggregate_id: String,
    /// `outbox.lane`.
    pub lane: i16,
    /// Where its events go, as far as this environment knows; none if that is no legal name.
    pub topic: Option<String>,
    /// Events that wait.
    pub waiting: i64,
    /// When the first of them was parked.
    pub since: DateTime<Utc>,
    /// Lowest version that waits.
    pub first_version: i64,
    /// Highest version that waits.
    pub last_version: i64,
    /// `outbox.event_id`.
    pub event_id: Uuid,
    /// `outbox.type`.
    pub event_type: String,
    /// Why Kafka refuses it; none if the one that was refused has been given up.
    pub reason: Option<String>,
    /// When a retry was asked for, if it has not ended.
    pub retry_requested_at: Option<DateTime<Utc>>,
    /// Who asked for it.
    pub retry_requested_by: Option<String>,
}

impl ParkedKey {
    /// As in `--key`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.aggregate_type, self.aggregate_id)
    }
}

/// What is parked of a selection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The first keys, those that wait longest first.
    pub rows: Vec<ParkedKey>,
    /// How many keys there are.
    pub keys: i64,
    /// How many events of them wait.
    pub events: i64,
}

impl Found {
    /// How much that is, in words.
    #[must_use]
    pub fn totals(&self) -> String {
        counted(self.keys, self.events)
    }
}

/// The parked keys of a selection, at most `keys_max` of them.
pub async fn parked(
    connection: &mut PgConnection,
    selection: &Selection<'_>,
    keys_max: i64,
) -> Result<Found, sqlx::Error> {
    // Reads all that is parked, unless a key is given: its lane is the hash of it, as in outbox.lane, and there is an index on that.
    let records = sqlx::query!(
        r#"-- parked
        SELECT k.lane AS "lane!", k.aggregate_type AS "aggregate_type!", k.aggregate_id AS "aggregate_id!", k.waiting AS "waiting!",
            k.since AS "since!", k.first_version AS "first_version!", k.last_version AS "last_version!", head.event_id,
            head.type AS event_type, head.reason, r.requested_at AS "requested_at?", r.requested_by AS "requested_by?",
            count(*) OVER () AS "keys!", sum(k.waiting) OVER ()::bigint AS "events!"
        FROM (
            SELECT lane, key_hash, aggregate_type, aggregate_id, count(*) AS waiting, min(parked_at) AS since, min(id) AS first_id,
                min(aggregate_version) AS first_version, max(aggregate_version) AS last_version
            FROM relay_parked
            WHERE ($1::text IS NULL
                    OR (lane = (hashtextextended($1, 0) & 15)::smallint AND aggregate_type || '/' || aggregate_id = $1))
                AND ($2::text[] IS NULL OR aggregate_type = ANY ($2))
            GROUP BY lane, key_hash, aggregate_type, aggregate_id
        ) k
        JOIN relay_parked head ON head.id = k.first_id
        LEFT JOIN relay_parked_requests r
            ON r.lane = k.lane AND r.key_hash = k.key_hash AND r.aggregate_type = k.aggregate_type AND r.aggregate_id = k.aggregate_id
        WHERE $3::text IS NULL OR head.reason ILIKE $3
        ORDER BY k.since, k.first_id
        LIMIT $4"#,
        selection.key,
        selection.aggregate_types,
        selection.reason_like,
        keys_max,
    )
    .fetch_all(connection)
    .await?;
    let (keys, events) = records.first().map_or((0, 0), |record| (record.keys, record.events));
    let rows = records.into_iter().map(|record| ParkedKey {
        aggregate_type: record.aggregate_type,
        aggregate_id: record.aggregate_id,
        lane: record.lane,
        topic: None,
        waiting: record.waiting,
        since: record.since,
        first_version: record.first_version,
        last_version: record.last_version,
        event_id: record.event_id,
        event_type: record.event_type,
        reason: record.reason,
        retry_requested_at: record.requested_at,
        retry_requested_by: record.requested_by,
    });
    Ok(Found { rows: rows.collect(), keys, events })
}

/// Aggregate types of which something is parked.
pub async fn parked_types(connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"-- parked_types
        SELECT DISTINCT aggregate_type FROM relay_parked"#
    )
    .fetch_all(connection)
    .await
}

/// Whether a relay is running to answer a request.
pub async fn is_a_relay_running(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"-- is_a_relay_running
        SELECT EXISTS (SELECT FROM relay_members WHERE expires_at > now()) AS "running!""#
    )
    .fetch_one(connection)
    .await
}

/// Who acts; who is logged in to Postgres is for Postgres to say.
#[derive(Debug, Clone)]
pub struct Actor {
    /// The user of the operating system.
    pub os_user: String,
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requested {
    /// Keys that had not been asked for before.
    pub keys: i64,
    /// Events of them that wait.
    pub events: i64,
}

/// Asks the relays to publish the keys of a selection again, and writes it down. A key that was asked for before, and whose retry has
/// not ended, is left as it is.
pub async fn request_retry(
    connection: &mut PgConnection,
    selection: &Selection<'_>,
    actor: &Actor,
    why: Option<&str>,
) -> Result<Requested, sqlx::Error> {
    let mut transaction = begin(connection).await?;
    let requested = sqlx::query!(
        r#"-- request_retry
        WITH keys AS (
            SELECT lane, aggregate_type, aggregate_id, count(*) AS waiting, min(id) AS first_id
            FROM relay_parked
            WHERE ($1::text IS NULL
                    OR (lane = (hashtextextended($1, 0) & 15)::smallint AND aggregate_type || '/' || aggregate_id = $1))
                AND ($2::text[] IS NULL OR aggregate_type = ANY ($2))
            GROUP BY lane, aggregate_type, aggregate_id
        ), requested AS (
            INSERT INTO relay_parked_requests (lane, aggregate_type, aggregate_id, requested_by)
            SELECT lane, aggregate_type, aggregate_id, session_user || ', ' || $3::text FROM keys
            ON CONFLICT DO NOTHING
            RETURNING lane, aggregate_type, aggregate_id
        ), logged AS (
            INSERT INTO relay_parked_log (action, aggregate_type, aggregate_id, waiting, reason, os_user, why)
            SELECT 'retry', k.aggregate_type, k.aggregate_id, k.waiting, head.reason, $3, $4
            FROM requested
            JOIN keys k USING (lane, aggregate_type, aggregate_id)
            JOIN relay_parked head ON head.id = k.first_id
            RETURNING waiting
        )
        SELECT count(*) AS "keys!", coalesce(sum(waiting), 0)::bigint AS "events!" FROM logged"#,
        selection.key,
        selection.aggregate_types,
        actor.os_user,
        why,
    )
    .fetch_one(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(Requested { keys: requested.keys, events: requested.events })
}

/// A transaction in which no other operator changes what is parked.
async fn begin(connection: &mut PgConnection) -> Result<Transaction<'_, Postgres>, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    // In a statement of its own, so that the next one sees what another operator has done meanwhile.
    sqlx::query!(
        r#"-- lock_parked
        SELECT relay_parked_lock()"#
    )
    .execute(&mut *transaction)
    .await?;
    Ok(transaction)
}
