//! What operators see of, and do about, rows that the outbox takes no more.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use shared::db::MIGRATOR;
use shared::testing::{PATIENCE, TestDatabase, kafka_brokers};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::process::Command;
use tokio::time::timeout;
use tools::workspace::Executables;

use super::command_line::{operator, outrider, said, well};

/// A key of 5,000 random bytes, an event at infinity and one without its payload; in the outbox, one of each odd time.
const PLANT: &str = "
    ALTER TABLE outbox DROP CONSTRAINT outbox_bounds;
    INSERT INTO outbox (aggregate_type, aggregate_id, aggregate_version, type, payload, occurred_at)
        SELECT 'thing', 'time' || place, 1, 'thing.made', '{}', time
        FROM UNNEST(ARRAY['infinity', '-infinity', '294276-12-31', '0044-03-15 BC']::timestamptz[]) WITH ORDINALITY odd (time, place);
    INSERT INTO relay_parked (id, lane, event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, payload_bytes, headers,
            occurred_at, reason)
        SELECT 100 + place, hashtextextended('thing/' || id, 0) & 15, gen_random_uuid(), 'thing', id, 1, 'thing.made', payload, bytes, '{}',
            time, 'planted'
        FROM (VALUES
            (1, (SELECT left(string_agg(md5(random()::text), ''), 5000) FROM generate_series(1, 157)), '{}'::json, 2, now()),
            (2, 'ever', '{}', 2, 'infinity'),
            (3, 'huge', NULL, 20971522, '-infinity')) odd (place, id, payload, bytes, time)";

#[tokio::test(flavor = "multi_thread")]
async fn status_and_parked_work_on_odd_rows() -> Result<()> {
    let database = TestDatabase::create("status_and_parked_work").await;
    sqlx::raw_sql(PLANT).execute(&database.pool).await?;
    let status: Value = serde_json::from_str(&well(&mut operator("status --json", &database.url))?)?;
    assert_eq!(status["relay"]["backlog"]["rows"], 4);
    assert!(status["relay"]["backlog"]["oldest_age_secs"].as_f64().is_some_and(f64::is_finite), "{status}");
    assert_eq!(status["relay"]["parked"]["keys"], 3);
    let text = well(&mut operator("status", &database.url))?;
    assert!(text.contains("4 events") && text.contains("3 keys"), "{text}");

    let keys: Value = serde_json::from_str(&well(&mut operator("parked list --json", &database.url))?)?;
    let ids: Vec<&str> = keys.as_array().into_iter().flatten().filter_map(|key| key["aggregate_id"].as_str()).collect();
    assert_eq!((ids.len(), ids[0].len(), &ids[1..]), (3, 5_000, &["ever", "huge"][..]));
    let table = well(&mut operator("parked list", &database.url))?;
    assert!(table.contains(ids[0]) && table.contains("3 keys with 3 events"), "{table}");
    for id in &ids {
        let key = format!("thing/{id}");
        let retried = well(operator("parked retry --key", &database.url).arg(&key))?;
        assert!(retried.starts_with("asked the relays to publish 1 key with 1 event again"), "{retried}");
    }
    assert!(
        well(&mut operator("parked list", &database.url))?.contains("(retry asked for 2"),
        "the requests are found"
    );
    for id in &ids {
        let key = format!("thing/{id}");
        let discarded = well(operator("parked discard --why test --key", &database.url).arg(&key))?;
        assert!(discarded.starts_with("gave up event "), "{discarded}");
    }
    assert_eq!(well(&mut operator("parked list", &database.url))?, "no key is parked\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_in_utf_8_is_refused_with_what_to_do() -> Result<()> {
    let database = TestDatabase::create("a_database_that_is_not").await;
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let url = format!("{}_{encoding}", database.url);
        let name = url.rsplit_once('/').map_or("", |(_, name)| name);
        let sql =
            format!("CREATE DATABASE \"{name}\" ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&database.pool).await?;
        let mut connection = PgConnection::connect(&url).await?;
        let refused = |line: &str| -> Result<()> {
            let (code, text) = said(outrider(line).env("DATABASE_URL", &url))?;
            assert_eq!((code, text.lines().count()), (Some(1), 1), "{line}: {text}");
            assert!(text.contains(&format!("the encoding of the database is {encoding}, ")), "{line}: {text}");
            assert!(text.contains("CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0"), "{line}: {text}");
            Ok(())
        };
        refused("migrate")?;
        let tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
        let written: i64 = sqlx::query_scalar(tables).fetch_one(&mut connection).await?;
        assert_eq!(written, 0, "nothing was written before it was refused");
        // One that was migrated before this was refused.
        MIGRATOR.run(&mut connection).await?;
        refused("migrate")?;
        for service in ["api", "relay", "processor"] {
            let text = refused_by(service, &url).await?;
            assert!(text.contains(&format!("the encoding of the database is {encoding}, ")), "{service}: {text}");
        }
    }
    Ok(())
}

/// Starts a service, which must end by itself with an error. What it said.
async fn refused_by(service: &str, url: &str) -> Result<String> {
    let executables = Executables::own()?;
    // This executable lies in `deps`, one below those of the services.
    let folder = executables.outrider().parent().and_then(Path::parent).context("a folder")?;
    let brokers = kafka_brokers();
    let child = Command::new(folder.join(format!("outrider-{service}")))
        .env_clear()
        .envs([
            ("DATABASE_URL", url),
            ("KAFKA_BROKERS", &brokers),
            ("ADMIN_BIND", "127.0.0.1:0"),
            ("API_BIND", "127.0.0.1:0"),
        ])
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, child).await.context(format!("{service} goes on"))??;
    assert_eq!(output.status.code(), Some(1), "{service}");
    Ok(String::from_utf8([output.stdout, output.stderr].concat())?)
}
