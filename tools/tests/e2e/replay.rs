//! `outrider replay`, on what a real relay has published.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use relay::RelayConfig;
use serde_json::Value;
use shared::config::Env;
use shared::shutdown::Shutdown;
use shared::testing::{Record, TestDatabase, all_settled, kafka_brokers, published, unique};

use super::command_line::outrider;

const KEYS: i64 = 3;
const VERSIONS: i64 = 10;

/// A database with three keys of ten events, all of them published.
struct Stage {
    database: TestDatabase,
    aggregate_type: String,
}

impl Stage {
    async fn new(test: &str) -> Result<Self> {
        let stage = Self { database: TestDatabase::create(test).await, aggregate_type: unique("thing") };
        sqlx::query(
            "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
             SELECT gen_random_uuid(), $1, 'k' || key, version, 'thing.changed', '{}'
             FROM generate_series(1, $2) version, generate_series(1, $3) key ORDER BY version, key",
        )
        .bind(&stage.aggregate_type)
        .bind(VERSIONS)
        .bind(KEYS)
        .execute(&stage.database.pool)
        .await?;
        let brokers = kafka_brokers();
        let settings = [
            ("DATABASE_URL", stage.database.url.as_str()),
            ("DB_ROLE", "outrider_relay"),
            ("KAFKA_BROKERS", brokers.as_str()),
            ("ADMIN_BIND", "127.0.0.1:0"),
        ];
        let shutdown = Shutdown::new();
        let relay = tokio::spawn(relay::run(RelayConfig::from_env(&Env::from_pairs(settings))?, shutdown.clone()));
        all_settled(&stage.database.pool).await;
        shutdown.request();
        relay.await??;
        Ok(stage)
    }

    /// Runs `outrider replay` in the relay's environment and this. Its exit code, and what it said.
    fn replay_with(&self, line: &str, env: &[(&str, &str)]) -> Result<(Option<i32>, String)> {
        let output = outrider(&format!("replay {line}"))
            .env("DATABASE_URL", &self.database.url)
            .env("DB_ROLE", "outrider_relay")
            .env("KAFKA_BROKERS", kafka_brokers())
            .envs(env.iter().copied())
            .output()?;
        Ok((output.status.code(), String::from_utf8([output.stdout, output.stderr].concat())?))
    }

    fn replay(&self, line: &str) -> Result<String> {
        let (code, said) = self.replay_with(line, &[])?;
        assert_eq!(code, Some(0), "{line}: {said}");
        Ok(said)
    }

    /// The records of the relay's own topic.
    async fn original(&self) -> Vec<Record> {
        published(&format!("{}s", self.aggregate_type), 30).await
    }
}

/// Keys with versions and event ids, in an order that does not depend on partitions.
fn sorted(records: &[Record]) -> Vec<(&str, i64, &str)> {
    let mut all: Vec<_> =
        records.iter().map(|record| (record.key.as_str(), record.version, record.event_id.as_str())).collect();
    all.sort_unstable();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_a_replay_would_do_and_does_nothing() -> Result<()> {
    let stage = Stage::new("a_dry_run_says").await?;
    let again = unique("again");
    let said = stage.replay(&format!("--since 1h --topic {again} --dry-run"))?;
    assert!(said.contains(&format!("30 events of 3 keys would be published again to {again}: ids 1 to 30")), "{said}");
    assert!(said.contains(&format!("30 {}", stage.aggregate_type)) && !said.contains("published again\n"), "{said}");
    let report: Value = serde_json::from_str(&stage.replay("--from-id 4 --to-id 9 --dry-run --json")?)?;
    assert_eq!((&report["events"], &report["published"]), (&6.into(), &0.into()));
    assert_eq!((&report["first_id"], &report["last_id"]), (&4.into(), &9.into()));
    assert_eq!(stage.original().await.len(), 30, "nothing was published again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_published_again_by_key_by_time_and_by_id() -> Result<()> {
    let stage = Stage::new("events_are_published_again").await?;
    // To their own topic, one key.
    let said = stage.replay(&format!("--key {}/k2", stage.aggregate_type))?;
    assert!(said.contains("10 events of 1 keys will be published again: ids 2 to 29"), "{said}");
    assert!(said.contains("10 events published again"), "{said}");
    let all = stage.original().await;
    assert_eq!(all.len(), 40);
    let of_k2: Vec<(i64, &str)> = all
        .iter()
        .filter(|record| record.key == "k2")
        .map(|record| (record.version, record.event_id.as_str()))
        .collect();
    let (first, second) = of_k2.split_at_checked(10).context("ten and ten")?;
    assert_eq!(first, second, "the same events in the same order");
    assert!(first.iter().map(|(version, _)| *version).eq(1..=10));

    // To another topic, all of the last hour.
    let (by_time, by_id) = (unique("by-time"), unique("by-id"));
    assert!(stage.replay(&format!("--since 1h --topic {by_time}"))?.contains("30 events published again"));
    let copied = published(&by_time, 30).await;
    let mut original = sorted(&all);
    original.dedup();
    assert_eq!(sorted(&copied), original);

    // A range of ids.
    assert!(stage.replay(&format!("--from-id 4 --to-id 9 --topic {by_id}"))?.contains("6 events published again"));
    let ranged = published(&by_id, 6).await;
    assert!(ranged.iter().all(|record| (2..=3).contains(&record.version)) && ranged.len() == 6);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_holds_a_replay_back() -> Result<()> {
    let stage = Stage::new("a_rate_holds_a_replay").await?;
    let topic = unique("slow");
    let start = Instant::now();
    stage.replay(&format!("--from-id 1 --topic {topic} --rate 20"))?;
    // The thirtieth goes out 29 twentieths of a second after the first.
    assert!(start.elapsed() >= Duration::from_millis(1_450), "{:?}", start.elapsed());
    assert_eq!(published(&topic, 30).await.len(), 30);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_cannot_be_done_says_what_to_do() -> Result<()> {
    let stage = Stage::new("a_replay_that_cannot").await?;
    let said = stage.replay("--key nothing/1")?;
    assert!(said.contains("no event of the outbox is selected") && said.contains("RELAY_RETENTION"), "{said}");
    for (line, env, code, words) in [
        ("--from-id 9 --to-id 4", &[][..], 1, &["--from-id is higher than --to-id"][..]),
        ("", &[], 2, &["--key <TYPE/ID>"]),
        ("--key order", &[], 2, &["is not of the form TYPE/ID"]),
        ("--since yesterday", &[], 2, &["nor a length such as 15m or 2h"]),
        ("--from-id 0", &[], 2, &["--from-id"]),
        ("--from-id 1 --rate 0", &[], 2, &["--rate"]),
        ("--from-id 1 --topic no/topic", &[], 1, &["no/topic"]),
        (
            "--from-id 1 --topic not-there",
            &[("KAFKA_CREATE_TOPICS", "false")],
            1,
            &["the topic 'not-there' does not exist, and KAFKA_CREATE_TOPICS is false"],
        ),
    ] {
        let (found, said) = stage.replay_with(line, env)?;
        assert_eq!(found, Some(code), "{line}: {said}");
        for word in words {
            assert!(said.contains(word), "'{word}' is not in what '{line}' says: {said}");
        }
    }
    assert_eq!(stage.original().await.len(), 30, "nothing was published again");
    Ok(())
}
