//! What the command says of a database, services say when they start.

use std::fs;

use anyhow::{Context, Result, ensure};
use shared::testing::{TestDatabase, eventually, kafka_brokers};
use sqlx::AssertSqlSafe;
use tools::stack::service::{Kind, Service};

use super::{doctor, examined, has};
use crate::harness::broker::{Broker, BrokerOptions};
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
