//! Giving an event up, without getting into the way of a relay that is about to publish it.

use sqlx::PgConnection;
use sqlx::types::Uuid;

use super::{Actor, ParkedKey, Selection, begin, parked};

/// An event to give up.
#[derive(Debug, Clone, Copy)]
pub struct Discard<'a> {
    /// Aggregate type, `/`, aggregate id.
    pub key: &'a str,
    /// The aggregate type, where the key alone is ambiguous.
    pub aggregate_type: Option<&'a str>,
    /// Which event of the key; the first one unless given.
    pub event_id: Option<Uuid>,
    /// Why; not empty.
    pub why: &'a str,
}

/// What was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Discarded {
    /// The event.
    pub event_id: Uuid,
    /// Its version.
    pub aggregate_version: i64,
    /// How many events of its key wait.
    pub remaining: i64,
}

/// Why nothing was given up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such event.
    #[error("no such event is parked")]
    NotParked,
    /// Types or ids hold a `/`, so that the key is that of several aggregates.
    #[error("the key is that of aggregates of several types, {0}: name one with --type")]
    Ambiguous(String),
    /// The first event of the key is none that Kafka has refused: that one has been given up, or is published.
    #[error(
        "the first event of this key was not refused, it waits for a relay: name it with --event to give it up all the same"
    )]
    NotRefused,
    /// A relay has begun to publish the key.
    #[error("relay {0} is publishing this key at this moment: look again when it is done, with `outrider parked list`")]
    BeingPublished(String),
}

/// Deletes a parked event for good, writes that down, and asks the relays to publish what is left of its key: also when nothing is,
/// for the relay has to learn that the key flows again.
pub async fn discard(
    connection: &mut PgConnection,
    wanted: &Discard<'_>,
    actor: &Actor,
) -> Result<Result<Discarded, Refusal>, sqlx::Error> {
    let mut transaction = begin(connection).await?;
    let types = [wanted.aggregate_type.unwrap_or_default().to_owned()];
    let aggregate_types = wanted.aggregate_type.is_some().then_some(types.as_slice());
    let selection = Selection { key: Some(wanted.key), aggregate_types, reason_like: None };
    let found = parked(&mut transaction, &selection, 10).await?;
    let key = match found.rows.as_slice() {
        [] => return Ok(Err(Refusal::NotParked)),
        [key] => key,
        several => {
            let types: Vec<&str> = several.iter().map(|key| key.aggregate_type.as_str()).collect();
            return Ok(Err(Refusal::Ambiguous(types.join(", "))));
        }
    };
    if let Some(relay) = publishing_relay(&mut transaction, key).await? {
        return Ok(Err(Refusal::BeingPublished(relay)));
    }
    // Else the second of two operators who discard the same event would discard the one behind it.
    if wanted.event_id.is_none() && key.reason.is_none() {
        return Ok(Err(Refusal::NotRefused));
    }
    let Some(discarded) = delete_event(&mut transaction, key, wanted, actor).await? else {
        return Ok(Err(Refusal::NotParked));
    };
    sqlx::query!(
        r#"-- request_rest
        INSERT INTO relay_parked_requests (lane, aggregate_type, aggregate_id, requested_by)
        VALUES ($1, $2, $3, session_user || ', ' || $4::text)
        ON CONFLICT (lane, key_hash) DO UPDATE SET begun_token = NULL"#,
        key.lane,
        key.aggregate_type,
        key.aggregate_id,
        actor.os_user,
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(Ok(discarded))
}

/// The relay that has begun to publish the key, and holds its lane. If there is none, none begins before the transaction ends.
async fn publishing_relay(connection: &mut PgConnection, key: &ParkedKey) -> Result<Option<String>, sqlx::Error> {
    // A relay that is just beginning is waited for, and from here on it waits for us.
    let begun_token = sqlx::query_scalar!(
        r#"-- lock_request
        SELECT begun_token FROM relay_parked_requests
        WHERE lane = $1 AND key_hash = relay_key_hash($2, $3) AND aggregate_type = $2 AND aggregate_id = $3
        FOR UPDATE"#,
        key.lane,
        key.aggregate_type,
        key.aggregate_id,
    )
    .fetch_optional(&mut *connection)
    .await?
    .flatten();
    // After the lock, and so as new as the mark. An owner whose lease has ended counts too: nobody has taken its lane, so it may renew
    // the lease and go on.
    sqlx::query_scalar!(
        r#"-- publishing_relay
        SELECT owner AS "owner!" FROM relay_lanes WHERE lane = $1 AND token = $2 AND owner IS NOT NULL"#,
        key.lane,
        begun_token,
    )
    .fetch_optional(connection)
    .await
}

async fn delete_event(
    connection: &mut PgConnection,
    key: &ParkedKey,
    wanted: &Discard<'_>,
    actor: &Actor,
) -> Result<Option<Discarded>, sqlx::Error> {
    // The parts see one snapshot, in which the event is still there: it is counted among those that wait.
    sqlx::query_as!(
        Discarded,
        r#"-- discard
        WITH discarded AS (
            DELETE FROM relay_parked
            WHERE id = (
                SELECT min(id) FROM relay_parked
                WHERE lane = $1 AND key_hash = relay_key_hash($2, $3) AND aggregate_type = $2 AND aggregate_id = $3
                    AND ($4::uuid IS NULL OR event_id = $4)
            )
            RETURNING *
        ), logged AS (
            INSERT INTO relay_parked_log (action, aggregate_type, aggregate_id, waiting, outbox_id, event_id, aggregate_version, reason,
                os_user, why)
            SELECT 'discard', d.aggregate_type, d.aggregate_id,
                (SELECT count(*) FROM relay_parked
                    WHERE lane = $1 AND key_hash = relay_key_hash($2, $3) AND aggregate_type = $2 AND aggregate_id = $3),
                d.id, d.event_id, d.aggregate_version, d.reason, $5, $6
            FROM discarded d
            RETURNING event_id, aggregate_version, waiting
        )
        SELECT event_id AS "event_id!", aggregate_version AS "aggregate_version!", waiting - 1 AS "remaining!" FROM logged"#,
        key.lane,
        key.aggregate_type,
        key.aggregate_id,
        wanted.event_id,
        actor.os_user,
        wanted.why,
    )
    .fetch_optional(connection)
    .await
}
