//! `outrider parked`, on keys that a real Kafka has refused.

use std::time::Duration;

use anyhow::{Context, Result};
use relay::outbox::claim_lanes;
use relay::outbox::parked::{Beginning, HeldKey, Remaining, begin_retry, parked_rows, settle_retry};
use shared::testing::{TestDatabase, eventually, kafka_brokers, unique};
use sqlx::{Connection, PgConnection};
use tools::parked::store::{self, Actor, Discard, Refusal};
use tools::stack::service::Surroundings;
use tools::stack::{Kind, Service};
use tools::workspace::Executables;

use super::command_line::{operator, said, well};
use super::reaper;

/// A database, a relay, and the folder of its log.
struct Stage {
    database: TestDatabase,
    aggregate_type: String,
    relay: Service,
    _logs: tempfile::TempDir,
}

impl Stage {
    /// Runs a relay until the key `big` is parked with versions 2 to 4, of which the second is too large for Kafka, and a key with a
    /// slash in its id, all of it.
    async fn new(test: &str) -> Result<Self> {
        let database = TestDatabase::create(test).await;
        let logs = tempfile::tempdir()?;
        let outrider = Executables::own()?.outrider().to_owned();
        // This executable lies in `deps`, one below those of the services.
        let binaries = outrider.parent().and_then(|folder| folder.parent()).context("a folder")?;
        let surroundings = Surroundings {
            binaries: binaries.to_owned(),
            logs: logs.path().to_owned(),
            database_url: database.url.clone(),
            kafka_brokers: kafka_brokers(),
            takes_role: true,
            env: Vec::new(),
        };
        let relay = Service::start(Kind::Relay, "relay", &surroundings, &[], &reaper()?)?;
        let stage = Self { database, aggregate_type: unique("thing"), relay, _logs: logs };
        let huge = format!("\"{}\"", "x".repeat(1_100_000));
        // One key after the other, so that it is known which of them waits longer.
        for (events, parked) in [
            (&[("big", "1"), ("big", &huge), ("big", "3"), ("big", "4"), ("small", "1")][..], 3),
            (&[("with/slash", huge.as_str())], 4),
        ] {
            for (key, payload) in events {
                sqlx::query("SELECT outbox_append($1, $2, 'thing.changed', $3::json)")
                    .bind(&stage.aggregate_type)
                    .bind(*key)
                    .bind(*payload)
                    .execute(&stage.database.pool)
                    .await?;
            }
            stage.parked_events(parked).await;
        }
        Ok(stage)
    }

    /// Waits until so many events are parked.
    async fn parked_events(&self, count: i64) {
        eventually("all that is to be parked is parked", async || {
            let parked: i64 = sqlx::query_scalar("SELECT count(*) FROM relay_parked")
                .fetch_one(&self.database.pool)
                .await
                .expect("the database answers");
            (parked == count).then_some(())
        })
        .await;
    }

    fn key(&self, id: &str) -> String {
        format!("{}/{id}", self.aggregate_type)
    }

    /// Runs `outrider parked` as an operator. Its exit code, and all that it said.
    fn parked(&self, arguments: &[&str]) -> Result<(Option<i32>, String)> {
        said(operator("parked", &self.database.url).args(arguments))
    }

    /// Like [`Stage::parked`], for what must go well.
    fn well(&self, arguments: &[&str]) -> Result<String> {
        well(operator("parked", &self.database.url).args(arguments))
    }

    async fn parked_versions(&self, id: &str) -> Result<Vec<i64>> {
        let sql = "SELECT aggregate_version FROM relay_parked WHERE aggregate_id = $1 ORDER BY id";
        Ok(sqlx::query_scalar(sql).bind(id).fetch_all(&self.database.pool).await?)
    }

    async fn requested(&self) -> Result<Vec<String>> {
        let sql = "SELECT aggregate_id FROM relay_parked_requests ORDER BY aggregate_id";
        Ok(sqlx::query_scalar(sql).fetch_all(&self.database.pool).await?)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_keys_are_listed_with_their_reason() -> Result<()> {
    let mut stage = Stage::new("parked_keys_are_listed").await?;
    let keys: serde_json::Value = serde_json::from_str(&stage.well(&["list", "--json"])?)?;
    assert_eq!(keys.as_array().map(Vec::len), Some(2));
    let big = &keys[0];
    assert_eq!((&big["aggregate_id"], &big["waiting"]), (&"big".into(), &3.into()));
    assert_eq!((&big["first_version"], &big["last_version"]), (&2.into(), &4.into()));
    assert_eq!(big["topic"], format!("{}s", stage.aggregate_type));
    assert!(big["reason"].as_str().is_some_and(|reason| reason.contains("too large")), "{big}");
    assert!(big["retry_requested_at"].is_null());

    let table = stage.well(&["list", "--limit", "1"])?;
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines.len() == 3 && lines[1].starts_with(&stage.key("big")) && lines[1].contains("2..4"), "{table}");
    assert_eq!(lines[2], "2 keys with 4 events, the first 1 shown");
    let topic = format!("{}s", stage.aggregate_type);
    for (arguments, found) in [
        (["--type", stage.aggregate_type.as_str()], true),
        (["--type", "another"], false),
        (["--topic", &topic], true),
        (["--topic", "another"], false),
        (["--reason-like", "%TOO LARGE%"], true),
        (["--reason-like", "too large"], false),
    ] {
        let said = stage.well(&["list", arguments[0], arguments[1]])?;
        assert_eq!(said != "no key is parked\n", found, "{arguments:?}: {said}");
    }
    stage.relay.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_asked_for_once_and_written_down() -> Result<()> {
    let mut stage = Stage::new("a_retry_is_asked_for_once").await?;
    let (code, said) = stage.parked(&["retry", "--key", &stage.key("small")])?;
    assert_eq!((code, said.as_str()), (Some(1), "no such key is parked\n"));
    let said = stage.well(&["retry", "--all", "--dry-run"])?;
    assert!(said.contains("2 keys with 4 events") && said.contains("dry run"), "{said}");
    let (code, said) = stage.parked(&["retry", "--all"])?;
    assert!(code == Some(1) && said.contains("--yes"), "without a terminal nobody confirms: {said}");
    assert_eq!(stage.requested().await?, [] as [String; 0]);

    stage.relay.stop().await?;
    let said = stage.well(&["retry", "--key", &stage.key("with/slash"), "--why", "limit raised"])?;
    assert_eq!(
        said,
        "asked the relays to publish 1 key with 1 event again\nno relay is running: the request waits for one\n"
    );
    assert_eq!(stage.requested().await?, ["with/slash"]);
    let said = stage.well(&["retry", "--type", &stage.aggregate_type, "--yes"])?;
    assert!(said.contains("1 key with 3 events again\nthe others were asked for before\n"), "{said}");
    assert_eq!(stage.requested().await?, ["big", "with/slash"]);
    assert!(stage.well(&["list"])?.contains("(retry asked for 2"), "the list shows it");

    let log: Vec<(String, String, i64, String, bool, Option<String>)> = sqlx::query_as(
        "SELECT action, aggregate_id, waiting, os_user, db_user = session_user AND logged_at > now() - interval '1 hour', why
         FROM relay_parked_log ORDER BY id",
    )
    .fetch_all(&stage.database.pool)
    .await?;
    let by = log[0].3.clone();
    assert!(by.starts_with("alice (uid "), "{by}");
    let entry = |id: &str, waiting, why: Option<&str>| {
        ("retry".to_owned(), id.to_owned(), waiting, by.clone(), true, why.map(str::to_owned))
    };
    assert_eq!(log, [entry("with/slash", 1, Some("limit raised")), entry("big", 3, None)]);
    for sql in ["DELETE FROM relay_parked_log", "UPDATE relay_parked_log SET why = ''", "TRUNCATE relay_parked_log"] {
        let error = sqlx::query(sql).execute(&stage.database.pool).await.expect_err(sql);
        assert!(error.to_string().contains("append-only"), "{error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn discarding_gives_up_the_refused_event_and_asks_for_the_rest() -> Result<()> {
    let mut stage = Stage::new("discarding_gives_up_the_refused").await?;
    stage.relay.stop().await?;
    let big = stage.key("big");
    let (code, said) = stage.parked(&["discard", "--key", &big, "--why", ""])?;
    assert_eq!(code, Some(2), "{said}");
    let (code, said) = stage.parked(&["discard", "--key", "no/such", "--why", "a test"])?;
    assert_eq!((code, said.as_str()), (Some(1), "no such event is parked\n"));

    let said = stage.well(&["discard", "--key", &big, "--why", "a test"])?;
    assert!(said.starts_with("gave up event ") && said.contains(&format!("of {big}, version 2\n")), "{said}");
    assert!(said.contains("the 2 events that wait behind it\nno relay is running"), "{said}");
    assert_eq!(stage.parked_versions("big").await?, [3, 4]);
    assert_eq!(stage.requested().await?, ["big"]);
    // What is first now was never refused: a second such command must not give it up.
    let (code, said) = stage.parked(&["discard", "--key", &big, "--why", "a test"])?;
    assert!(code == Some(1) && said.contains("was not refused"), "{said}");
    // Unless it is named; a key of which nothing is left is asked for too, since its relay has to hear of it.
    let named: String = sqlx::query_scalar(
        "SELECT event_id::text FROM relay_parked WHERE aggregate_id = 'big' AND aggregate_version = 4",
    )
    .fetch_one(&stage.database.pool)
    .await?;
    stage.well(&["discard", "--key", &big, "--event", &named, "--why", "sent by hand"])?;
    assert_eq!(stage.parked_versions("big").await?, [3]);
    let said = stage.well(&["discard", "--key", &stage.key("with/slash"), "--why", "a test"])?;
    assert!(said.contains("nothing else of the key waits"), "{said}");
    assert_eq!(stage.requested().await?, ["big", "with/slash"]);

    let log: Vec<(String, i64, i64, bool, String)> = sqlx::query_as(
        "SELECT aggregate_id, aggregate_version, waiting, reason IS NOT NULL, why FROM relay_parked_log
         WHERE action = 'discard' AND event_id IS NOT NULL AND outbox_id IS NOT NULL ORDER BY id",
    )
    .fetch_all(&stage.database.pool)
    .await?;
    let entry =
        |id: &str, version, waiting, refused, why: &str| (id.to_owned(), version, waiting, refused, why.to_owned());
    assert_eq!(
        log,
        [
            entry("big", 2, 3, true, "a test"),
            entry("big", 4, 2, false, "sent by hand"),
            entry("with/slash", 1, 1, true, "a test"),
        ]
    );
    Ok(())
}

/// What a relay has, and an operator's connection.
struct Rivals {
    relay: PgConnection,
    operator: PgConnection,
    token: i64,
    lane: i16,
}

impl Rivals {
    async fn new(stage: &Stage) -> Result<Self> {
        let mut relay = PgConnection::connect(&stage.database.url).await?;
        let operator = PgConnection::connect(&stage.database.url).await?;
        let lane: i16 = sqlx::query_scalar("SELECT lane FROM relay_parked WHERE aggregate_id = 'big'")
            .fetch_one(&mut relay)
            .await?;
        let lanes = claim_lanes(&mut relay, "rival", Duration::from_mins(1), &[], 16).await?;
        let token = lanes.iter().find(|claimed| claimed.lane == lane).context("the lane is free")?.token;
        Ok(Self { relay, operator, token, lane })
    }

    async fn discard(&mut self, stage: &Stage) -> Result<Result<store::Discarded, Refusal>> {
        let key = stage.key("big");
        let wanted = Discard { key: &key, aggregate_type: None, event_id: None, why: "a test" };
        Ok(store::discard(&mut self.operator, &wanted, &Actor { os_user: "alice".to_owned() }).await?)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_discarded_of_a_key_that_a_relay_is_publishing() -> Result<()> {
    let mut stage = Stage::new("nothing_is_discarded_of_a_key").await?;
    stage.relay.stop().await?;
    let mut rivals = Rivals::new(&stage).await?;
    stage.well(&["retry", "--key", &stage.key("big")])?;
    let held =
        HeldKey { lane: rivals.lane, token: rivals.token, aggregate_type: &stage.aggregate_type, aggregate_id: "big" };
    assert_eq!(begin_retry(&mut rivals.relay, &held).await?, Beginning::Begun);
    let refused = Err(Refusal::BeingPublished("rival".to_owned()));
    assert_eq!(rivals.discard(&stage).await?, refused);
    // Also when its lease has ended: nobody has taken the lane, so it may renew the lease and go on.
    sqlx::query("UPDATE relay_lanes SET expires_at = now()").execute(&stage.database.pool).await?;
    assert_eq!(rivals.discard(&stage).await?, refused);
    // Once another relay has the lane, that one has to begin anew, and sees what was discarded before.
    let claimed = claim_lanes(&mut rivals.relay, "successor", Duration::from_mins(1), &[], 16).await?;
    let token = claimed.iter().find(|lane| lane.lane == rivals.lane).context("the lane")?.token;
    assert_eq!(rivals.discard(&stage).await?.map(|discarded| discarded.aggregate_version), Ok(2));
    let successor = HeldKey { token, ..held };
    assert_eq!(begin_retry(&mut rivals.relay, &successor).await?, Beginning::Begun);
    let rows = parked_rows(&mut rivals.relay, &successor, 10).await?;
    assert_eq!(rows.iter().map(|row| row.aggregate_version).collect::<Vec<_>>(), [3, 4]);
    let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
    assert_eq!(settle_retry(&mut rivals.relay, &successor, &ids).await?, Remaining::Nothing);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_begins_amid_a_discard_does_not_see_the_discarded_event() -> Result<()> {
    let mut stage = Stage::new("a_relay_that_begins_amid").await?;
    stage.relay.stop().await?;
    let mut rivals = Rivals::new(&stage).await?;
    stage.well(&["retry", "--key", &stage.key("big")])?;
    // Holds the discard up where it writes into the log: after it has locked the request, before it commits.
    let mut barrier = stage.database.pool.begin().await?;
    sqlx::query("LOCK TABLE relay_parked_log IN EXCLUSIVE MODE").execute(&mut *barrier).await?;
    let key = stage.key("big");
    let wanted = Discard { key: &key, aggregate_type: None, event_id: None, why: "a test" };
    let actor = Actor { os_user: "alice".to_owned() };
    let held =
        HeldKey { lane: rivals.lane, token: rivals.token, aggregate_type: &stage.aggregate_type, aggregate_id: "big" };
    let waiters = async |count: i64, what: &str| {
        eventually(what, async || {
            let sql =
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
            let waiting: i64 =
                sqlx::query_scalar(sql).fetch_one(&stage.database.pool).await.expect("the database answers");
            (waiting == count).then_some(())
        })
        .await;
    };
    let retrying = async {
        waiters(1, "the discard waits").await;
        let (begun, ()) = tokio::join!(begin_retry(&mut rivals.relay, &held), async {
            waiters(2, "the relay waits for the discard").await;
            barrier.rollback().await.expect("the lock is let go");
        });
        (begun, parked_rows(&mut rivals.relay, &held, 10).await)
    };
    let (discarded, (begun, rows)) = tokio::join!(store::discard(&mut rivals.operator, &wanted, &actor), retrying);
    assert_eq!(discarded?.map(|discarded| discarded.aggregate_version), Ok(2));
    assert_eq!(begun?, Beginning::Begun);
    assert_eq!(rows?.iter().map(|row| row.aggregate_version).collect::<Vec<_>>(), [3, 4]);
    Ok(())
}
