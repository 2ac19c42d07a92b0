//! What is planted in brokers, topics and settings, and found.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use rustix::process::{Signal, kill_process_group};
use shared::config::Env;
use shared::kafka::{KafkaConfig, TopicState};
use shared::testing::{TestDatabase, eventually, kafka_brokers, unique};

use super::{Finding, doctor, examined, has};
use crate::harness::broker::{AUTHORIZER, Broker, BrokerOptions};
use crate::supply;

/// A run with a variable or more.
fn with(database: &TestDatabase, brokers: &str, env: &[(&str, &str)]) -> Result<Vec<Finding>> {
    examined(doctor(&database.url, brokers).envs(env.iter().copied()))
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_are_bad_or_contradict_each_other_are_found() -> Result<()> {
    let database = TestDatabase::create("settings_that_are_bad").await;
    let brokers = kafka_brokers();
    let group = unique("doctored");
    for (env, check, verdict, words) in [
        ([("RELAY_LEASE_MS", "7000"), ("", "")], "settings", "wrong", "RELAY_LEASE_MS: is 7000"),
        ([("PROCESSOR_RETRY_FIRST_MS", "0"), ("", "")], "settings", "wrong", "PROCESSOR_RETRY_FIRST_MS: "),
        ([("API_QUEUE_MAX", "0"), ("", "")], "settings", "wrong", "API_QUEUE_MAX: "),
        ([("DB_SCHEMA", "shop"), ("", "")], "settings", "wrong", "DB_SCHEMA: "),
        ([("PROCESSOR_TOPICS", "invoices"), ("", "")], "settings.together", "warning", "reads the topic invoices"),
        ([("KAFKA_TOPIC_REPLICATION", "3"), ("", "")], "kafka.replication", "wrong", "there are 1 brokers"),
        (
            [("KAFKA_CREATE_TOPICS", "false"), ("RELAY_ROUTES", "order=missing-topic")],
            "kafka.topics",
            "wrong",
            "the topic missing-topic does not exist",
        ),
    ] {
        let env: BTreeMap<&str, &str> = env.into_iter().filter(|(name, _)| !name.is_empty()).collect();
        let findings = examined(doctor(&database.url, &brokers).env("PROCESSOR_GROUP", &group).envs(&env))?;
        has(&findings, check, verdict, words)?;
    }
    let findings = with(&database, "127.0.0.1:9", &[])?;
    has(&findings, "kafka.connection", "wrong", "refused")?;
    // What concerns only the api asks no broker.
    let mut of_api = doctor(&database.url, "127.0.0.1:9");
    let findings = examined(of_api.args(["--for", "api"]))?;
    assert!(findings.iter().all(|found| !found.check.starts_with("kafka.")), "{findings:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_and_positions_that_lose_events_are_found() -> Result<()> {
    let database = TestDatabase::create("topics_that_lose_events").await;
    let broker = Broker::start(&supply()?, &BrokerOptions::default()).await?;
    broker.create_topic("orders", &[1]).await?;
    let healthy = with(&database, &broker.brokers(), &[])?;
    // The harness makes topics so; with one replica nothing is ever in sync with another.
    has(&healthy, "kafka.topics", "wrong", "takes nothing: 1 of 2 replicas")?;
    let settings = [
        ("cleanup.policy", "compact"),
        ("max.message.bytes", "100000"),
        ("message.timestamp.before.max.ms", "60000"),
        ("retention.bytes", "1000000"),
        ("retention.ms", "3600000"),
        ("unclean.leader.election.enable", "true"),
    ];
    broker.configure_topic("orders", &settings).await?;
    let findings = eventually("the settings are told", async || {
        let findings = with(&database, &broker.brokers(), &[]).ok()?;
        has(&findings, "kafka.topics", "warning", "is compacted").is_ok().then_some(findings)
    })
    .await;
    for words in ["unclean.leader.election", "timestamp.before", "max.message.bytes", "retention.bytes", "retention.ms"]
    {
        has(&findings, "kafka.topics", "warning", words)?;
    }
    broker.configure_topic("orders", &[("retention.ms", "864000000")]).await?;
    sqlx::raw_sql(
        "INSERT INTO consumer_offsets (group_id, topic, partition, next_offset) VALUES ('outrider-processor', 'orders', 0, 700)",
    )
    .execute(&database.pool)
    .await?;
    // A group that has offsets, and whose members are gone.
    let consumer = KafkaConfig::from_env(&Env::from_pairs([("KAFKA_BROKERS", &*broker.brokers())]))?;
    let consumer: BaseConsumer = consumer.consumer("test", "outrider-processor").create()?;
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset("orders", 0, Offset::Offset(0))?;
    consumer.commit(&offsets, CommitMode::Sync)?;
    eventually("retention and positions are judged", async || {
        let findings = with(&database, &broker.brokers(), &[]).ok()?;
        let lost = has(&findings, "processor.positions", "wrong", "outrider offsets accept --group outrider-processor");
        let inbox = has(&findings, "processor.inbox", "wrong", "PROCESSOR_INBOX_RETENTION: is shorter (604800 s)");
        let group = has(&findings, "processor.group", "warning", "the group outrider-processor has no member");
        (lost.is_ok() && inbox.is_ok() && group.is_ok()).then_some(())
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_refuse_or_do_not_answer_are_found() -> Result<()> {
    let database = TestDatabase::create("brokers_that_refuse").await;
    let supply = supply()?;
    let options = BrokerOptions { settings: AUTHORIZER.to_vec(), second: true, ..BrokerOptions::default() };
    let mut broker = Broker::start(&supply, &options).await?;
    broker.create_topic("orders", &[1, 2]).await?;
    broker.create_topic("things", &[1]).await?;
    broker.configure_topic("things", &[("min.insync.replicas", "1")]).await?;
    let env = [("RELAY_ROUTES", "order=orders,thing=things")];
    let findings = with(&database, &broker.brokers(), &env)?;
    has(&findings, "kafka.topics", "warning", "the topic things has one replica")?;
    has(&findings, "kafka.topics", "warning", "is 2, the number of its replicas")?;
    has(&findings, "kafka.rights", "fine", "")?;
    has(&findings, "kafka.version", "fine", "4.0 or newer")?;

    broker.allow_writes(&supply, "orders", false).await?;
    let findings = with(&database, &broker.brokers(), &env)?;
    has(&findings, "kafka.rights", "wrong", "we may not WRITE on the topic orders")?;
    broker.allow_writes(&supply, "orders", true).await?;
    let deny = ["--add", "--force", "--deny-principal", "User:ANONYMOUS", "--operation"];
    let acls = "org.apache.kafka.tools.AclCommand";
    // Brokers are users of the cluster too: what no rule of it allows would be forbidden to them.
    let rest = ["--add", "--force", "--cluster", "--allow-principal", "User:ANONYMOUS", "--operation", "All"];
    broker.run(&supply, acls, &rest).await?;
    broker.run(&supply, acls, &[&deny[..], &["Create", "--cluster"]].concat()).await?;
    broker.run(&supply, acls, &[&deny[..], &["Create", "--topic", "parcels"]].concat()).await?;
    broker.run(&supply, acls, &[&deny[..], &["Read", "--group", "outrider-processor"]].concat()).await?;
    let findings = with(&database, &broker.brokers(), &[("RELAY_ROUTES", "order=orders,parcel=parcels")])?;
    has(&findings, "kafka.topics", "wrong", "the topic parcels does not exist, and could not be made")?;
    has(&findings, "kafka.rights", "wrong", "the group outrider-processor")?;

    // It is a member for nine seconds more; on a busy machine the look may come later.
    let second = broker.second()?.process()?.pid();
    let mut is_found = false;
    for _ in 0..5 {
        kill_process_group(second, Signal::STOP)?;
        let findings = with(&database, &broker.brokers(), &env)?;
        kill_process_group(second, Signal::CONT)?;
        is_found = has(&findings, "kafka.addresses", "wrong", "do not answer from here").is_ok();
        if is_found {
            break;
        }
        broker.has_brokers(2).await?;
    }
    ensure!(is_found, "a broker that stands still is not found");
    broker.second()?.kill().await?;
    eventually("the dead broker is missed", async || {
        let findings = with(&database, &broker.brokers(), &env).ok()?;
        has(&findings, "kafka.topics", "wrong", "takes nothing: 1 of 2 replicas").ok().map(drop)
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_written_only_if_asked_for_and_leaves_nothing() -> Result<()> {
    let database = TestDatabase::create("a_record_is_written").await;
    let broker = Broker::start(&supply()?, &BrokerOptions::default()).await?;
    let brokers = broker.brokers();
    let written = |findings: &[Finding]| has(findings, "kafka.write", "fine", "outrider-doctor").is_ok();
    assert!(!written(&examined(&mut doctor(&database.url, &brokers))?));
    let findings = examined(doctor(&database.url, &brokers).arg("--write"))?;
    assert!(written(&findings), "{findings:#?}");
    has(&findings, "kafka.clock", "fine", "within 1 s")?;
    eventually("the topic is gone", async || {
        let config = KafkaConfig::from_env(&Env::from_pairs([("KAFKA_BROKERS", &*brokers)])).ok()?;
        let state = config.topics("test").look("outrider-doctor").await.ok()?;
        (state == TopicState::Missing).then_some(())
    })
    .await;
    Ok(())
}
