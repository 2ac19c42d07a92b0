//! Whether the cursors hold in the Postgres cluster that the outbox is in now.
//!
//! `pg_upgrade` changes a cluster's identifier and lets transaction ids go on; a dump and restore lets them begin again. The identifier
//! cannot tell one from the other, and the rows can. The migration that makes `relay_reanchor()` says why the rule below is enough.

use sqlx::PgConnection;

/// What keeps relays from publishing in this cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ForeignCursors {
    /// The outbox has rows of transactions that are yet to come here.
    #[error(
        "this database was restored from a dump: row {id} of the outbox was written by transaction {txid}, and the next one of this \
         Postgres cluster is {next_txid}. Run `CALL relay_reanchor()` as the owner of the tables, while writers go on, and start the relay again"
    )]
    Restored {
        /// `outbox.id` of such a row.
        id: i64,
        /// Its transaction.
        txid: i64,
        /// First transaction id that this cluster has not given out.
        next_txid: i64,
    },
    /// `relay_reanchor()` was begun and has not come to its end.
    #[error(
        "relay_reanchor() is not finished ({rows_changed} rows so far): wait for it, or run `CALL relay_reanchor()` again if it was interrupted"
    )]
    Unfinished {
        /// Rows that have this cluster's transaction ids.
        rows_changed: i64,
    },
}

/// What keeps relays from publishing in this cluster; none when the cursors hold: every row is of a transaction of this cluster's past.
///
/// # Errors
/// What the database says.
pub async fn foreign_cursors(connection: &mut PgConnection) -> Result<Option<ForeignCursors>, sqlx::Error> {
    let found = sqlx::query!(
        r#"-- foreign_cursors
        SELECT (SELECT rows_changed FROM relay_reanchoring) AS "rows_changed?", f.id, f.txid, f.next_txid
        FROM (SELECT) one LEFT JOIN outbox_foreign_row() f ON true"#
    )
    .fetch_one(connection)
    .await?;
    if let Some(rows_changed) = found.rows_changed {
        return Ok(Some(ForeignCursors::Unfinished { rows_changed }));
    }
    Ok(match (found.id, found.txid, found.next_txid) {
        (Some(id), Some(txid), Some(next_txid)) => Some(ForeignCursors::Restored { id, txid, next_txid }),
        _ => None,
    })
}
