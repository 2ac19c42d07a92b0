//! All SQL of `outrider api-keys`. The API's half is `api::store::api_keys`.

use std::time::Duration;

use api::auth::key::{ApiKey, KeyId};
use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{Connection, PgConnection};

/// A key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyRow {
    /// The part of it that is no secret.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What it is good for.
    pub scopes: Vec<String>,
    /// To whose orders it is bound.
    pub user_id: Option<i64>,
    /// `good`, `expired`, `revoked`, or `replaced` while it is good beside its successor.
    pub state: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// Who has made it.
    pub created_by: String,
    /// When it was last used, to a minute or so.
    pub last_used_at: Option<DateTime<Utc>>,
    /// From when on it is refused.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
    /// The key that has taken its place.
    pub replaced_by: Option<String>,
}

/// A key to make.
#[derive(Debug, Clone, Copy)]
pub struct NewKey<'a> {
    /// What people will call it.
    pub name: &'a str,
    /// What it is good for.
    pub scopes: &'a [String],
    /// To whose orders it is bound.
    pub user_id: Option<i64>,
    /// How long it lives.
    pub expires: Option<Duration>,
}

/// Why nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such key.
    #[error("there is no key with that id")]
    NotThere,
    /// It was revoked.
    #[error("the key was revoked before")]
    Revoked,
    /// It has expired.
    #[error("the key has expired: make another one")]
    Expired,
    /// It has a successor.
    #[error("the key was rotated before: rotate the one that has taken its place, or revoke this one")]
    Replaced,
}

/// Makes a key, and writes it down.
pub async fn create(
    connection: &mut PgConnection,
    key: &ApiKey,
    wanted: &NewKey<'_>,
    (os_user, why): (&str, Option<&str>),
) -> Result<KeyRow, sqlx::Error> {
    let secret_hash = key.secret_hash();
    sqlx::query_as!(
        KeyRow,
        r#"-- create_api_key
        WITH made AS (
            INSERT INTO api_keys (id, caller_id, secret_hash, name, scopes, user_id, created_by, expires_at)
            VALUES ($1, $1, $2, $3, ARRAY(SELECT DISTINCT unnest($4::text[]) ORDER BY 1), $5, session_user || ', ' || $6::text,
                now() + make_interval(secs => $7))
            RETURNING id, name, scopes, user_id, created_at, created_by, last_used_at, expires_at, revoked_at, replaced_by
        ), logged AS (
            INSERT INTO api_key_log (action, api_key_id, os_user, why) SELECT 'create', id, $6, $8 FROM made
        )
        SELECT id, name, scopes, user_id, 'good' AS "state!", created_at, created_by, last_used_at, expires_at, revoked_at,
            replaced_by
        FROM made"#,
        key.id().to_string(),
        &secret_hash[..],
        wanted.name,
        wanted.scopes,
        wanted.user_id,
        os_user,
        wanted.expires.map(|expires| expires.as_secs_f64()),
        why,
    )
    .fetch_one(connection)
    .await
}

/// The newest keys, at most `keys_max`; `all` of them, or those that are good.
pub async fn list(connection: &mut PgConnection, all: bool, keys_max: i64) -> Result<Vec<KeyRow>, sqlx::Error> {
    sqlx::query_as!(
        KeyRow,
        r#"-- list_api_keys
        SELECT id, name, scopes, user_id,
            CASE WHEN revoked_at IS NOT NULL THEN 'revoked' WHEN expires_at <= now() THEN 'expired'
                WHEN replaced_by IS NOT NULL THEN 'replaced' ELSE 'good' END AS "state!",
            created_at, created_by, last_used_at, expires_at, revoked_at, replaced_by
        FROM api_keys
        WHERE $1 OR (revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()))
        ORDER BY created_at DESC, id LIMIT $2"#,
        all,
        keys_max,
    )
    .fetch_all(connection)
    .await
}

/// Has a key refused from now on, and writes that down.
pub async fn revoke(
    connection: &mut PgConnection,
    id: KeyId,
    (os_user, why): (&str, &str),
) -> Result<Result<KeyRow, Refusal>, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    match state(&mut transaction, id).await? {
        None => return Ok(Err(Refusal::NotThere)),
        Some(State { revoked: true, .. }) => return Ok(Err(Refusal::Revoked)),
        // One that has expired may be revoked all the same, so that nobody need doubt it.
        Some(State { .. }) => {}
    }
    let key = sqlx::query_as!(
        KeyRow,
        r#"-- revoke_api_key
        WITH revoked AS (
            UPDATE api_keys SET revoked_at = now() WHERE id = $1
            RETURNING id, name, scopes, user_id, created_at, created_by, last_used_at, expires_at, revoked_at, replaced_by
        ), logged AS (
            INSERT INTO api_key_log (action, api_key_id, os_user, why) SELECT 'revoke', id, $2, $3 FROM revoked
        )
        SELECT id, name, scopes, user_id, 'revoked' AS "state!", created_at, created_by, last_used_at, expires_at, revoked_at,
            replaced_by
        FROM revoked"#,
        id.to_string(),
        os_user,
        why,
    )
    .fetch_one(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(Ok(key))
}

/// Makes `new` in the place of a key, which is good for as long as `overlap` says, and writes that down. Returns both, the old one first.
pub async fn rotate(
    connection: &mut PgConnection,
    id: KeyId,
    new: &ApiKey,
    overlap: Duration,
    (os_user, why): (&str, Option<&str>),
) -> Result<Result<(KeyRow, KeyRow), Refusal>, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    match state(&mut transaction, id).await? {
        None => return Ok(Err(Refusal::NotThere)),
        Some(State { revoked: true, .. }) => return Ok(Err(Refusal::Revoked)),
        Some(State { replaced: true, .. }) => return Ok(Err(Refusal::Replaced)),
        Some(State { expired: true, .. }) => return Ok(Err(Refusal::Expired)),
        Some(State { .. }) => {}
    }
    let secret_hash = new.secret_hash();
    let made = sqlx::query_as!(
        KeyRow,
        r#"-- replace_api_key
        INSERT INTO api_keys (id, caller_id, secret_hash, name, scopes, user_id, created_by, expires_at)
        SELECT $2, caller_id, $3, name, scopes, user_id, session_user || ', ' || $4::text, now() + (expires_at - created_at)
        FROM api_keys WHERE id = $1
        RETURNING id, name, scopes, user_id, 'good' AS "state!", created_at, created_by, last_used_at, expires_at, revoked_at,
            replaced_by"#,
        id.to_string(),
        new.id().to_string(),
        &secret_hash[..],
        os_user,
    )
    .fetch_one(&mut *transaction)
    .await?;
    let old = sqlx::query_as!(
        KeyRow,
        r#"-- end_replaced_api_key
        WITH replaced AS (
            UPDATE api_keys SET replaced_by = $2, expires_at = least(expires_at, now() + make_interval(secs => $3)) WHERE id = $1
            RETURNING id, name, scopes, user_id, created_at, created_by, last_used_at, expires_at, revoked_at, replaced_by
        ), logged AS (
            INSERT INTO api_key_log (action, api_key_id, replaced_by, os_user, why) SELECT 'rotate', id, $2, $4, $5 FROM replaced
        )
        SELECT id, name, scopes, user_id, 'replaced' AS "state!", created_at, created_by, last_used_at, expires_at, revoked_at,
            replaced_by
        FROM replaced"#,
        id.to_string(),
        new.id().to_string(),
        overlap.as_secs_f64(),
        os_user,
        why,
    )
    .fetch_one(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(Ok((old, made)))
}

#[derive(Debug)]
struct State {
    revoked: bool,
    expired: bool,
    replaced: bool,
}

/// How a key stands. It is locked until the transaction ends: of two operators, the second one sees what the first one has done.
async fn state(connection: &mut PgConnection, id: KeyId) -> Result<Option<State>, sqlx::Error> {
    sqlx::query_as!(
        State,
        r#"-- api_key_state
        SELECT revoked_at IS NOT NULL AS "revoked!", coalesce(expires_at <= now(), false) AS "expired!",
            replaced_by IS NOT NULL AS "replaced!"
        FROM api_keys WHERE id = $1 FOR UPDATE"#,
        id.to_string(),
    )
    .fetch_optional(connection)
    .await
}
