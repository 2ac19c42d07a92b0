//! `outrider migrate` on databases that were made by others.

use anyhow::{Result, ensure};
use shared::testing::TestDatabase;

use super::command_line::outrider;

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
