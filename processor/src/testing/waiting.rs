//! What a test sees of the keys that wait.

use sqlx::PgConnection;

/// A key that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The key.
    pub key: String,
    /// What it waits for.
    pub state: WaitingState,
    /// Why its first event failed.
    pub reason: String,
    /// How often that was tried.
    pub attempts: i32,
    /// Events that wait, that one included.
    pub events: i64,
}

/// What a key waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitingState {
    /// Another attempt.
    Retrying,
    /// An elder event.
    Waiting,
    /// An operator.
    Parked,
}

/// The keys of a group that wait.
pub(super) async fn waiting(connection: &mut PgConnection, group: &str) -> Result<Vec<Waiting>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"-- testing_waiting
        SELECT record_key, state, reason, attempts,
            (SELECT count(*) FROM dead_letters AS d
                WHERE d.group_id = b.group_id AND d.topic = b.topic AND d.key_hash = b.key_hash) AS "events!"
        FROM blocked_keys AS b WHERE group_id = $1 ORDER BY record_key"#,
        group,
    )
    .fetch_all(connection)
    .await?;
    let waiting = rows.into_iter().map(|row| Waiting {
        key: String::from_utf8_lossy(&row.record_key).into_owned(),
        state: match row.state.as_str() {
            "retrying" => WaitingState::Retrying,
            "waiting" => WaitingState::Waiting,
            _ => WaitingState::Parked,
        },
        reason: row.reason,
        attempts: row.attempts,
        events: row.events,
    });
    Ok(waiting.collect())
}
