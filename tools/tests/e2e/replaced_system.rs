//! The clients and the settings of the system that this one replaces go on working unchanged.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use shared::testing::{TestDatabase, eventually_within};
use sqlx::postgres::PgConnectOptions;
use tools::http::client;
use tools::stack::{Kind, Launch, Service};

use super::harness::surroundings;
use super::{reaper, supply};

/// What its documentation gives as the answer to `POST /orders`.
const DOCUMENTED: &str = r#"{"ID":1,"CreatedAt":"2023-07-14T10:30:00Z","UpdatedAt":"2023-07-14T10:30:00Z","DeletedAt":null,"user_id":123,"product_id":456,"quantity":2,"status":"Pending"}"#;

const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/replaced_system/client.go");

/// An api with a database of its own.
async fn api(database: &TestDatabase, logs: &Path) -> Result<Service> {
    let surroundings = surroundings(&database.url, String::new(), logs.to_owned())?;
    let mut api = Service::start(Kind::Api, "api", &surroundings, &[], &reaper()?)?;
    api.wait_ready().await?;
    Ok(api)
}

/// Posts this, with an Idempotency-Key if there is one. Returns the body of the answer.
async fn post(url: &str, key: Option<&str>, body: &Value) -> Result<String> {
    let request = client()?.post(url).header("content-type", "application/json").body(body.to_string());
    let request = key.iter().fold(request, |request, key| request.header("idempotency-key", *key));
    let answer = request.send().await?;
    ensure!(answer.status().is_success(), "{}: {}", answer.status(), answer.text().await?);
    Ok(answer.text().await?)
}

async fn get(url: &str) -> Result<String> {
    Ok(client()?.get(url).send().await?.text().await?)
}

/// The names of an order's fields, in the order in which they come.
fn fields(body: &str) -> Vec<String> {
    let names = body.split(['{', ',']).filter_map(|part| part.strip_prefix('"')?.split_once("\":"));
    names.map(|(name, _)| name.to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_answered_as_the_replaced_system_documents_it() -> Result<()> {
    let (database, logs) = (TestDatabase::create("an_order_is_answered_as").await, tempfile::tempdir()?);
    let mut api = api(&database, logs.path()).await?;
    let url = api.api_url().context("the api has a URL")?;
    let order = json!({"user_id": 123, "product_id": 456, "quantity": 2});
    let orders = format!("{url}/orders");
    let body = post(&orders, Some("a"), &order).await?;
    let (reply, documented): (Value, Value) = (serde_json::from_str(&body)?, serde_json::from_str(DOCUMENTED)?);
    let expected = fields(DOCUMENTED);
    assert_eq!(fields(&body)[..expected.len()], expected, "{body}");
    for name in &expected {
        let (ours, theirs) = (&reply[name], &documented[name]);
        if name.ends_with("At") && !theirs.is_null() {
            let text = ours.as_str().context("a time is a text")?;
            let time: DateTime<Utc> = text.parse()?;
            assert!(text.ends_with('Z') && (Utc::now() - time).num_minutes() < 10, "{name}: {text}");
        } else {
            assert_eq!(ours, theirs, "{name}");
        }
    }
    // So it is wherever an order is shown.
    assert_eq!(post(&orders, Some("a"), &order).await?, body, "the answer kept for the key");
    assert_eq!(get(&format!("{orders}/1")).await?, body);
    assert_eq!(get(&orders).await?, format!("{{\"orders\":[{body}],\"next\":null}}"));
    let batch: Value = serde_json::from_str(&post(&format!("{orders}/batch"), None, &json!([order])).await?)?;
    assert!(batch["results"][0]["order"]["ID"].as_u64() > Some(1), "{batch}");
    assert_eq!(fields(&batch["results"][0]["order"].to_string()).len(), fields(&body).len(), "{batch}");
    let cancelled = post(&format!("{orders}/1/cancel"), None, &Value::Null).await?;
    assert_eq!(fields(&cancelled), fields(&body));
    api.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_go_client_that_reads_by_the_documented_names_sees_ten_different_ids() -> Result<()> {
    let (database, logs) = (TestDatabase::create("a_go_client_that_reads").await, tempfile::tempdir()?);
    let mut api = api(&database, logs.path()).await?;
    let url = api.api_url().context("the api has a URL")?;
    let output = Command::new("go").args(["run", CLIENT, "--url", &url]).env("GOFLAGS", "").output().context("go")?;
    let (said, complaints) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(output.status.success(), "{complaints}");
    let ids: BTreeSet<&str> = said.lines().filter_map(|line| line.strip_suffix(" Pending")).collect();
    assert_eq!(ids.len(), 10, "{said}");
    assert!(!said.contains("nil"), "{said}");
    api.stop().await?;
    Ok(())
}

/// Its Kafka is on `localhost:9092`, where this test has none: the services say so, and wait.
#[tokio::test(flavor = "multi_thread")]
async fn its_settings_alone_start_all_services() -> Result<()> {
    let (database, folder, supply) =
        (TestDatabase::create("its_settings_alone").await, tempfile::tempdir()?, supply()?);
    let options: PgConnectOptions = database.url.parse()?;
    let password = database.url.split_once("://").and_then(|(_, rest)| rest.split_once('@')?.0.split_once(':'));
    let settings = format!(
        "DB_HOST={}\nDB_USER={}\nDB_PASSWORD={}\nDB_NAME={}\nDB_PORT={}\n",
        options.get_host(),
        options.get_username(),
        password.map_or("unused", |(_, password)| password),
        options.get_database().context("a database")?,
        options.get_port()
    );
    std::fs::write(folder.path().join(".env"), settings)?;
    let binaries = surroundings(&database.url, String::new(), folder.path().to_owned())?.binaries;
    for (kind, says) in [
        (Kind::Api, "API port is open"),
        (Kind::Relay, "KAFKA_BROKERS is not set: using localhost:9092"),
        (Kind::Processor, "KAFKA_BROKERS is not set: using localhost:9092"),
    ] {
        let log = folder.path().join(format!("{}.log", kind.name()));
        // The ports of a machine are not this test's alone.
        let mut launch = Launch::new(kind.name(), binaries.join(format!("outrider-{}", kind.name())))
            .current_dir(folder.path())
            .env("ADMIN_BIND", "127.0.0.1:0")
            .env("API_BIND", "127.0.0.1:0")
            .env("API_AUTH", "none")
            .log(&log);
        for name in ["DATABASE_URL", "KAFKA_BROKERS", "DB_ROLE"] {
            launch = launch.env_remove(name);
        }
        let mut process = launch.spawn(&supply.reaper)?;
        eventually_within(Duration::from_secs(20), says, async || {
            std::fs::read_to_string(&log).ok()?.contains(says).then_some(())
        })
        .await;
        assert!(process.try_wait()?.is_none(), "{kind:?} runs");
        process.stop().await?;
    }
    Ok(())
}
