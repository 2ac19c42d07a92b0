//! Output that is lost: a full disk, a reader that has gone.

use std::fs::OpenOptions;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use shared::testing::TestDatabase;
use sqlx::{Connection as _, PgConnection};

use super::command_line::operator;
use super::migrating::{empty_database, server};

/// Standard output for a command, on a disk that is full.
fn full() -> Result<Stdio> {
    Ok(OpenOptions::new().write(true).open("/dev/full").context("Linux has /dev/full")?.into())
}

/// Runs it. Its exit code, and what it said of errors.
fn errors(command: &mut Command) -> Result<(Option<i32>, String)> {
    let output = command.stderr(Stdio::piped()).spawn()?.wait_with_output()?;
    Ok((output.status.code(), String::from_utf8(output.stderr)?))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_could_not_be_shown_is_revoked() -> Result<()> {
    let database = TestDatabase::create("lost_key").await;
    let mut create = operator("api-keys create --name lost", &database.url);
    let (code, said) = errors(create.stdout(full()?))?;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("could not be shown, and was revoked; run it again"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    let good: i64 = sqlx::query_scalar("SELECT count(*) FROM api_keys WHERE revoked_at IS NULL OR revoked_at > now()")
        .fetch_one(&database.pool)
        .await?;
    assert_eq!(good, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_could_not_be_written_is_a_failure() -> Result<()> {
    let database = TestDatabase::create("lost_list").await;
    for line in ["api-keys list --json", "migrate", "parked list --json", "offsets list --json"] {
        let mut command = operator(line, &database.url);
        if line == "migrate" {
            command.env_remove("DB_ROLE");
        }
        let (code, said) = errors(command.stdout(full()?))?;
        assert_eq!(code, Some(1), "{line}: {said}");
        assert!(said.contains("No space left on device") && !said.contains("panicked"), "{line}: {said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_gone_ends_no_migration() -> Result<()> {
    let url = empty_database(&server()?).await?;
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let mut migrate = operator("migrate", &url);
    migrate.env_remove("DB_ROLE");
    let (_, said) = errors(migrate.stdout(writer))?;
    assert!(!said.contains("panicked"), "{said}");
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_tables WHERE tablename IN ('orders', 'outbox')")
        .fetch_one(&mut PgConnection::connect(&url).await?)
        .await?;
    assert_eq!(tables, 2, "{said}");
    Ok(())
}
