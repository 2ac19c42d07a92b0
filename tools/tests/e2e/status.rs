//! `outrider status`, on a real Postgres with a real relay.

use std::process::Output;

use anyhow::{Context, Result};
use processor::Processor;
use processor::config::ProcessorConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use relay::RelayConfig;
use serde_json::Value;
use shared::config::Env;
use shared::kafka::KafkaConfig;
use shared::shutdown::Shutdown;
use shared::testing::{PATIENCE, TestDatabase, eventually, kafka_brokers, unique};
use sqlx::{Connection, PgConnection};

use super::command_line::outrider;

/// Rows of 100 keys.
const INSERT: &str = "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
    SELECT gen_random_uuid(), $1, (i % 100)::text, 1 + i / 100, 'thing.made', '{}' FROM generate_series(0, $2 - 1) i";

async fn insert(connection: &mut PgConnection, aggregate_type: &str, rows: i32) -> Result<()> {
    sqlx::query(INSERT).bind(aggregate_type).bind(rows).execute(connection).await?;
    Ok(())
}

fn run(url: &str, line: &str) -> Result<Output> {
    Ok(outrider(line).env("DATABASE_URL", url).output()?)
}

fn json(url: &str) -> Result<Value> {
    let output = run(url, "status --json")?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_backlog_lanes_partitions_and_who_holds_a_transaction() -> Result<()> {
    let database = TestDatabase::create("status_shows_backlog").await;
    let aggregate_type = unique("thing");
    let mut holder = PgConnection::connect(&database.url).await?;
    let mut held = holder.begin().await?;
    sqlx::query("SET LOCAL application_name = 'forgotten'").execute(&mut *held).await?;
    insert(&mut held, &aggregate_type, 1).await?;
    let mut writer = database.pool.acquire().await?;
    insert(&mut writer, &aggregate_type, 250).await?;

    // Nobody publishes yet.
    let before = json(&database.url)?;
    assert_eq!(before["relay"]["backlog"]["rows"], 250);
    assert_eq!(before["relay"]["backlog"]["exact"], true);
    assert!(before["relay"]["backlog"]["oldest_age_secs"].as_f64().is_some_and(|age| age > 0.0), "{before}");
    assert_eq!(before["relay"]["relays"], serde_json::json!([]));
    assert_eq!(before["relay"]["lanes"].as_array().map(Vec::len), Some(16));
    assert_eq!(before["relay"]["rate"]["published_per_second"], 0.0);
    assert_eq!(before["relay"]["rate"]["drain_secs"], Value::Null);
    let partitions = before["relay"]["partitions"].as_array().context("an array")?;
    let kinds: Vec<_> = partitions.iter().map(|partition| partition["state"].as_str().unwrap_or("?")).collect();
    assert_eq!(kinds, ["current", "ahead", "ahead"]);
    assert_eq!(before["relay"]["ids_ahead"], 15_000_000 - 251);
    let holders = before["transactions"]["open"].as_array().context("an array")?;
    let forgotten = holders.iter().find(|open| open["application"] == "forgotten").context("the holder is there")?;
    assert_eq!((&forgotten["holds"], &forgotten["state"]), (&"outbox rows".into(), &"idle in transaction".into()));
    let text = String::from_utf8(run(&database.url, "status")?.stdout)?;
    for word in ["none is running", "250 events", "not drained at this rate", "outbox_p5000001", "forgotten"] {
        assert!(text.contains(word), "'{word}' is not in\n{text}");
    }

    // A relay publishes, and the late row when it comes.
    let brokers = kafka_brokers();
    let settings = [
        ("DATABASE_URL", database.url.as_str()),
        ("DB_ROLE", "outrider_relay"),
        ("KAFKA_BROKERS", brokers.as_str()),
        ("ADMIN_BIND", "127.0.0.1:0"),
    ];
    let shutdown = Shutdown::new();
    let relay = tokio::spawn(relay::run(RelayConfig::from_env(&Env::from_pairs(settings))?, shutdown.clone()));
    let after = eventually("all is published", async || {
        let status = json(&database.url).ok()?;
        (status["relay"]["backlog"]["rows"] == 0).then_some(status)
    })
    .await;
    assert_eq!(after["relay"]["relays"][0]["lanes"], 16);
    assert_eq!(after["relay"]["lanes"][0]["owner"], after["relay"]["relays"][0]["relay"]);
    assert_eq!(after["relay"]["rate"]["drain_secs"], 0.0);
    shutdown.request();
    relay.await??;
    held.commit().await?;
    let late = json(&database.url)?;
    assert_eq!((&late["relay"]["backlog"]["rows"], &late["relay"]["backlog"]["late_rows"]), (&1.into(), &1.into()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_backlog_is_estimated() -> Result<()> {
    let database = TestDatabase::create("a_large_backlog_is").await;
    let mut writer = database.pool.acquire().await?;
    // One key, so all of it is in one lane: more than is counted of a lane.
    sqlx::raw_sql(
        "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
        SELECT gen_random_uuid(), 'thing', 'one', i, 'thing.made', '{}' FROM generate_series(1, 60000) i",
    )
    .execute(&mut *writer)
    .await?;
    let status = json(&database.url)?;
    assert_eq!(status["relay"]["backlog"]["exact"], false);
    assert_eq!(status["relay"]["backlog"]["rows"], 60_000);
    let text = String::from_utf8(run(&database.url, "status")?.stdout)?;
    assert!(text.contains("~60,000 events"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_the_schema_and_one_that_is_not_there_are_told_apart() -> Result<()> {
    let database = TestDatabase::create("a_database_without").await;
    sqlx::raw_sql("DROP TABLE _sqlx_migrations").execute(&database.pool).await?;
    let output = run(&database.url, "status")?;
    let text = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("run `outrider migrate`") && text.lines().count() == 1, "{text}");

    let closed = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let output = run(&format!("postgres://nobody@127.0.0.1:{closed}/none"), "status")?;
    let text = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("cannot connect to the database") && text.lines().count() == 1, "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_what_consumer_groups_do_and_what_waits() -> Result<()> {
    let database = TestDatabase::create("status_shows_groups").await;
    let (topic, group, brokers) = (unique("orders"), unique("processor"), kafka_brokers());
    let settings = [
        ("DATABASE_URL", database.url.as_str()),
        ("DB_ROLE", "outrider_processor"),
        ("KAFKA_BROKERS", brokers.as_str()),
        ("KAFKA_TOPIC_PARTITIONS", "2"),
        ("ADMIN_BIND", "127.0.0.1:0"),
        ("PROCESSOR_TOPICS", topic.as_str()),
        ("PROCESSOR_GROUP", group.as_str()),
    ];
    let env = Env::from_pairs(settings);
    let kafka = KafkaConfig::from_env(&env)?;
    kafka.ensure_topics("test", &[&topic]).await?;
    let producer: BaseProducer = kafka.producer("test", PATIENCE).create()?;
    let produce = |count: usize| {
        for partition in 0..2 {
            for _ in 0..count {
                let headers = OwnedHeaders::new().insert(Header { key: "aggregate_version", value: Some("1") });
                let record =
                    BaseRecord::<str, str>::to(&topic).partition(partition).key("1").payload("{}").headers(headers);
                producer.send(record).map_err(|(error, _)| error)?;
            }
        }
        producer.flush(PATIENCE)
    };
    produce(3)?;
    let look = || -> Result<Value> {
        let output =
            outrider("status --json").env("DATABASE_URL", &database.url).env("KAFKA_BROKERS", &brokers).output()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    assert_eq!(look()?["consumers"]["groups"], serde_json::json!([]), "nothing was done yet");

    // A processor without a handler passes over whatever it can read; these records are none, and park their key.
    let shutdown = Shutdown::new();
    let running = tokio::spawn({
        let (processor, shutdown) = (Processor::builder(ProcessorConfig::from_env(&env)?), shutdown.clone());
        async move { processor.run(&shutdown).await }
    });
    let caught_up = eventually("all is passed", async || {
        let status = look().ok()?;
        let group = &status["consumers"]["groups"][0];
        (group["lag"] == 0 && group["partitions"][1]["kafka_position"] == 3).then(|| group.clone())
    })
    .await;
    assert_eq!((&caught_up["group"], &caught_up["state"]), (&group.as_str().into(), &"Stable".into()));
    assert_eq!(caught_up["members"][0]["partitions"], 2);
    for partition in caught_up["partitions"].as_array().context("an array")? {
        assert_eq!(partition["owner"], caught_up["members"][0]["member"]);
        assert_eq!(
            (&partition["position"], &partition["end"], &partition["lag_secs"]),
            (&3.into(), &3.into(), &0.0.into())
        );
    }
    shutdown.request();
    running.await??;

    // Nobody works any more, and two more keys wait.
    produce(5)?;
    sqlx::query(
        "INSERT INTO blocked_keys (group_id, topic, record_key, partition, state, reason, fingerprint, attempts, next_attempt_at)
        VALUES ($1, $2, 'a', 0, 'parked', 'r', 'f', 10, NULL), ($1, $2, 'b', 0, 'retrying', 'r', 'f', 1, now())",
    )
    .bind(&group)
    .bind(&topic)
    .execute(&database.pool)
    .await?;
    let behind = look()?["consumers"]["groups"][0].clone();
    assert_eq!(
        (&behind["state"], &behind["members"], &behind["lag"]),
        (&"Empty".into(), &serde_json::json!([]), &10.into())
    );
    assert!(behind["lag_secs"].as_f64().is_some_and(|secs| secs > 0.0 && secs < 60.0), "{behind}");
    assert_eq!((&behind["blocked"]["parked"], &behind["blocked"]["retrying"]), (&2.into(), &1.into()));
    let text = outrider("status").env("DATABASE_URL", &database.url).env("KAFKA_BROKERS", &brokers).output()?.stdout;
    let text = String::from_utf8(text)?;
    for word in ["none is known", "10 events, the oldest", "1 retrying, 0 waiting, 2 parked", &format!("{topic}/1")] {
        assert!(text.contains(word), "'{word}' is not in\n{text}");
    }
    // Without Kafka there is still what Postgres knows.
    let alone = json(&database.url)?;
    assert_eq!(alone["consumers"]["kafka_error"], "KAFKA_BROKERS is not set");
    assert_eq!(alone["consumers"]["groups"][0]["partitions"][0]["position"], 3);
    assert_eq!(alone["consumers"]["groups"][0]["lag"], Value::Null);
    Ok(())
}
