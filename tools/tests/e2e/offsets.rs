//! `outrider offsets`, on a topic of a real Kafka.

use anyhow::{Result, ensure};
use shared::config::Env;
use shared::kafka::KafkaConfig;
use shared::testing::{TestDatabase, eventually, kafka_brokers, unique};

use super::command_line::outrider;

/// A database with positions in an empty topic of two partitions.
struct Stage {
    database: TestDatabase,
    topic: String,
}

impl Stage {
    async fn new(test: &str) -> Result<Self> {
        let database = TestDatabase::create(test).await;
        let env = Env::from_pairs([("KAFKA_BROKERS", kafka_brokers().as_str()), ("KAFKA_TOPIC_PARTITIONS", "2")]);
        let topic = unique("offsets");
        KafkaConfig::from_env(&env)?.ensure_topics("test", &[&topic]).await?;
        for (group, partition, offset) in [("g 1", 0, 7), ("g 1", 1, 0), ("other", 0, 5), ("other", 2, 5)] {
            sqlx::query(
                "INSERT INTO consumer_offsets (group_id, topic, partition, next_offset) VALUES ($1, $2, $3, $4)",
            )
            .bind(group)
            .bind(&topic)
            .bind(partition)
            .bind(i64::from(offset))
            .execute(&database.pool)
            .await?;
        }
        let stage = Self { database, topic };
        eventually("the broker has heard of the topic", async || {
            let (_, said) = stage.offsets(&["list", "--json"]).ok()?;
            let rows: Vec<serde_json::Value> = serde_json::from_str(&said).ok()?;
            rows.first()?["high"].is_i64().then_some(())
        })
        .await;
        Ok(stage)
    }

    /// Runs `outrider offsets` as an operator. Its exit code, and all that it said.
    fn offsets(&self, arguments: &[&str]) -> Result<(Option<i32>, String)> {
        let output = outrider("offsets")
            .args(arguments)
            .env("DATABASE_URL", &self.database.url)
            .env("DB_ROLE", "outrider_operator")
            .env("KAFKA_BROKERS", kafka_brokers())
            .output()?;
        Ok((output.status.code(), String::from_utf8([output.stdout, output.stderr].concat())?))
    }

    async fn positions(&self) -> Result<Vec<(String, i32, i64)>> {
        let sql = "SELECT group_id, partition, next_offset FROM consumer_offsets ORDER BY group_id, partition";
        Ok(sqlx::query_as(sql).fetch_all(&self.database.pool).await?)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_are_listed_beside_what_the_broker_has() -> Result<()> {
    let stage = Stage::new("positions_are_listed").await?;
    let (code, said) = stage.offsets(&["list", "--json"])?;
    ensure!(code == Some(0), "{said}");
    let rows: Vec<serde_json::Value> = serde_json::from_str(&said)?;
    let brief =
        |row: &serde_json::Value| format!("{}/{} {} {}", row["group"], row["partition"], row["position"], row["lag"]);
    let found: Vec<String> = rows.iter().map(brief).collect();
    assert_eq!(found, ["\"g 1\"/0 7 -7", "\"g 1\"/1 0 0", "\"other\"/0 5 -5", "\"other\"/2 5 null"]);
    assert_eq!((&rows[0]["low"], &rows[0]["high"]), (&0.into(), &0.into()));

    let (_, table) = stage.offsets(&["list", "--group", "g 1", "--topic", &stage.topic])?;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["GROUP", "TOPIC", "PARTITION", "POSITION", "LOW", "HIGH", "LAG"]);
    assert_eq!(lines[1], ["g", "1", stage.topic.as_str(), "0", "7", "0", "0", "-7"]);
    assert_eq!(lines.len(), 3, "{table}");
    assert_eq!(stage.offsets(&["list", "--group", "nobody"])?.1, "no group has a position\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_lost_positions_are_accepted_and_only_with_a_yes() -> Result<()> {
    let stage = Stage::new("only_lost_positions").await?;
    let before = stage.positions().await?;
    let accept = ["accept", "--group", "g 1", "--topic", &stage.topic];
    let (code, said) = stage.offsets(&accept)?;
    assert!(code == Some(1) && said.contains("--yes"), "without a terminal nobody confirms: {said}");
    let (code, said) = stage.offsets(&["accept", "--group", "g 1", "--topic", "no-such-topic", "--yes"])?;
    assert!(code == Some(1) && said.contains("Kafka has no topic 'no-such-topic'"), "{said}");
    let (code, said) = stage.offsets(&[&accept[..], &["--partition", "1", "--yes"]].concat())?;
    assert_eq!((code, said.as_str()), (Some(0), "no position is lost: there is nothing to accept\n"));
    assert_eq!(stage.positions().await?, before);

    let (code, said) = stage.offsets(&[&accept[..], &["--yes"]].concat())?;
    let lost = format!("partition {}/0: Postgres says 7, the broker has 0 to 0: the topic was made anew", stage.topic);
    assert!(code == Some(0) && said.starts_with(&lost), "{said}");
    assert!(said.ends_with(&format!("partition {}/0 goes on at 0\n", stage.topic)), "{said}");
    let mut after = before;
    after[0].2 = 0;
    assert_eq!(stage.positions().await?, after, "the other group is left alone");
    Ok(())
}
