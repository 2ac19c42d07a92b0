//! Databases of other encodings, which may have been migrated before that was refused.

use relay::RelayConfig;
use shared::config::Env;
use shared::db::MIGRATOR;
use shared::shutdown::Shutdown;
use shared::testing::PATIENCE;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::Fixture;

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_does_not_start_on_a_database_that_is_not_in_utf_8() {
    let fixture = Fixture::new("a_relay_does_not_start_on").await;
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let url = format!("{}_{encoding}", fixture.database.url);
        let (_, name) = url.rsplit_once('/').unwrap();
        let sql =
            format!("CREATE DATABASE \"{name}\" ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&fixture.database.pool).await.unwrap();
        let mut connection = PgConnection::connect(&url).await.unwrap();
        MIGRATOR.run(&mut connection).await.unwrap();

        let settings = fixture.settings(&[("DATABASE_URL", &url)]);
        let config = RelayConfig::from_env(&Env::from_pairs(settings)).unwrap();
        let ended = tokio::time::timeout(PATIENCE, relay::run(config, Shutdown::new())).await;
        let error = ended.expect("it ends at once").expect_err("it does not start").to_string();
        assert!(error.starts_with(&format!("the encoding of the database is {encoding}, ")), "{error}");
        assert!(error.contains("ENCODING 'UTF8' TEMPLATE template0") && !error.contains('\n'), "{error}");
    }
}
