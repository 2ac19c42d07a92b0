//! What the command says of a database, services say when they start.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shared::testing::{TestDatabase, eventually, eventually_within, kafka_brokers};
use sqlx::AssertSqlSafe;
use tokio::time::sleep;
use tools::stack::service::{Kind, Service};

use super::{doctor, examined, has};
use crate::harness::broker::{Broker, BrokerOptions};
use crate::harness::kafka_frames::FIND_COORDINATOR;
use crate::harness::scene::Scene;
use crate::harness::surroundings;
use crate::{reaper, supply};

#[tokio::test(flavor = "multi_thread")]
async fn services_say_the_same_words_when_they_start() -> Result<()> {
    let database = TestDatabase::create("services_say_the_same").await;
    let (_, name) = database.url.rsplit_once('/').context("a name")?;
    let plants = format!(
        "ALTER DATABASE \"{name}\" SET statement_timeout TO '2s'; REVOKE DELETE ON relay_members FROM outrider_relay;
        ALTER TABLE api_keys DISABLE TRIGGER api_keys_logged"
    );
    sqlx::raw_sql(AssertSqlSafe(plants)).execute(&database.pool).await?;
    let findings = examined(&mut doctor(&database.url, &kafka_brokers()))?;
    let folder = tempfile::tempdir()?;
    let mut surroundings = surroundings(&database.url, kafka_brokers(), folder.path().to_owned())?;
    surroundings.takes_role = true;
    let mut relay = Service::start(Kind::Relay, "relay", &surroundings, &[], &reaper()?)?;
    let log = eventually("the relay says what it was given", async || {
        let log = fs::read_to_string(folder.path().join("relay.log")).ok()?;
        log.contains("of the rights of outrider_relay").then_some(log)
    })
    .await;
    relay.stop().await?;
    let timeout = has(&findings, "database.settings", "warning", "statement_timeout is 2s")?;
    let trigger = has(&findings, "database.objects", "wrong", "api_keys_logged of api_keys")?;
    let grant = has(&findings, "database.grants", "wrong", "outrider_relay lacks 1")?;
    for found in [timeout, trigger] {
        // The log escapes what stands in quotes.
        ensure!(log.contains(&found.found), "{found:?} is not in {log}");
    }
    ensure!(log.contains(grant.advice.as_deref().context("what to do")?), "{grant:?} is not in {log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_and_a_processor_say_what_is_wrong_with_their_topics() -> Result<()> {
    let database = TestDatabase::create("a_relay_and_a_processor").await;
    let broker = Broker::start(&supply()?, &BrokerOptions::default()).await?;
    broker.create_topic("orders", &[1]).await?;
    broker.configure_topic("orders", &[("retention.ms", "3600000"), ("retention.bytes", "1000000")]).await?;
    let folder = tempfile::tempdir()?;
    let surroundings = surroundings(&database.url, broker.brokers(), folder.path().to_owned())?;
    let findings = examined(&mut doctor(&database.url, &broker.brokers()))?;
    let short = has(&findings, "kafka.topics", "warning", "retention.ms of the topic orders")?;
    for (kind, env) in
        [(Kind::Relay, [("RELAY_ROUTES", "order=orders")]), (Kind::Processor, [("PROCESSOR_GROUP", "any")])]
    {
        let mut service = Service::start(kind, kind.name(), &surroundings, &env, &reaper()?)?;
        eventually("it says what is wrong", async || {
            let log = fs::read_to_string(folder.path().join(format!("{}.log", kind.name()))).ok()?;
            log.contains(&short.found).then_some(())
        })
        .await;
        service.stop().await?;
    }
    Ok(())
}

/// Longer than we wait for a group's coordinator, with what librdkafka takes to ask for it again.
const LATE: Duration = Duration::from_secs(8);

/// librdkafka aborts the process when it has given up a question to a group's coordinator and finds it afterwards: see
/// `shared::kafka::rights`, which does not let it give up.
#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_found_late_ends_no_processor_and_no_doctor() -> Result<()> {
    let options = BrokerOptions { proxied: true, ..BrokerOptions::default() };
    let scene = Scene::start("a_coordinator_found_late", &options).await?;
    scene.broker.create_topic("orders", &[1]).await?;
    scene.broker.proxy()?.hold_back(FIND_COORDINATOR, LATE);
    let mut processor = Service::start(Kind::Processor, "processor", &scene.surroundings, &[], &scene.supply.reaper)?;
    let findings = examined(&mut doctor(&scene.database.url, &scene.broker.brokers()))?;
    has(&findings, "kafka.rights", "warning", "is not told")?;
    let log = scene.surroundings.logs.join("processor.log");
    eventually_within(LATE * 3, "the processor says what it was not told", async || {
        fs::read_to_string(&log).ok()?.contains("is not told").then_some(())
    })
    .await;
    scene.broker.proxy()?.hold_back(FIND_COORDINATOR, Duration::ZERO);
    // The answers that are late come now.
    sleep(LATE * 2).await;
    processor.wait_ready().await?;
    let ended = processor.stop().await?;
    ensure!(ended.success(), "{ended}");
    Ok(())
}
