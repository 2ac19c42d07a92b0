//! Instruments of what a relay does beside publishing: partitions, and who holds transactions open.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// The instruments. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Upkeep {
    /// Partitions of the outbox.
    pub partitions: Gauge,
    /// Ids that can be given out before an insert finds no partition.
    pub ids_ahead: Gauge,
    /// Partitions dropped by this relay.
    pub partitions_dropped: Counter,
    /// Tries to drop a partition that could go, which ended without a lock.
    pub drops_failed: Counter,
    /// Age of the oldest open transaction.
    pub oldest_transaction_age: Gauge<f64, AtomicU64>,
    /// Transactions begun since the oldest one that a replication slot holds.
    pub slot_transactions: Gauge,
    /// Bytes of the server's log that a replication slot keeps.
    pub slot_wal_bytes: Gauge,
}

impl Upkeep {
    /// Makes the instruments known to `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let upkeep = Self::default();
        registry.register("outbox_partitions", "Partitions of the outbox", upkeep.partitions.clone());
        registry.register(
            "outbox_ids_ahead",
            "Ids that can be given out before an insert finds no partition",
            upkeep.ids_ahead.clone(),
        );
        registry.register(
            "outbox_partitions_dropped",
            "Partitions that this relay has dropped",
            upkeep.partitions_dropped.clone(),
        );
        registry.register(
            "outbox_partition_drops_failed",
            "Tries to drop a published partition that a lock was in the way of",
            upkeep.drops_failed.clone(),
        );
        registry.register_with_unit(
            "outbox_oldest_transaction_age",
            "Age of the oldest open transaction of the server that holds a transaction id or a snapshot, or is idle; 0 below a second",
            Unit::Seconds,
            upkeep.oldest_transaction_age.clone(),
        );
        registry.register(
            "outbox_replication_slot_transactions",
            "Transactions begun since the oldest xmin or catalog_xmin of the server's replication slots",
            upkeep.slot_transactions.clone(),
        );
        registry.register_with_unit(
            "outbox_replication_slot_wal",
            "Log that the server keeps for the replication slot that is furthest behind",
            Unit::Bytes,
            upkeep.slot_wal_bytes.clone(),
        );
        upkeep
    }
}
