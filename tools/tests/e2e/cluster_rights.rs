//! `pg_control_system()`, which tells one Postgres cluster from another, where an administrator lets few call it.

use anyhow::{Context, Result, ensure};
use shared::testing::{TestDatabase, all_settled, kafka_brokers, make_topic, published, unique};
use sqlx::AssertSqlSafe;

use super::command_line::{operator, outrider, said, well};
use super::doctor::{doctor, examined, has};
use super::failover::Relay;

const REVOKE: &str = "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC";

async fn run(database: &TestDatabase, sql: String) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&database.pool).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn where_only_the_owner_may_ask_for_the_cluster_all_services_and_operators_can_work() -> Result<()> {
    let database = TestDatabase::create("cluster_owner").await;
    run(&database, REVOKE.to_owned()).await?;
    well(outrider("migrate").env("DATABASE_URL", &database.url))?;
    let (thing, producer) = (unique("thing"), unique("producer"));
    make_topic(&format!("{thing}s")).await;
    run(
        &database,
        format!(
            "INSERT INTO outbox (aggregate_type, aggregate_id, aggregate_version, type, payload) VALUES ('{thing}', 'k', 1, 't', '1');
            CREATE ROLE \"{producer}\" IN ROLE outrider_writer"
        ),
    )
    .await?;
    let relay = Relay::start(&database.url)?;
    all_settled(&database.pool).await;
    relay.stop().await?;
    assert_eq!(published(&format!("{thing}s"), 1).await.len(), 1);
    well(&mut operator(&format!("producers grant {producer} {thing}"), &database.url))?;
    let listed = well(&mut operator("producers list", &database.url))?;
    ensure!(listed.contains(&producer), "{listed}");
    well(&mut operator("status", &database.url))?;
    // As the API asks for its feed.
    let mut api = database.config("outrider_api").connector().connect().await?;
    let known: Option<i64> = sqlx::query_scalar("SELECT outrider_cluster()").fetch_one(&mut api).await?;
    ensure!(known.is_some());
    run(&database, format!("DELETE FROM outbox_producers; DROP ROLE \"{producer}\"")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn where_not_even_the_owner_may_ask_for_the_cluster_one_line_says_what_to_grant() -> Result<()> {
    let database = TestDatabase::create("cluster_refused").await;
    let owner = unique("owner");
    run(
        &database,
        format!(
            "{REVOKE}; CREATE ROLE \"{owner}\" LOGIN PASSWORD 'secret'; ALTER FUNCTION outrider_cluster() OWNER TO \"{owner}\";
            GRANT CREATE ON SCHEMA public TO \"{owner}\""
        ),
    )
    .await?;
    let grant = format!("GRANT EXECUTE ON FUNCTION pg_control_system() TO \"{owner}\"");
    let (_, place) = database.url.split_once('@').context("a user")?;
    let (code, migrated) = said(outrider("migrate").env("DATABASE_URL", format!("postgres://{owner}:secret@{place}")))?;
    ensure!(code == Some(1), "{migrated}");
    let relay = Relay::start(&database.url)?.task.await?.err().context("it refuses")?.to_string();
    let api = database.config("outrider_api").open().await.err().context("it refuses")?.to_string();
    for text in [migrated, relay, api] {
        ensure!(text.contains(&grant) && text.trim_end().lines().count() == 1, "{text}");
    }
    let findings = examined(&mut doctor(&database.url, &kafka_brokers()))?;
    has(&findings, "database.cluster", "wrong", &grant)?;
    // It never asks.
    database.config("outrider_processor").open().await?;

    // The line is right.
    run(&database, grant).await?;
    Relay::start(&database.url)?.stop().await?;
    run(
        &database,
        format!(
            "ALTER FUNCTION outrider_cluster() OWNER TO CURRENT_USER; DROP OWNED BY \"{owner}\"; DROP ROLE \"{owner}\""
        ),
    )
    .await
}
