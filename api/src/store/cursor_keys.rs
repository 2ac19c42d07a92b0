//! SQL of the keys that positions in event streams are signed with.

use sqlx::PgConnection;

use super::{Orders, StoreError};

/// Length of a key.
pub const SECRET_BYTES: usize = 32;

/// A key of the table.
#[derive(Debug)]
pub struct StoredKey {
    /// `cursor_keys.id`.
    pub id: i64,
    /// `cursor_keys.secret`.
    pub secret: Vec<u8>,
    /// Whether another one has to take its place.
    pub is_due: bool,
}

impl Orders {
    /// The keys, the newest first.
    ///
    /// # Errors
    /// When Postgres does not say.
    pub async fn cursor_keys(&self) -> Result<Vec<StoredKey>, StoreError> {
        self.on_connection(async |connection| read_cursor_keys(connection).await).await
    }

    /// Adds a key, and deletes those that are too old to be of use.
    ///
    /// Two processes may do so at the same time. Then there are two keys, and both hold.
    ///
    /// # Errors
    /// When it was not added.
    pub async fn add_cursor_key(&self, secret: [u8; SECRET_BYTES]) -> Result<(), StoreError> {
        self.on_connection(async |connection| rotate_cursor_keys(connection, &secret).await).await
    }
}

async fn read_cursor_keys(connection: &mut PgConnection) -> Result<Vec<StoredKey>, sqlx::Error> {
    // A handful of rows.
    sqlx::query_as!(
        StoredKey,
        r#"-- read_cursor_keys
        SELECT id, secret, created_at < now() - interval '30 days' AS "is_due!" FROM cursor_keys ORDER BY id DESC LIMIT 100"#,
    )
    .fetch_all(connection)
    .await
}

async fn rotate_cursor_keys(connection: &mut PgConnection, secret: &[u8]) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "-- rotate_cursor_keys
        WITH old AS (DELETE FROM cursor_keys WHERE created_at < now() - interval '90 days')
        INSERT INTO cursor_keys (secret) VALUES ($1)",
        secret,
    )
    .execute(connection)
    .await
    .map(|_| ())
}
