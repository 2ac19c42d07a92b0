//! What operators do is written down in their own name and at its own time.

use anyhow::{Context, Result, ensure};
use shared::testing::TestDatabase;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// A connection as an operator.
async fn operator(database: &TestDatabase) -> Result<PgConnection> {
    database.config("outrider_operator").connector().connect().await.context("an operator may connect")
}

/// SQLSTATE of what `sql` is refused with, the commit included.
async fn refusal(connection: &mut PgConnection, sql: &str) -> Result<String> {
    let mut transaction = connection.begin().await?;
    let refused = match sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await {
        Ok(_) => transaction.commit().await.err(),
        Err(error) => {
            transaction.rollback().await?;
            Some(error)
        }
    };
    let refused = refused.with_context(|| format!("nothing refuses {sql}"))?;
    shared::db::sql_state(&refused).context("an error of Postgres")
}

#[tokio::test]
async fn nobody_writes_in_another_name_or_at_another_time() -> Result<()> {
    let database = TestDatabase::create("audit_logs").await;
    let mut operator = operator(&database).await?;
    let logs = [
        ("dead_letter_log", "action, group_id, topic, waiting, os_user, why", "'discard', 'g', 't', 1, 'bob', 'why'"),
        (
            "relay_parked_log",
            "action, aggregate_type, aggregate_id, waiting, os_user, why",
            "'retry', 'order', '1', 1, 'bob', 'why'",
        ),
        ("offset_log", "group_id, topic, partition, new_offset, cause, os_user", "'g', 't', 0, 1, 'cause', 'bob'"),
        ("api_key_log", "action, api_key_id, os_user, why", "'revoke', '0123456789abcdef', 'bob', 'why'"),
        ("outbox_producer_log", "action, role_name, aggregate_type, os_user", "'grant', 'bob', 'order', 'bob'"),
    ];
    for (log, columns, values) in logs {
        for (forged, value) in [("db_user", "'alice'"), ("logged_at", "now() - interval '1 day'"), ("id", "7")] {
            let sql =
                format!("INSERT INTO {log} ({columns}, {forged}) OVERRIDING SYSTEM VALUE VALUES ({values}, {value})");
            assert_eq!(refusal(&mut operator, &sql).await?, "42501", "{sql}");
        }
        sqlx::raw_sql(AssertSqlSafe(format!("INSERT INTO {log} ({columns}) VALUES ({values})")))
            .execute(&mut operator)
            .await
            .with_context(|| format!("{log} takes what an operator did"))?;
        let sql = format!("SELECT db_user = session_user AND logged_at > now() - interval '1 minute' FROM {log}");
        ensure!(sqlx::query_scalar::<_, bool>(AssertSqlSafe(sql)).fetch_one(&mut operator).await?, "{log}");
    }
    Ok(())
}

#[tokio::test]
async fn no_api_key_changes_without_an_entry() -> Result<()> {
    let database = TestDatabase::create("audit_keys").await;
    let mut operator = operator(&database).await?;
    let insert = |id: &str, by: &str| {
        format!(
            "INSERT INTO api_keys (id, caller_id, secret_hash, name, scopes, created_by)
            VALUES ('{id}', '{id}', decode(repeat('00', 32), 'hex'), 'n', '{{orders:read}}', {by})"
        )
    };
    let log =
        |id: &str| format!("; INSERT INTO api_key_log (action, api_key_id, os_user) VALUES ('create', '{id}', 'bob')");
    let (id, other, by) = ("0123456789abcdef", "fedcba9876543210", "session_user || ', bob'");
    assert_eq!(refusal(&mut operator, &insert(id, by)).await?, "42501");
    assert_eq!(refusal(&mut operator, &(insert(id, by) + &log(other))).await?, "42501", "an entry of another key");
    assert_eq!(refusal(&mut operator, &(insert(id, "'alice, alice'") + &log(id))).await?, "42501", "another maker");
    sqlx::raw_sql(AssertSqlSafe(insert(id, by) + &log(id))).execute(&mut operator).await?;
    for change in ["revoked_at = now()", "expires_at = now() + interval '1 year'"] {
        let sql = format!("UPDATE api_keys SET {change} WHERE id = '{id}'");
        assert_eq!(refusal(&mut operator, &sql).await?, "42501", "{sql}");
    }
    // What the API says of a key's use is no change of it.
    let mut api = database.config("outrider_api").connector().connect().await?;
    sqlx::query("UPDATE api_keys SET last_used_at = now()").execute(&mut api).await?;
    Ok(())
}
