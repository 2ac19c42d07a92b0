//! What a replay may take: settled cursors, and what is parked.

use sqlx::PgConnection;

/// A lane's settled cursor.
#[derive(Debug)]
pub struct SettledLane {
    /// Which one.
    pub lane: i16,
    /// The settled position.
    pub position: i64,
    /// The settled snapshot.
    pub seen: Option<String>,
}

/// All lanes' settled cursors.
///
/// # Errors
/// What the database says.
pub async fn settled(connection: &mut PgConnection) -> Result<Vec<SettledLane>, sqlx::Error> {
    sqlx::query_as!(
        SettledLane,
        r#"-- settled
        SELECT lane, position, seen::text AS seen FROM relay_lanes ORDER BY lane"#
    )
    .fetch_all(connection)
    .await
}

/// Outbox ids of all parked events.
///
/// # Errors
/// What the database says.
pub async fn parked_ids(connection: &mut PgConnection) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"-- parked_ids
        SELECT id FROM relay_parked"#
    )
    .fetch_all(connection)
    .await
}
