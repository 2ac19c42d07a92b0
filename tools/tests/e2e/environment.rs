//! The environment as people, Kubernetes and shells make it, for each service.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use shared::testing::{TestDatabase, eventually, kafka_brokers};
use tools::http;
use tools::stack::{Kind, Service};

use super::harness::surroundings;
use super::{OUTRIDER, reaper};

/// A service with nothing but these variables, in a folder without a file of settings.
fn service(kind: Kind, folder: &Path, variables: &[(&str, &str)]) -> Result<Command> {
    let program: PathBuf = Path::new(OUTRIDER).parent().context("a folder")?.join(format!("outrider-{}", kind.name()));
    let mut command = Command::new(program);
    command.env_clear().envs(variables.iter().copied()).current_dir(folder);
    command.env("ADMIN_BIND", "127.0.0.1:0").env("API_BIND", "127.0.0.1:0").env("API_AUTH", "none");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

/// What a service says that refuses its settings.
fn refused(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    let said = String::from_utf8([output.stdout, output.stderr].concat())?;
    ensure!(output.status.code() == Some(64), "it ended with {:?}: {said}", output.status);
    ensure!(said.lines().count() == 1, "more than a line: {said}");
    Ok(said)
}

const DATABASE: (&str, &str) = ("DATABASE_URL", "postgres://unknown@127.0.0.1:1/none");

#[test]
fn a_setting_that_would_mislead_is_refused_in_one_line() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for kind in Kind::ALL {
        for (name, value, words) in [
            ("RUST_LOG", "warning", "'warning' is neither a level"),
            ("RUST_LOG", "info;relay=debug", "separate directives by commas"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4317", "http://"),
            ("LOG_FORMAT", "yaml", "is text or json, not 'yaml'"),
        ] {
            let said = refused(&mut service(kind, folder.path(), &[DATABASE, (name, value)])?)?;
            ensure!(said.contains(name) && said.contains(words), "{}: {said}", kind.name());
        }
        let mut unreadable = service(kind, folder.path(), &[DATABASE])?;
        unreadable.env("DB_SCHEMA", OsString::from_vec(vec![b'p', 0xff]));
        let said = refused(&mut unreadable)?;
        ensure!(said.contains("DB_SCHEMA") && said.contains("UTF-8"), "{}: {said}", kind.name());
        let said =
            refused(&mut service(kind, folder.path(), &[DATABASE, ("LOG_FORMAT", "json"), ("RUST_LOG", "loud")])?)?;
        let line: Value = serde_json::from_str(&said)?;
        ensure!(line["level"] == "ERROR" && line["message"].to_string().contains("RUST_LOG"), "{line}");
    }
    Ok(())
}

#[test]
fn a_password_in_an_address_of_keys_is_not_shown() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let jwt = [("API_JWT_ALGORITHM", "RS256"), ("API_JWT_JWKS_URL", "http://user:secret@issuer.test/keys")];
    let mut api = service(Kind::Api, folder.path(), &[&[DATABASE], &jwt[..]].concat())?;
    let said = refused(api.env("API_AUTH", "required"))?;
    ensure!(said.contains("API_JWT_JWKS_URL") && !said.contains("secret"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_stopped_while_it_waits_for_postgres_has_ended_well() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for kind in Kind::ALL {
        let child = service(kind, folder.path(), &[DATABASE])?.spawn()?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let pid = Pid::from_raw(child.id().try_into()?).context("it runs")?;
        kill_process(pid, Signal::TERM)?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8([output.stdout, output.stderr].concat())?;
        ensure!(output.status.code() == Some(0), "{} ended with {:?}: {said}", kind.name(), output.status);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubernetes_service_named_db_changes_nothing_and_metrics_come_as_they_are_asked_for() -> Result<()> {
    let database = TestDatabase::create("kubernetes_db").await;
    let folder = tempfile::tempdir()?;
    let surroundings = surroundings(&database.url, kafka_brokers(), folder.path().to_owned())?;
    let links = [("DB_PORT", "tcp://10.96.0.7:5432"), ("DB_SERVICE_HOST", "10.96.0.7")];
    for kind in Kind::ALL {
        let mut service = Service::start(kind, kind.name(), &surroundings, &links, &reaper()?)?;
        service.wait_ready().await?;
        let metrics = format!("{}/metrics", service.admin_url());
        let client = http::client()?;
        let text = client.get(&metrics).header("accept", "text/plain;version=0.0.4").send().await?;
        ensure!(text.headers()["content-type"].to_str()?.starts_with("text/plain"), "{:?}", text.headers());
        let text = text.text().await?;
        ensure!(!text.contains("# EOF") && text.contains("_total "), "{text}");
        let open = client.get(&metrics).send().await?.text().await?;
        ensure!(open.ends_with("# EOF\n"), "{open}");
        for path in ["metrics", "livez", "readyz"] {
            let head = client.head(format!("{}/{path}", service.admin_url())).send().await?;
            ensure!(head.status() == 200, "{path}: {}", head.status());
        }
        service.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_shutdown_is_announced_orders_are_taken_and_the_service_is_not_ready() -> Result<()> {
    let database = TestDatabase::create("drain_delay").await;
    let folder = tempfile::tempdir()?;
    let surroundings = surroundings(&database.url, kafka_brokers(), folder.path().to_owned())?;
    let env = [("API_AUTH", "none"), ("SHUTDOWN_DRAIN_SECS", "4")];
    let mut api = Service::start(Kind::Api, "api", &surroundings, &env, &reaper()?)?;
    api.wait_ready().await?;
    let (url, admin) = (api.api_url().context("an API")?, api.admin_url());
    api.process().signal(Signal::TERM)?;
    let client = http::client()?;
    eventually("it is not ready", async || {
        let answer = client.get(format!("{admin}/readyz")).send().await.ok()?;
        (answer.status() == 503).then_some(())
    })
    .await;
    let order = client
        .post(format!("{url}/orders"))
        .header("content-type", "application/json")
        .body(r#"{"user_id": 1, "product_id": 2, "quantity": 3}"#)
        .send()
        .await?;
    assert_eq!(order.status(), 201);
    ensure!(api.process().wait().await?.success());
    ensure!(client.get(&url).send().await.is_err(), "the port is closed");
    Ok(())
}
