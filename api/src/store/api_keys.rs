//! SQL of API keys, as far as the API goes: reading them, and saying when they were used. They are made by `outrider api-keys`.

use std::time::Duration;

use sqlx::PgConnection;

use super::{Orders, StoreError};
use crate::auth::key::KeyId;

/// What the database says of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKey {
    /// Which key.
    pub id: KeyId,
    /// Who calls: the same for all keys that have come from one by rotation.
    pub caller_id: String,
    /// SHA-256 of its secret.
    pub secret_hash: [u8; 32],
    /// Names of its scopes.
    pub scopes: Vec<String>,
    /// To whose orders it is bound.
    pub user_id: Option<i64>,
    /// Whether it was revoked.
    pub revoked: bool,
    /// How long until it expires, by the database's clock; none: it never does.
    pub expires_in: Option<Duration>,
}

/// Reads keys. Shares the pool of the orders.
#[derive(Debug, Clone)]
pub struct ApiKeys(Orders);

impl ApiKeys {
    /// Shares the pool of `orders`.
    #[must_use]
    pub const fn new(orders: Orders) -> Self {
        Self(orders)
    }

    /// Those of the keys that there are.
    ///
    /// # Errors
    /// When Postgres does not say.
    pub async fn read(&self, ids: &[KeyId]) -> Result<Vec<StoredKey>, StoreError> {
        let ids: Vec<String> = ids.iter().map(KeyId::to_string).collect();
        self.0.on_connection(async |connection| read_api_keys(connection, &ids).await).await
    }

    /// Takes note that the keys were used just now.
    ///
    /// # Errors
    /// When Postgres does not do it.
    pub async fn touch(&self, ids: &[KeyId]) -> Result<(), StoreError> {
        let ids: Vec<String> = ids.iter().map(KeyId::to_string).collect();
        self.0.on_connection(async |connection| touch_api_keys(connection, &ids).await).await
    }
}

async fn read_api_keys(connection: &mut PgConnection, ids: &[String]) -> Result<Vec<StoredKey>, sqlx::Error> {
    // By the primary key. No lock.
    let rows = sqlx::query!(
        r#"-- read_api_keys
        SELECT id, caller_id, secret_hash, scopes, user_id, revoked_at IS NOT NULL AS "revoked!",
            extract(epoch FROM expires_at - now())::float8 AS expires_in_secs
        FROM api_keys WHERE id = ANY ($1)"#,
        ids,
    )
    .fetch_all(connection)
    .await?;
    let keys = rows.into_iter().filter_map(|row| {
        Some(StoredKey {
            id: KeyId::parse(&row.id)?,
            caller_id: row.caller_id,
            secret_hash: row.secret_hash.try_into().ok()?,
            scopes: row.scopes,
            user_id: row.user_id,
            revoked: row.revoked,
            // One that has expired does so now.
            expires_in: row
                .expires_in_secs
                .map(|secs| Duration::try_from_secs_f64(secs.clamp(0.0, 1e9)).unwrap_or_default()),
        })
    });
    Ok(keys.collect())
}

async fn touch_api_keys(connection: &mut PgConnection, ids: &[String]) -> Result<(), sqlx::Error> {
    // By the primary key. Several servers may do it at the same time: whoever comes second finds nothing to do. Rows are locked in the
    // order of their ids, so that they cannot wait for each other in a circle.
    sqlx::query!(
        r#"-- touch_api_keys
        UPDATE api_keys SET last_used_at = now() WHERE id IN (
            SELECT id FROM api_keys WHERE id = ANY ($1) AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')
            ORDER BY id FOR UPDATE SKIP LOCKED)"#,
        ids,
    )
    .execute(connection)
    .await?;
    Ok(())
}
