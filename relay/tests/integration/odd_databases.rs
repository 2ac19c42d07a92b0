//! Databases as administrators set them up.

use shared::testing::TestDatabase;
use sqlx::AssertSqlSafe;

#[tokio::test]
async fn rows_of_the_outbox_that_a_policy_hides_are_no_reason_to_pass_them_over() {
    let database = TestDatabase::create("outbox_policy").await;
    sqlx::raw_sql(
        "ALTER TABLE outbox ENABLE ROW LEVEL SECURITY;
        CREATE POLICY partly ON outbox FOR SELECT USING (aggregate_type <> 'order')",
    )
    .execute(&database.pool)
    .await
    .expect("a policy");
    let error = database.config("outrider_relay").open().await.expect_err("rows are hidden").to_string();
    assert!(
        error.contains("row-level security is on for the table outbox and holds for the role outrider_relay"),
        "{error}"
    );
}

#[tokio::test]
async fn partitions_are_dropped_whatever_isolation_an_administrator_has_set() {
    let database = TestDatabase::create("isolation").await;
    let name: String =
        sqlx::query_scalar("SELECT current_database()::text").fetch_one(&database.pool).await.expect("a name");
    for isolation in ["repeatable read", "serializable"] {
        let sql = format!("ALTER DATABASE \"{name}\" SET default_transaction_isolation = '{isolation}'");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&database.pool).await.expect("altered");
        let pool = database.config("outrider_relay").open().await.expect("a pool");
        sqlx::query("SELECT FROM outbox_drop_partitions('0s')").fetch_optional(&pool).await.expect(isolation);
    }
}
