//! Transactions that have been open for a while, as the relay's log names them.

use std::time::Duration;

use anyhow::Result;
use relay::outbox::holders::{OpenTransaction, open_transactions, sees_other_users};
use serde::Serialize;
use sqlx::PgConnection;

/// Younger ones are none of our business: under load there is always one.
const AGE_MIN: Duration = Duration::from_secs(1);

/// Open transactions.
#[derive(Debug, Serialize)]
pub struct Transactions {
    /// The oldest first.
    pub open: Vec<Transaction>,
    /// Whether this login is not shown the transactions of others; then they are missing above.
    pub others_hidden: bool,
}

/// An open transaction.
#[derive(Debug, Serialize)]
pub struct Transaction {
    /// The process of its session; none for a prepared one.
    pub pid: Option<i32>,
    /// The name of a prepared one.
    pub gid: Option<String>,
    /// `application_name`.
    pub application: Option<String>,
    /// Who is logged in.
    pub user: Option<String>,
    /// The database that it works in.
    pub database: Option<String>,
    /// `pg_stat_activity.state`, or `prepared`.
    pub state: Option<String>,
    /// `outbox rows`, `a transaction id`, `a snapshot` or `nothing yet`.
    pub holds: String,
    /// For how long it has been open.
    pub age_secs: f64,
}

/// Looks once.
pub async fn look(connection: &mut PgConnection) -> Result<Transactions> {
    let open = open_transactions(connection, AGE_MIN).await?;
    Ok(Transactions {
        open: open.into_iter().map(Transaction::from).collect(),
        others_hidden: !sees_other_users(connection).await?,
    })
}

impl From<OpenTransaction> for Transaction {
    fn from(open: OpenTransaction) -> Self {
        Self {
            pid: open.pid,
            gid: open.gid,
            application: open.application,
            user: open.user,
            database: open.database,
            state: open.state,
            holds: open.holds,
            age_secs: open.age_secs,
        }
    }
}
