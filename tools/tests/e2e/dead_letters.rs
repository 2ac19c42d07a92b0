//! `outrider dead-letters`: on rows as a processor leaves them, and with the whole pipeline.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use shared::testing::{TestDatabase, eventually};
use sqlx::{Connection, PgConnection};
use tools::dead_letters::store::discard::{Discard, Refusal, What, discard};
use tools::http::{NewOrder, OrdersApi};
use tools::stack::Kind;

use super::command_line::{self, operator, said};
use super::pipeline::{RELAY_ENV, Stage, versions_on_topic};

/// A key that is parked with three events, one that is retried, and a record that is no event.
const ROWS: &str = r#"
    INSERT INTO blocked_keys (group_id, topic, record_key, partition, state, reason, fingerprint, attempts, first_failed_at,
        last_failed_at, next_attempt_at)
    VALUES ('g', 'orders', '17', 2, 'parked', 'No such product 5', 'aaaaaaaaaaaaaaaa', 1, now() - interval '3 hours', now() - interval '3 hours', NULL),
        ('g', 'orders', '18', 3, 'retrying', 'later', 'bbbbbbbbbbbbbbbb', 4, now() - interval '1 minute', now(), now() + interval '1 hour');
    INSERT INTO dead_letters (group_id, topic, partition, record_offset, record_key, event_id, event_type, aggregate_version, headers,
        payload, reason, fingerprint, created_at)
    VALUES ('g', 'orders', 2, 10, '17', gen_random_uuid(), 'order.created', 1, '[["ce_type", "order.created"]]', '{"id": 17}',
            'No such product 5', 'aaaaaaaaaaaaaaaa', now()),
        ('g', 'orders', 2, 14, '17', gen_random_uuid(), 'order.paid', 3, '[]', 'not json', NULL, NULL, now()),
        ('g', 'orders', 2, 12, '17', gen_random_uuid(), 'order.changed', 2, '[]', '\xff', NULL, NULL, now()),
        ('g', 'orders', 3, 1, '18', gen_random_uuid(), 'order.created', 1, '[]', '{"id": 18}', 'later', 'bbbbbbbbbbbbbbbb', now()),
        ('g', 'orders', 4, 7, NULL, NULL, NULL, NULL, '[]', NULL, 'the header ''id'' is missing', 'cccccccccccccccc', now());
"#;

struct Letters {
    database: TestDatabase,
}

impl Letters {
    async fn new(test: &str) -> Result<Self> {
        let database = TestDatabase::create(test).await;
        sqlx::raw_sql(ROWS).execute(&database.pool).await?;
        Ok(Self { database })
    }

    async fn count(&self, sql: &'static str) -> Result<i64> {
        Ok(sqlx::query_scalar(sql).fetch_one(&self.database.pool).await?)
    }

    fn run(&self, arguments: &[&str]) -> Result<(Option<i32>, String)> {
        run(&self.database.url, arguments)
    }

    fn well(&self, arguments: &[&str]) -> Result<String> {
        well(&self.database.url, arguments)
    }
}

fn command(url: &str, arguments: &[&str]) -> Command {
    let mut command = operator("dead-letters", url);
    command.args(arguments);
    command
}

fn run(url: &str, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    said(&mut command(url, arguments))
}

fn well(url: &str, arguments: &[&str]) -> Result<String> {
    command_line::well(&mut command(url, arguments))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_listed_key_by_key_and_by_the_kind_of_failure() -> Result<()> {
    let letters = Letters::new("what_waits_is_listed").await?;
    let keys: Value = serde_json::from_str(&letters.well(&["list", "--json"])?)?;
    let of = |name: &str| keys.as_array().into_iter().flatten().map(|key| key[name].clone()).collect::<Vec<_>>();
    assert_eq!(of("record_key"), [Value::from("17"), "18".into(), Value::Null], "those that failed first come first");
    assert_eq!(of("waiting"), [3, 1, 1]);
    assert_eq!(of("event_type"), [Value::from("order.created"), "order.created".into(), Value::Null]);
    assert_eq!(of("state"), ["parked", "retrying", "parked"]);
    let table = letters.well(&["list", "--limit", "1"])?;
    assert!(table.ends_with("3 keys with 5 events, the first 1 shown\n"), "{table}");

    let groups = letters.well(&["list", "--group-by", "reason"])?;
    let lines: Vec<&str> = groups.lines().collect();
    assert_eq!(lines.len(), 4, "{groups}");
    assert!(
        lines[1].starts_with("aaaaaaaaaaaaaaaa  order.created") && lines[1].ends_with("No such product 5"),
        "{groups}"
    );
    for (arguments, found) in [
        (["--state", "retrying"], &["18"][..]),
        (["--key", "17"], &["17"]),
        (["--key", "\\x3137"], &["17"]),
        (["--type", "order.created"], &["17", "18"]),
        // Not the first of its key.
        (["--type", "order.paid"], &[]),
        (["--reason", "NO SUCH"], &["17"]),
        (["--fingerprint", "bbbbbbbbbbbbbbbb"], &["18"]),
        (["--since", "2h"], &["18", "-"]),
        (["--group", "another"], &[]),
        (["--topic", "orders"], &["17", "18", "-"]),
    ] {
        let keys: Value = serde_json::from_str(&letters.well(&["list", "--json", arguments[0], arguments[1]])?)?;
        let keys = keys.as_array().into_iter().flatten();
        let keys: Vec<&str> = keys.map(|key| key["record_key"].as_str().unwrap_or("-")).collect();
        assert_eq!(keys, found, "{arguments:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_shown_with_its_records_in_order() -> Result<()> {
    let letters = Letters::new("a_key_is_shown").await?;
    let shown: Value = serde_json::from_str(&letters.well(&["show", "17", "--json"])?)?;
    let of = |name: &str| {
        shown["records"].as_array().into_iter().flatten().map(|record| record[name].clone()).collect::<Vec<_>>()
    };
    assert_eq!(of("aggregate_version"), [1, 2, 3]);
    assert_eq!(of("payload"), [serde_json::json!({"id": 17}), "\\xff".into(), "not json".into()]);
    let id = of("id")[1].to_string();
    let text = letters.well(&["show", "--id", &id])?;
    assert!(text.contains("orders/2@12 of g") && text.contains("waits behind an elder"), "{text}");
    let none = letters.count("SELECT id FROM dead_letters WHERE record_key IS NULL").await?.to_string();
    // No key, so it is an id.
    let text = letters.well(&["show", &none])?;
    assert!(text.contains("the header 'id' is missing") && text.contains("a tombstone"), "{text}");
    assert_eq!(letters.run(&["show", "nothing"])?.0, Some(1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn discarding_gives_up_what_failed_and_unblocks_a_key_of_which_nothing_is_left() -> Result<()> {
    let letters = Letters::new("discarding_gives_up_what").await?;
    assert_eq!(letters.run(&["discard", "--key", "17", "--why", " "])?.0, Some(2));
    assert_eq!(letters.run(&["discard", "--key", "99", "--why", "a test"])?.0, Some(1));
    let said = letters.well(&["discard", "--key", "17", "--why", "a test order"])?;
    assert!(said.contains("version 1\n2 events of the key still wait") && said.contains("replay --key '17'"), "{said}");
    // What is first now has not failed: a second such command must not give it up.
    let (code, said) = letters.run(&["discard", "--key", "17", "--why", "a test order"])?;
    assert!(code == Some(1) && said.contains("has not failed"), "{said}");
    assert!(letters.well(&["list", "--key", "17"])?.contains("was discarded"), "the list tells of it");
    let (code, said) = letters.run(&["discard", "--key", "17", "--all", "--why", "a test"])?;
    assert!(code == Some(1) && said.contains("--yes"), "without a terminal nobody confirms: {said}");
    let said = letters.well(&["discard", "--key", "17", "--all", "--yes", "--why", "the customer is gone"])?;
    assert!(said.ends_with("it flows again\n"), "{said}");
    assert_eq!(letters.count("SELECT count(*) FROM blocked_keys WHERE record_key = '17'").await?, 0);
    let none = letters.count("SELECT id FROM dead_letters WHERE record_key IS NULL").await?.to_string();
    letters.well(&["discard", "--id", &none, "--why", "no event"])?;
    assert_eq!(letters.count("SELECT count(*) FROM dead_letters").await?, 1, "that of the key 18");

    let log: Vec<(Option<i64>, i64, bool, String)> = sqlx::query_as(
        "SELECT aggregate_version, waiting, reason IS NOT NULL, why FROM dead_letter_log
         WHERE action = 'discard' AND os_user LIKE 'alice (uid %' AND db_user = session_user ORDER BY id",
    )
    .fetch_all(&letters.database.pool)
    .await?;
    let entry = |version, waiting, failed, why: &str| (version, waiting, failed, why.to_owned());
    assert_eq!(
        log,
        [
            entry(Some(1), 3, true, "a test order"),
            entry(Some(2), 2, false, "the customer is gone"),
            entry(Some(3), 2, false, "the customer is gone"),
            entry(None, 1, true, "no event"),
        ]
    );
    let shown = letters.well(&["show", "17"])?;
    assert!(shown.contains("nothing of it waits") && shown.contains("by alice (uid "), "{shown}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discard_waits_for_whoever_works_on_the_key_and_sees_what_they_did() -> Result<()> {
    let letters = Letters::new("a_discard_waits").await?;
    let mut processor = letters.database.pool.begin().await?;
    sqlx::query("SELECT FROM blocked_keys WHERE record_key = '17' FOR UPDATE").execute(&mut *processor).await?;
    sqlx::query("DELETE FROM dead_letters WHERE record_key = '17' AND aggregate_version = 1")
        .execute(&mut *processor)
        .await?;
    let mut operator = PgConnection::connect(&letters.database.url).await?;
    let wanted = Discard { what: What::First(b"17"), group: None, topic: None, why: "a test", os_user: "alice" };
    let committing = async {
        eventually("the discard waits", async || {
            let sql =
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
            (letters.count(sql).await.expect("the database answers") == 1).then_some(())
        })
        .await;
        processor.commit().await
    };
    let (discarded, committed) = tokio::join!(discard(&mut operator, &wanted), committing);
    committed?;
    // Not the event behind it, which is the first one now.
    assert_eq!(discarded?, Err(Refusal::NotFailed));
    assert_eq!(letters.count("SELECT count(*) FROM dead_letters WHERE record_key = '17'").await?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_replay_takes_its_requests_back() -> Result<()> {
    let letters = Letters::new("an_interrupted_replay").await?;
    let child = command(&letters.database.url, &["replay", "--yes"]).stderr(Stdio::piped()).spawn()?;
    eventually("it is asked for", async || {
        let sql = "SELECT count(*) FROM dead_letter_requests WHERE done_at IS NULL AND NOT dry_run";
        (letters.count(sql).await.expect("the database answers") == 3).then_some(())
    })
    .await;
    kill_process(Pid::from_raw(i32::try_from(child.id())?).context("a pid")?, Signal::INT)?;
    let status = tokio::task::spawn_blocking(move || child.wait_with_output()).await??;
    assert_eq!(status.status.code(), Some(130));
    let said = String::from_utf8(status.stderr)?;
    assert!(said.contains("took back 3 requests"), "{said}");
    assert_eq!(letters.count("SELECT count(*) FROM dead_letter_requests").await?, 0);
    assert_eq!(letters.count("SELECT count(*) FROM dead_letter_log WHERE action = 'replay'").await?, 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_no_processor_takes_says_so_and_ends() -> Result<()> {
    let letters = Letters::new("a_replay_that_no_processor").await?;
    let (code, said) = letters.run(&["replay", "--key", "17", "--dry-run", "--wait", "6"])?;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is one running that has orders/2 of g?"), "{said}");
    assert!(said.contains("no processor took 1 key in time"), "{said}");
    assert_eq!(letters.count("SELECT count(*) FROM dead_letter_requests").await?, 0);
    assert_eq!(letters.count("SELECT count(*) FROM dead_letter_log").await?, 0, "a dry run is nothing to log");
    assert_eq!(letters.run(&["replay", "--key", "99"])?, (Some(1), "nothing that fits waits\n".to_owned()));
    Ok(())
}

/// Refuses to process orders of product 666, as a bug or missing data would.
pub(super) const REFUSE: &str = "
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'product % is not for sale', NEW.product_id; END $$;
    CREATE TRIGGER refuse BEFORE UPDATE ON orders FOR EACH ROW
        WHEN (NEW.status = 'Processed' AND NEW.product_id = 666) EXECUTE FUNCTION refuse();";

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_failed_for_good_is_processed_after_a_replay() -> Result<()> {
    let stage = Stage::new("an_order_that_failed_for_good").await?;
    sqlx::raw_sql(REFUSE).execute(&stage.database.pool).await?;
    let mut api = stage.start(Kind::Api, "api", &[]).await?;
    let mut relay = stage.start(Kind::Relay, "relay", &RELAY_ENV).await?;
    let mut processor = stage.start(Kind::Processor, "processor", &[]).await?;
    let orders = OrdersApi::new(api.api_url().context("the api has a URL")?.parse()?)?;
    for product_id in [666, 1, 666, 2, 666] {
        orders.post(&NewOrder { user_id: 1, product_id, quantity: 1 }).await?;
    }
    let statuses = async |wanted: &str| {
        eventually(wanted, async || {
            let sql = "SELECT string_agg(status || version, ' ' ORDER BY id) FROM orders";
            let found: String = sqlx::query_scalar(sql).fetch_one(&stage.database.pool).await.expect("orders");
            (found == wanted).then_some(())
        })
        .await;
    };
    statuses("Failed2 Processed2 Failed2 Processed2 Failed2").await;
    let url = stage.database.url.as_str();
    let groups: Value = serde_json::from_str(&well(url, &["list", "--group-by", "reason", "--json"])?)?;
    assert_eq!((groups.as_array().map(Vec::len), &groups[0]["keys"]), (Some(1), &3.into()), "{groups}");
    assert!(groups[0]["reason"].as_str().is_some_and(|reason| reason.contains("666 is not for sale")), "{groups}");
    let fingerprint = groups[0]["fingerprint"].as_str().context("a fingerprint")?;

    // As long as the reason stands, a dry run says that nothing would come of it, and a replay that nothing did.
    let said = well(url, &["replay", "--fingerprint", fingerprint, "--dry-run"])?;
    assert!(said.contains("dry run: 0 events of 3 keys would be applied") && said.contains("not for sale"), "{said}");
    let (code, said) = run(url, &["replay", "--key", "1", "--yes"])?;
    assert!(code == Some(1) && said.contains("1: 1 event still wait: "), "{said}");
    sqlx::query("DROP TRIGGER refuse ON orders").execute(&stage.database.pool).await?;
    let (code, said) = run(url, &["replay", "--type", "order.created"])?;
    assert!(code == Some(1) && said.contains("dry run: 3 events of 3 keys would be applied"), "{said}");
    assert!(said.contains("not confirmed"), "{said}");
    statuses("Failed2 Processed2 Failed2 Processed2 Failed2").await;
    well(url, &["discard", "--key", "5", "--why", "paid back"])?;

    let said: Value = serde_json::from_str(&well(url, &["replay", "--fingerprint", fingerprint, "--yes", "--json"])?)?;
    assert_eq!((&said["applied"], &said["answered"], &said["untaken"]), (&2.into(), &2.into(), &0.into()));
    statuses("Processed3 Processed2 Processed3 Processed2 Failed2").await;
    assert_eq!(well(url, &["list"])?, "nothing waits\n");
    let sql = "SELECT count(*) FROM order_transitions a JOIN order_transitions b USING (order_id)
        WHERE a.version = 2 AND a.to_status = 'Failed' AND a.reason IS NOT NULL AND b.version = 3 AND b.from_status = 'Failed'
            AND b.to_status = 'Processed'";
    assert_eq!(stage.count(sql).await, 2);
    // Each change is told of, in order: five creations, three failures, four times Processed.
    let topic = versions_on_topic(&stage.surroundings.kafka_brokers, 12).await;
    assert_eq!((&topic["1"], &topic["2"], &topic["5"]), (&vec![1, 2, 3], &vec![1, 2], &vec![1, 2]));
    let log: Vec<(String, String)> = sqlx::query_as(
        "SELECT action, convert_from(record_key, 'UTF8') FROM dead_letter_log WHERE os_user LIKE 'alice%' ORDER BY id",
    )
    .fetch_all(&stage.database.pool)
    .await?;
    let mut log: Vec<String> = log.into_iter().map(|(action, key)| format!("{action} {key}")).collect();
    // Which of the two failed first depends on their partitions.
    log[2..].sort();
    assert_eq!(log, ["replay 1", "discard 5", "replay 1", "replay 3"]);
    for service in [&mut api, &mut relay, &mut processor] {
        service.stop().await?;
    }
    Ok(())
}
