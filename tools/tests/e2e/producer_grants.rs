//! `outrider producers`, as an operator uses it.

use anyhow::{Result, ensure};
use serde_json::Value;
use shared::testing::{TestDatabase, unique};
use sqlx::{AssertSqlSafe, PgConnection};
use tools::stack::postgres::connect;

use super::command_line::outrider;

/// Runs `outrider producers` as an operator. Its exit code, and all that it said.
fn producers(database: &TestDatabase, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let output = outrider("producers")
        .args(arguments)
        .env("DATABASE_URL", &database.url)
        .env("DB_ROLE", "outrider_operator")
        .env("USER", "alice")
        .output()?;
    Ok((output.status.code(), String::from_utf8([output.stdout, output.stderr].concat())?))
}

async fn run(connection: &mut PgConnection, sql: String) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    Ok(())
}

/// Whether the role may append an event of the type now.
async fn appends(database: &TestDatabase, role: &str, aggregate_type: &str) -> Result<bool> {
    let mut connection = connect(&database.url).await?;
    run(&mut connection, format!("SET ROLE \"{role}\"")).await?;
    let sql = "SELECT outbox_append($1, 'k', 't', '1')";
    match sqlx::query(sql).bind(aggregate_type).execute(&mut connection).await {
        Ok(_) => Ok(true),
        Err(error) if shared::db::sql_state(&error).as_deref() == Some("42501") => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_grants_lists_and_revokes_what_a_role_may_append() -> Result<()> {
    let database = TestDatabase::create("producer_grants").await;
    let mut owner = connect(&database.url).await?;
    let role = unique("billing");
    run(&mut owner, format!("CREATE ROLE \"{role}\"")).await?;

    let (code, said) = producers(&database, &["list"])?;
    ensure!(code == Some(0) && said.contains("outrider producers grant ROLE TYPE"), "{said}");

    let (code, said) = producers(&database, &["grant", &role, "invoice", "payment", "--why", "the new service"])?;
    ensure!(code == Some(0) && said.contains(&format!("{role} may append events of type invoice")), "{said}");
    ensure!(said.contains(&format!("GRANT outrider_writer TO \"{role}\"")), "{said}");
    let state = |said: &str| -> Result<Vec<(String, String)>> {
        let rows: Vec<Value> = serde_json::from_str(said)?;
        let text = |row: &Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
        let rows = rows.iter().filter(|row| row["role"] == role.as_str());
        Ok(rows.map(|row| (text(row, "aggregate_type"), text(row, "state"))).collect())
    };
    let expected = |state: &str| ["invoice", "payment"].map(|granted| (granted.to_owned(), state.to_owned()));
    assert_eq!(state(&producers(&database, &["list", "--json"])?.1)?, expected("cannot append"));
    assert!(!appends(&database, &role, "invoice").await?);
    run(&mut owner, format!("GRANT outrider_writer TO \"{role}\"")).await?;
    assert_eq!(state(&producers(&database, &["list", "--json"])?.1)?, expected("good"));
    assert!(appends(&database, &role, "invoice").await? && !appends(&database, &role, "shipment").await?);

    let (code, said) = producers(&database, &["grant", &role, "invoice"])?;
    ensure!(code == Some(0) && said.contains("could before") && !said.contains("GRANT outrider_writer"), "{said}");
    let (code, said) = producers(&database, &["list"])?;
    ensure!(code == Some(0) && said.contains("alice (uid") && said.contains("GRANTED BY"), "{said}");

    // All or nothing.
    let (code, said) = producers(&database, &["revoke", &role, "invoice", "shipment"])?;
    ensure!(code == Some(1) && said.contains("was not granted type shipment"), "{said}");
    assert!(appends(&database, &role, "invoice").await?);
    let (code, said) = producers(&database, &["revoke", &role, "invoice", "--why", "sold"])?;
    ensure!(code == Some(0) && said.contains("revoked type invoice"), "{said}");
    assert!(!appends(&database, &role, "invoice").await? && appends(&database, &role, "payment").await?);

    // Of a role that is gone, and of another one with its name.
    run(&mut owner, format!("DROP ROLE \"{role}\"")).await?;
    let gone = |state: &str| vec![("payment".to_owned(), state.to_owned())];
    assert_eq!(state(&producers(&database, &["list", "--json"])?.1)?, gone("no such role"));
    run(&mut owner, format!("CREATE ROLE \"{role}\" IN ROLE outrider_writer")).await?;
    assert_eq!(state(&producers(&database, &["list", "--json"])?.1)?, gone("role replaced"));
    assert!(!appends(&database, &role, "payment").await?);
    ensure!(producers(&database, &["grant", &role, "payment"])?.0 == Some(0));
    assert!(appends(&database, &role, "payment").await?);

    let log: Vec<(String, String, bool, Option<String>)> = sqlx::query_as(
        "SELECT action, aggregate_type, os_user LIKE 'alice (uid %' AND db_user = session_user, why FROM outbox_producer_log
         WHERE role_name = $1::text ORDER BY id",
    )
    .bind(&role)
    .fetch_all(&mut owner)
    .await?;
    let entry = |action: &str, granted: &str, why: Option<&str>| {
        (action.to_owned(), granted.to_owned(), true, why.map(str::to_owned))
    };
    let mut expected = vec![
        entry("grant", "invoice", Some("the new service")),
        entry("grant", "payment", Some("the new service")),
        entry("revoke", "invoice", Some("sold")),
        entry("grant", "payment", None),
    ];
    let mut log = log;
    log.sort();
    expected.sort();
    assert_eq!(log, expected);
    for change in
        ["DELETE FROM outbox_producer_log", "UPDATE outbox_producer_log SET why = ''", "TRUNCATE outbox_producer_log"]
    {
        assert!(run(&mut owner, change.to_owned()).await.is_err(), "{change}");
    }
    run(&mut owner, format!("DROP ROLE \"{role}\"")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_granted_is_refused_with_what_to_do() -> Result<()> {
    let database = TestDatabase::create("producer_grants_refused").await;
    for (arguments, code, words) in [
        (&["grant", "no such role", "invoice"][..], 1, "there is no role no such role: let an administrator make it"),
        (&["grant", "outrider_writer", "invoice", "order"], 1, "order is reserved for the api and the processor"),
        (&["revoke", "outrider_writer", "invoice"], 1, "`outrider producers list` shows the grants"),
        (&["grant", "outrider_writer", ""], 2, "1 to 200 bytes, and not 0"),
        (&["grant", "outrider_writer", &"x".repeat(201)], 2, "1 to 200 bytes, and not 201"),
        (&["grant", "outrider_writer"], 2, "TYPE"),
    ] {
        let (found, said) = producers(&database, arguments)?;
        ensure!(found == Some(code) && said.contains(words), "{arguments:?} ended with {found:?}: {said}");
    }
    let (_, said) = producers(&database, &["list", "--json"])?;
    ensure!(said.trim() == "[]", "nothing was granted: {said}");
    Ok(())
}
