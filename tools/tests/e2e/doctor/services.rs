//! Services that run.

use anyhow::Result;
use shared::testing::{TestDatabase, eventually, kafka_brokers};

use super::{doctor, examined, has};
use crate::harness::surroundings;
use crate::reaper;
use tools::stack::service::{Kind, Service};

#[tokio::test(flavor = "multi_thread")]
async fn services_are_asked_whether_they_are_ready_and_which_version_they_are() -> Result<()> {
    let database = TestDatabase::create("services_are_asked").await;
    let folder = tempfile::tempdir()?;
    let reaper = reaper()?;
    let good = surroundings(&database.url, kafka_brokers(), folder.path().to_owned())?;
    let mut api = Service::start(Kind::Api, "api", &good, &[("API_BIND", "127.0.0.1:0")], &reaper)?;
    api.wait_ready().await?;
    let bad = surroundings(&database.url, "127.0.0.1:9".to_owned(), folder.path().to_owned())?;
    let mut relay = Service::start(Kind::Relay, "relay", &bad, &[], &reaper)?;
    let (ready, waits) = (api.admin_url(), relay.admin_url());
    let findings = eventually("the relay says what it waits for", async || {
        let mut command = doctor(&database.url, &kafka_brokers());
        command.args(["--admin", &ready, "--admin", &waits, "--admin", "http://127.0.0.1:9"]);
        let findings = examined(&mut command).ok()?;
        has(&findings, "services.ready", "wrong", "is not ready: kafka: ").is_ok().then_some(findings)
    })
    .await;
    has(&findings, "services.ready", "fine", &ready)?;
    has(&findings, "services.ready", "wrong", "http://127.0.0.1:9/ does not answer")?;
    has(&findings, "services.version", "fine", env!("CARGO_PKG_VERSION"))?;
    relay.stop().await?;
    api.stop().await?;
    Ok(())
}
