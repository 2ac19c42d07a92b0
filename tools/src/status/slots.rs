//! Replication slots, which hold as much as a transaction that stays open.

use anyhow::Result;
use relay::outbox::slots::{ReplicationSlot, replication_slots};
use serde::Serialize;
use sqlx::PgConnection;

/// A replication slot that holds something.
#[derive(Debug, Serialize)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// `physical` or `logical`.
    pub kind: String,
    /// The database of a logical one.
    pub database: Option<String>,
    /// Whether somebody reads it.
    pub active: bool,
    /// The process that sends to whoever reads it.
    pub pid: Option<i32>,
    /// Transactions begun since the oldest one that it needs rows of.
    pub xmin_age: Option<i64>,
    /// The same for rows of the catalogs.
    pub catalog_xmin_age: Option<i64>,
    /// Bytes of the server's log that are kept for it.
    pub wal_bytes: Option<i64>,
}

/// Looks once.
pub async fn look(connection: &mut PgConnection) -> Result<Vec<Slot>> {
    Ok(replication_slots(connection).await?.into_iter().map(Slot::from).collect())
}

impl From<ReplicationSlot> for Slot {
    fn from(slot: ReplicationSlot) -> Self {
        Self {
            name: slot.name,
            kind: slot.kind,
            database: slot.database,
            active: slot.active,
            pid: slot.pid,
            xmin_age: slot.xmin_age,
            catalog_xmin_age: slot.catalog_xmin_age,
            wal_bytes: slot.wal_bytes,
        }
    }
}
