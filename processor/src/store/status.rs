//! SQL for those who want to know how the consumer groups are doing. It reads only.

use sqlx::PgConnection;

/// Where a group is in a partition.
#[derive(Debug, Clone, PartialEq)]
pub struct PartitionPosition {
    /// Consumer group.
    pub group_id: String,
    /// Topic.
    pub topic: String,
    /// Number of the partition.
    pub partition: i32,
    /// Offset of the next record to apply.
    pub next_offset: i64,
    /// How long ago it last moved, in seconds.
    pub moved_age_secs: f64,
}

/// Keys of a group that wait in one state.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockedKeys {
    /// Consumer group.
    pub group_id: String,
    /// `retrying`, `waiting` or `parked`.
    pub state: String,
    /// How many.
    pub keys: i64,
    /// For how long the oldest of them has been, in seconds.
    pub oldest_age_secs: f64,
}

/// Positions of all groups, by group, topic and partition.
///
/// # Errors
/// What the database says.
pub async fn positions(connection: &mut PgConnection) -> Result<Vec<PartitionPosition>, sqlx::Error> {
    // One row a partition: the whole table, in the order of its primary key.
    sqlx::query_as!(
        PartitionPosition,
        r#"-- group_positions
        SELECT group_id, topic, partition, next_offset,
            extract(epoch FROM clock_timestamp() - updated_at)::float8 AS "moved_age_secs!"
        FROM consumer_offsets ORDER BY group_id, topic, partition"#
    )
    .fetch_all(connection)
    .await
}

/// Blocked keys of all groups, by state.
///
/// # Errors
/// What the database says.
pub async fn blocked(connection: &mut PgConnection) -> Result<Vec<BlockedKeys>, sqlx::Error> {
    // A row a key that waits: few, or there is more to worry about than this count.
    sqlx::query_as!(
        BlockedKeys,
        r#"-- blocked_keys_by_state
        SELECT group_id, state, count(*) AS "keys!",
            extract(epoch FROM clock_timestamp() - min(first_failed_at))::float8 AS "oldest_age_secs!"
        FROM blocked_keys GROUP BY group_id, state ORDER BY group_id, state"#
    )
    .fetch_all(connection)
    .await
}
