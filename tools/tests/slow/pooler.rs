//! A current PgBouncer, whose transaction mode keeps prepared statements apart and is no less refused for it.

mod fetched;

use anyhow::{Context, Result, ensure};
use shared::db::Connector;
use shared::testing::TestDatabase;
use sqlx::Connection;
use tools::migrate::migrate;

use super::harness::pooler::Pooler;

#[tokio::test(flavor = "multi_thread")]
async fn a_current_pooler_of_sessions_has_our_role_and_settings_for_many_connections_one_after_the_other() -> Result<()>
{
    let program = fetched::current().await?;
    let database = TestDatabase::create("current_sessions").await;
    // Few sessions, so that each of them is handed on.
    let settings = [("pool_mode", "session"), ("default_pool_size", "4")];
    let mut pooler = Pooler::start(&program, &database, &settings).await?;
    ensure!(migrate(Connector::plain(pooler.url.parse()?)).await?.applied.is_empty());
    for _ in 0..10 {
        let mut connection = pooler.config()?.connector().connect().await?;
        let sql = "SELECT current_user::text, current_setting('row_security'), current_setting('search_path'),
            current_setting('default_transaction_isolation')";
        let found: (String, String, String, String) = sqlx::query_as(sql).fetch_one(&mut connection).await?;
        assert_eq!(found, ("outrider_relay".into(), "off".into(), "public".into(), "read committed".into()));
        connection.close().await?;
        // Who has the session after us finds no role of ours.
        let mut plain = Connector::plain(pooler.url.parse()?).connect().await?;
        let role: String = sqlx::query_scalar("SELECT current_setting('role')").fetch_one(&mut plain).await?;
        assert_eq!(role, "none");
        plain.close().await?;
    }
    let sessions = pooler.config()?.open().await?;
    let lanes: i64 =
        sqlx::query_scalar("SELECT count(*) FROM relay_lanes").fetch_one(&mut *sessions.acquire().await?).await?;
    assert_eq!(lanes, 16);
    sessions.close().await;
    pooler.process.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_current_pooler_of_transactions_or_statements_is_refused_whatever_it_does_with_prepared_statements()
-> Result<()> {
    let program = fetched::current().await?;
    let database = TestDatabase::create("current_transactions").await;
    for (mode, statements) in [("transaction", "0"), ("transaction", "200"), ("statement", "0"), ("statement", "200")] {
        let settings = [("pool_mode", mode), ("max_prepared_statements", statements)];
        let mut pooler = Pooler::start(&program, &database, &settings).await?;
        let refused = [
            pooler.config()?.open().await.err().map(|error| error.to_string()),
            migrate(Connector::plain(pooler.url.parse()?)).await.err().map(|error| format!("{error:#}")),
        ];
        for error in refused {
            let error = error.with_context(|| format!("{settings:?} should have been refused"))?;
            ensure!(error.contains("pool_mode=session") && error.lines().count() == 1, "{settings:?}: {error}");
        }
        pooler.process.stop().await?;
    }
    Ok(())
}
