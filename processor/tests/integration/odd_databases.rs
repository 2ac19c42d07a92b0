//! Databases as administrators set them up.

use processor::ProcessorError;
use sqlx::AssertSqlSafe;

use crate::support::World;

impl World {
    /// Sets something for all connections to the database from now on.
    async fn alter_database(&self, setting: &str) {
        let name: String =
            sqlx::query_scalar("SELECT current_database()::text").fetch_one(&self.database.pool).await.expect("a name");
        let sql = format!("ALTER DATABASE \"{name}\" {setting}");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.database.pool).await.expect("altered");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_administrator_sets_for_the_database_does_not_reach_us() {
    let world = World::new("settings", 2).await;
    for setting in [
        "SET default_transaction_isolation = 'serializable'",
        "SET search_path = nowhere, public",
        "SET TimeZone = 'Asia/Kathmandu'",
        "SET DateStyle = 'German, DMY'",
        "SET standard_conforming_strings = off",
        "SET row_security = on",
    ] {
        world.alter_database(setting).await;
    }
    let running = world.start(&[]);
    world.created_orders(50).await;
    world.eventually_processed(50).await;
    running.stop().await;
    world.assert_processed_once(50).await;
    let opened = world.config(&[]).database.open().await.expect("a pool");
    let found: Vec<String> = sqlx::query_scalar(
        "SELECT current_setting(name) FROM unnest(ARRAY['transaction_isolation', 'search_path', 'TimeZone', 'DateStyle',
            'standard_conforming_strings', 'row_security', 'role']) WITH ORDINALITY AS s (name, place) ORDER BY place",
    )
    .fetch_all(&mut *opened.acquire().await.expect("a connection"))
    .await
    .expect("settings");
    assert_eq!(found, ["read committed", "public", "UTC", "ISO, MDY", "on", "off", "outrider_processor"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn row_level_security_that_hides_rows_from_us_is_refused_at_the_start() {
    let world = World::new("row_security", 1).await;
    let alter = async |sql: &'static str| {
        sqlx::raw_sql(sql).execute(&world.database.pool).await.expect("altered");
    };
    let (mine, all) = ("ALTER TABLE inbox ENABLE ROW LEVEL SECURITY", "ALTER TABLE inbox DISABLE ROW LEVEL SECURITY");
    for (on, off) in
        [(mine, all), ("ALTER TABLE inbox ENABLE ROW LEVEL SECURITY; ALTER TABLE inbox FORCE ROW LEVEL SECURITY", all)]
    {
        alter(on).await;
        let ended = world.start(&[]).ended().await;
        let Err(ProcessorError::Database(error)) = ended else { panic!("it should have refused: {ended:?}") };
        let said = error.to_string();
        assert!(said.contains("row-level security is on for the table inbox"), "{said}");
        assert!(said.contains("BYPASSRLS"), "{said}");
        alter(off).await;
    }
    // Somebody else's table is somebody else's business.
    alter("CREATE TABLE theirs (n integer); ALTER TABLE theirs ENABLE ROW LEVEL SECURITY").await;
    let running = world.start(&[]);
    world.created_orders(3).await;
    world.eventually_processed(3).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_servers_the_one_that_is_there_is_used() {
    let world = World::new("several_hosts", 1).await;
    let (credentials, rest) = world.database.url.split_once('@').expect("a user");
    let (host, name) = rest.split_once('/').expect("a database");
    // Nobody listens on the first one.
    let url = format!("{credentials}@127.0.0.1:1,{host}/{name}?target_session_attrs=read-write");
    let running = world.start(&[("DATABASE_URL", &url)]);
    world.created_orders(5).await;
    world.eventually_processed(5).await;
    running.stop().await;
}
