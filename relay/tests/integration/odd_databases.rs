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
        let relay = database.config("outrider_relay").open().await.expect("a pool");
        let connection = &mut *relay.acquire().await.expect("a connection");
        sqlx::query("SELECT FROM outbox_drop_partitions('0s')").fetch_optional(connection).await.expect(isolation);
    }
}

#[tokio::test]
async fn what_somebody_creates_in_public_is_not_called_with_the_owners_rights() {
    let database = TestDatabase::create("shadowing").await;
    // It fits a date better than Postgres' own, which takes a timestamp.
    sqlx::raw_sql(
        "CREATE TABLE trophies (holder text);
        GRANT ALL ON trophies TO PUBLIC;
        CREATE FUNCTION to_char(day date, format text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO public.trophies VALUES (current_user);
            RETURN pg_catalog.to_char(day::timestamp, format);
        END $$;
        SET ROLE outrider_api;
        SELECT idempotency_make_partition(30);
        SET ROLE outrider_processor;
        SELECT inbox_make_partition();
        RESET ROLE",
    )
    .execute(&database.pool)
    .await
    .expect("partitions are made");
    let trophies: i64 =
        sqlx::query_scalar("SELECT count(*) FROM trophies").fetch_one(&database.pool).await.expect("a number");
    assert_eq!(trophies, 0);
    let open: Vec<String> = sqlx::query_scalar(
        "SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prosecdef
            AND NOT coalesce(proconfig, '{}') @> ARRAY['search_path=pg_catalog, pg_temp']",
    )
    .fetch_all(&database.pool)
    .await
    .expect("names");
    assert!(open.is_empty(), "they look for names in a schema where others may create: {open:?}");
}
