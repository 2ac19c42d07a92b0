//! `outrider migrate` on databases that were made by others, and where it is killed, is not alone, or is not the first to try.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shared::db::{MIGRATOR, check_schema};
use shared::testing::{TestDatabase, eventually, unique};
use sqlx::migrate::Migrate;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tools::stack::Postgres;
use tools::stack::postgres::{PostgresOptions, connect};
use tools::stack::throwaway::Throwaway;

use super::command_line::{outrider, said, well};
use super::supply;

/// The last migration of the release before this one.
const PREVIOUS_RELEASE: i64 = 20_261_129_000_042;

/// A database without anything of ours.
pub(super) async fn empty_database(server: &str) -> Result<String> {
    let name = unique("migrating");
    let mut connection = connect(server).await?;
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE \"{name}\""))).execute(&mut connection).await?;
    let (base, _) = server.rsplit_once('/').context("the URL ends in a database")?;
    Ok(format!("{base}/{name}"))
}

pub(super) fn server() -> Result<String> {
    Ok(std::env::var("DATABASE_URL")?)
}

fn migrate(url: &str) -> Command {
    let mut command = outrider("migrate --json");
    command.env("DATABASE_URL", url);
    command
}

/// How many migrations it has applied.
fn count_applied(output: &str) -> Result<usize> {
    // What it says meanwhile is on the other stream.
    let line = output.lines().find(|line| line.starts_with('{')).with_context(|| format!("no JSON: {output}"))?;
    let report: Value = serde_json::from_str(line)?;
    Ok(report["applied"].as_array().context("a list")?.len())
}

/// Has every migration wait when it has done everything but to end: its row in `_sqlx_migrations` is what it writes last.
async fn hold_migrations(url: &str) -> Result<PgConnection> {
    let mut holder = connect(url).await?;
    holder.ensure_migrations_table("_sqlx_migrations").await?;
    sqlx::raw_sql("BEGIN; LOCK TABLE _sqlx_migrations IN SHARE MODE").execute(&mut holder).await?;
    Ok(holder)
}

/// Starts a migration and waits until it waits for a lock.
async fn start_and_wait(url: &str) -> Result<Child> {
    let mut child = migrate(url).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut watcher = connect(url).await?;
    let mut ended = None;
    eventually("the migration waits for a lock", async || {
        ended = child.try_wait().ok()?;
        let sql = "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
            WHERE d.datname = current_database() AND l.locktype = 'relation' AND NOT l.granted)";
        let waits: bool = sqlx::query_scalar(sql).fetch_one(&mut watcher).await.ok()?;
        (waits || ended.is_some()).then_some(())
    })
    .await;
    ensure!(ended.is_none(), "it should wait: {:?}", child.wait_with_output());
    Ok(child)
}

/// The names of all objects that are ours, and of their columns.
async fn objects(url: &str) -> Result<Vec<String>> {
    let sql = "SELECT 'column ' || c.relname || '.' || a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
            WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT c.relname ~ '_p[0-9]+' AND c.relname <> '_sqlx_migrations'
        UNION ALL SELECT 'function ' || p.proname || ' ' || md5(p.prosrc) FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace
        UNION ALL SELECT 'constraint ' || conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND NOT conname ~ '_p[0-9]+'
        UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE NOT tgisinternal
        ORDER BY 1";
    Ok(sqlx::query_scalar(sql).fetch_all(&mut connect(url).await?).await?)
}

/// Checks that a database has what another one has.
async fn is_like(url: &str, other: &str) -> Result<()> {
    let (found, expected) = (objects(url).await?, objects(other).await?);
    let of_one = |these: &[String], those: &[String]| -> Vec<String> {
        these.iter().filter(|object| !those.contains(object)).cloned().collect()
    };
    let (missing, surplus) = (of_one(&expected, &found), of_one(&found, &expected));
    ensure!(missing.is_empty() && surplus.is_empty(), "missing: {missing:?}, surplus: {surplus:?}");
    Ok(())
}

#[tokio::test]
async fn migrate_takes_the_right_to_create_objects_from_everybody() -> Result<()> {
    let database = TestDatabase::create("create_on_public").await;
    sqlx::query("GRANT CREATE ON SCHEMA public TO PUBLIC").execute(&database.pool).await?;
    let output = outrider("migrate").env("DATABASE_URL", &database.url).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let may_create: bool = sqlx::query_scalar("SELECT has_schema_privilege('public', 'public', 'CREATE')")
        .fetch_one(&database.pool)
        .await?;
    ensure!(!may_create, "{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

#[tokio::test]
async fn a_migration_that_is_killed_leaves_nothing_and_the_next_run_does_all() -> Result<()> {
    let whole = TestDatabase::create("migrating_whole").await;
    let all = MIGRATOR.iter().count();
    for done_before in [0, PREVIOUS_RELEASE] {
        let url = empty_database(&server()?).await?;
        let mut connection = connect(&url).await?;
        MIGRATOR.run_to(done_before, &mut connection).await?;
        let before = objects(&url).await?;
        let mut holder = hold_migrations(&url).await?;
        let mut killed = start_and_wait(&url).await?;
        killed.kill()?;
        killed.wait()?;
        sqlx::raw_sql("ROLLBACK").execute(&mut holder).await?;
        // Its session may have got the lock before Postgres has found out that its client is gone.
        let applied = count_applied(&well(&mut migrate(&url))?)?;
        let done = MIGRATOR.iter().filter(|migration| migration.version <= done_before).count();
        ensure!(applied + done == all, "{applied} applied, {done} were there, of {all}");
        check_schema(&mut connection).await?;
        ensure!(before.len() < objects(&url).await?.len());
        is_like(&url, &whole.url).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_dies_within_a_migration_comes_back_without_it() -> Result<()> {
    let (supply, place) = (supply()?, Throwaway::new()?);
    let (folder, log) = (place.folder().join("pg"), place.folder().join("pg.log"));
    let binaries = supply.postgres(&log, &folder).await?;
    // Durable: what was said to be committed must be there afterwards.
    let options = PostgresOptions { folder, log, durable: true, settings: Vec::new() };
    let mut postgres = Postgres::start(&binaries, &options, &supply.reaper).await?;
    let url = empty_database(&postgres.url("postgres")).await?;
    MIGRATOR.run_to(PREVIOUS_RELEASE, &mut connect(&url).await?).await?;
    let before = objects(&url).await?;
    let holder = hold_migrations(&url).await?;
    let interrupted = start_and_wait(&url).await?;
    postgres.process().kill().await?;
    drop(holder);
    let output = interrupted.wait_with_output()?;
    let error = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(1) && error.lines().count() == 1, "{error}");
    ensure!(error.contains("leaves nothing behind"), "{error}");

    let postgres = Postgres::start(&binaries, &options, &supply.reaper).await?;
    let (_, name) = url.rsplit_once('/').context("a database")?;
    let url = postgres.url(name);
    assert_eq!(objects(&url).await?, before);
    well(&mut migrate(&url))?;
    check_schema(&mut connect(&url).await?).await?;
    Ok(())
}

#[tokio::test]
async fn of_several_that_migrate_an_empty_database_at_once_each_ends_well() -> Result<()> {
    let url = empty_database(&server()?).await?;
    let start = || migrate(&url).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let children: Vec<Child> = (0..4).map(|_| start()).collect::<std::io::Result<_>>()?;
    let mut applied = 0;
    for child in children {
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        applied += count_applied(&String::from_utf8(output.stdout)?)?;
    }
    assert_eq!(applied, MIGRATOR.iter().count());
    check_schema(&mut connect(&url).await?).await?;
    Ok(())
}

#[tokio::test]
async fn one_that_waits_for_another_says_whom_it_waits_for() -> Result<()> {
    let database = TestDatabase::create("migrating_turn").await;
    let mut holder = connect(&database.url).await?;
    let turn = "SELECT pg_backend_pid() FROM (SELECT pg_advisory_lock(hashtext('outrider_migrate'))) taken";
    let pid: i32 = sqlx::query_scalar(turn).fetch_one(&mut holder).await?;
    let waiting = migrate(&database.url).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    eventually("it waits", async || {
        let sql = "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
            WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted)";
        sqlx::query_scalar::<_, bool>(sql).fetch_one(&database.pool).await.ok()?.then_some(())
    })
    .await;
    holder.close().await?;
    let output = waiting.wait_with_output()?;
    let error = String::from_utf8(output.stderr)?;
    ensure!(output.status.success() && error.contains(&format!("with pid {pid}")), "{error}");
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_migrated_is_one_line_that_says_what_to_do() -> Result<()> {
    let url = empty_database(&server()?).await?;
    let mut connection = connect(&url).await?;
    MIGRATOR.run_to(PREVIOUS_RELEASE, &mut connection).await?;
    let cases = [
        (
            "UPDATE _sqlx_migrations SET success = false WHERE version = 20261129000042",
            "SET success = true WHERE version = 20261129000042",
        ),
        (
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (20991231000001, 'x', true, '', 0)",
            "use the `outrider` of that release",
        ),
        (
            "UPDATE _sqlx_migrations SET checksum = '' WHERE version = 20261129000042",
            "migration 20261129000042 of the database differs",
        ),
        ("DROP TABLE blocked_keys", "relation \"blocked_keys\" does not exist"),
    ];
    for (trouble, expected) in cases {
        let url = copy(&url, &mut connection).await?;
        sqlx::raw_sql(trouble).execute(&mut connect(&url).await?).await?;
        let (code, text) = said(&mut migrate(&url))?;
        ensure!(code == Some(1) && text.lines().count() == 1 && text.contains(expected), "{trouble}: {code:?} {text}");
    }
    // A session that keeps its locks for longer than writers are let wait.
    let mut holder = connect(&url).await?;
    sqlx::raw_sql("BEGIN; SELECT count(*) FROM blocked_keys").execute(&mut holder).await?;
    let (code, text) = said(&mut migrate(&url))?;
    ensure!(code == Some(1) && text.lines().count() == 1, "{text}");
    ensure!(text.contains("20261130000001 was given up") && text.contains("run `outrider migrate` again"), "{text}");
    sqlx::raw_sql("ROLLBACK").execute(&mut holder).await?;
    ensure!(count_applied(&well(&mut migrate(&url))?)? > 0);
    Ok(())
}

/// Another database like that of `url`, whose only connection is `connection`.
async fn copy(url: &str, connection: &mut PgConnection) -> Result<String> {
    let (base, template) = url.rsplit_once('/').context("a database")?;
    let name = unique("migrating");
    // A template has no session but this one's, and this one is to it as well: so by another database.
    let other = connect(&format!("{base}/postgres")).await?;
    std::mem::replace(connection, other).close().await?;
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE \"{name}\" TEMPLATE \"{template}\"")))
        .execute(&mut *connection)
        .await?;
    Ok(format!("{base}/{name}"))
}

#[tokio::test]
async fn no_limit_or_syntax_that_an_administrator_has_set_reaches_a_migration() -> Result<()> {
    let whole = TestDatabase::create("migrating_settings").await;
    let url = empty_database(&server()?).await?;
    let (_, name) = url.rsplit_once('/').context("a database")?;
    let mut connection = connect(&url).await?;
    for setting in [
        "standard_conforming_strings = off",
        "backslash_quote = off",
        "quote_all_identifiers = on",
        "default_transaction_isolation = 'serializable'",
        "search_path = nowhere",
        "statement_timeout = '100ms'",
        "lock_timeout = '1ms'",
        "DateStyle = 'German, DMY'",
        "bytea_output = 'escape'",
        "default_toast_compression = 'pglz'",
    ] {
        sqlx::raw_sql(AssertSqlSafe(format!("ALTER DATABASE \"{name}\" SET {setting}")))
            .execute(&mut connection)
            .await?;
    }
    let applied = count_applied(&well(&mut migrate(&url))?)?;
    assert_eq!(applied, MIGRATOR.iter().count());
    is_like(&url, &whole.url).await?;
    Ok(())
}

/// Bodies of functions are read when they are called, in the session of the caller: one whose backslashes are escapes must not change them.
#[tokio::test]
async fn functions_mean_the_same_where_backslashes_are_escapes() -> Result<()> {
    let database = TestDatabase::create("migrating_escapes").await;
    let mut connection = connect(&database.url).await?;
    sqlx::raw_sql("SET standard_conforming_strings = off; SET escape_string_warning = off")
        .execute(&mut connection)
        .await?;
    let made: i32 = sqlx::query_scalar("SELECT outbox_make_partitions(9)").fetch_one(&mut connection).await?;
    ensure!(made > 0, "no partition was made");
    let again: i32 = sqlx::query_scalar("SELECT outbox_make_partitions(9)").fetch_one(&mut connection).await?;
    ensure!(again == 0, "{again} partitions were made twice");
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    sqlx::query(
        "INSERT INTO outbox_debezium (aggregatetype, aggregateid, type, payload, tracingspancontext) VALUES ('thing', '1', 't', '{}', $1)",
    )
    .bind(format!("#a comment\ntraceparent={trace}\ntracestate = a\\=b \n"))
    .execute(&mut connection)
    .await?;
    let found: (String, String) =
        sqlx::query_as("SELECT headers ->> 'traceparent', headers ->> 'tracestate' FROM outbox")
            .fetch_one(&mut connection)
            .await?;
    assert_eq!(found, (trace.to_owned(), "a=b".to_owned()));
    Ok(())
}
