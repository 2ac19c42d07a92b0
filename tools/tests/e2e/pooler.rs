//! PgBouncer between a service and its database, with its defaults.

use anyhow::{Context, Result, ensure};
use shared::db::Connector;
use shared::testing::{TestDatabase, kafka_brokers};
use tools::migrate::migrate;

use super::doctor::{doctor, examined, has};
use super::harness::pooler::{Pooler, Program};

#[tokio::test]
async fn a_pool_of_sessions_has_our_role_and_settings_and_one_of_transactions_is_refused() -> Result<()> {
    let database = TestDatabase::create("pooler").await;
    let mut sessions = Pooler::start(&Program::installed(), &database, &[("pool_mode", "session")]).await?;
    let pooled = sessions.config()?.open().await?;
    let found: (String, String, String) =
        sqlx::query_as("SELECT current_user::text, current_setting('row_security'), current_setting('search_path')")
            .fetch_one(&mut *pooled.acquire().await?)
            .await?;
    assert_eq!(found, ("outrider_relay".to_owned(), "off".to_owned(), "public".to_owned()));
    pooled.close().await;
    ensure!(migrate(Connector::plain(sessions.url.parse()?)).await?.applied.is_empty());
    sessions.process.stop().await?;

    let mut transactions = Pooler::start(&Program::installed(), &database, &[("pool_mode", "transaction")]).await?;
    let refused = [
        transactions.config()?.open().await.err().map(|error| error.to_string()),
        migrate(Connector::plain(transactions.url.parse()?)).await.err().map(|error| format!("{error:#}")),
    ];
    for error in refused {
        let error = error.context("it should have refused")?;
        ensure!(error.contains("pool_mode=session") && error.lines().count() == 1, "{error}");
    }
    let findings = examined(&mut doctor(&transactions.url, &kafka_brokers()))?;
    has(&findings, "database.pooler", "wrong", "pool_mode=session")?;
    transactions.process.stop().await?;
    Ok(())
}
