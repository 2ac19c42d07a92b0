//! The database moves into another Postgres cluster, by Postgres's own programs: `pg_upgrade`, and `pg_dump` with `psql`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use shared::db::Connector;
use shared::testing::{Record, all_settled, make_topic, published, unique};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};
use tools::migrate::migrate;
use tools::stack::postgres::{Binaries, PostgresOptions, connect};
use tools::stack::process::Launch;
use tools::stack::throwaway::{Supply, Throwaway};
use tools::stack::{Postgres, free_port, unprivileged_user};

use super::failover::Relay;
use super::supply;

const DATABASE: &str = "shop";

/// An event of this key commits late: after the relay has stopped.
const LATE: &str = "late";

/// Two clusters in one folder: the one that a relay has published from, and the one that the database moves to.
struct Move {
    place: Throwaway,
    supply: Supply,
    binaries: Binaries,
    aggregate_type: String,
}

impl Move {
    async fn new() -> Result<Self> {
        let (supply, place) = (supply()?, Throwaway::new()?);
        let binaries = supply.postgres(&place.folder().join("find.log"), &place.folder().join("before")).await?;
        // For what the programs write: they run as the servers' user.
        let work = place.folder().join("work");
        std::fs::create_dir(&work)?;
        if let Some(user) = unprivileged_user()? {
            std::os::unix::fs::chown(&work, Some(user.uid), Some(user.gid))?;
        }
        let step = Self { place, supply, binaries, aggregate_type: unique("thing") };
        make_topic(&step.topic()).await;
        Ok(step)
    }

    fn topic(&self) -> String {
        format!("{}s", self.aggregate_type)
    }

    fn work(&self) -> PathBuf {
        self.place.folder().join("work")
    }

    async fn start(&self, name: &str) -> Result<Postgres> {
        let (folder, log) = (self.place.folder().join(name), self.place.folder().join(format!("{name}.log")));
        let options = PostgresOptions { folder, log, durable: false, settings: Vec::new() };
        Postgres::start(&self.binaries, &options, &self.supply.reaper).await
    }

    /// One of Postgres's programs, of the same version as the servers.
    fn program(&self, name: &str) -> Result<Launch> {
        let program = self.binaries.folder().join(name);
        ensure!(program.exists(), "{} is missing; Debian: apt install postgresql", program.display());
        let log = self.place.folder().join(format!("{name}.log"));
        let launch = Launch::new(name, program).env("LC_ALL", "C").current_dir(self.work());
        Ok(launch.user(unprivileged_user()?).log(log))
    }

    async fn write(
        &self,
        connection: &mut PgConnection,
        key: &str,
        versions: std::ops::RangeInclusive<i64>,
    ) -> Result<()> {
        for version in versions {
            let sql = "INSERT INTO outbox (aggregate_type, aggregate_id, aggregate_version, type, payload) VALUES ($1, $2, $3, 't', '1')";
            sqlx::query(sql).bind(&self.aggregate_type).bind(key).bind(version).execute(&mut *connection).await?;
        }
        Ok(())
    }

    /// A cluster whose transaction ids are well ahead of a new one's. Versions 1 to 5 of "k" are published from it, 6 and 7 are not, and
    /// there is a late row.
    async fn before(&self) -> Result<Postgres> {
        let postgres = self.start("before").await?;
        postgres.create_database(DATABASE).await?;
        migrate(Connector::plain(postgres.url(DATABASE).parse()?)).await?;
        let mut connection = connect(&postgres.url(DATABASE)).await?;
        connection
            .execute("DO $$ BEGIN FOR i IN 1..20000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$")
            .await?;
        // In the lane of "k", where it can be late.
        let sql = "SELECT 'late' || i FROM generate_series(1, 1000) i
            WHERE hashtextextended($1 || '/late' || i, 0) & 15 = hashtextextended($1 || '/k', 0) & 15 LIMIT 1";
        let late_key: String = sqlx::query_scalar(sql).bind(&self.aggregate_type).fetch_one(&mut connection).await?;
        let mut late = connect(&postgres.url(DATABASE)).await?;
        let mut late = late.begin().await?;
        self.write(&mut late, &late_key, 1..=1).await?;
        let relay = Relay::start(&postgres.url(DATABASE))?;
        self.write(&mut connection, "k", 1..=5).await?;
        self.all_settled(&postgres).await?;
        relay.stop().await?;
        self.published(5).await?;
        late.commit().await?;
        self.write(&mut connection, "k", 6..=7).await?;
        connection.close().await?;
        Ok(postgres)
    }

    async fn all_settled(&self, postgres: &Postgres) -> Result<()> {
        let pool = PgPool::connect(&postgres.url(DATABASE)).await?;
        all_settled(&pool).await;
        pool.close().await;
        Ok(())
    }

    /// The records of the topic: so many events, each of them once, and in the order of its key.
    async fn published(&self, count: usize) -> Result<Vec<Record>> {
        let records = published(&self.topic(), count).await;
        ensure!(records.len() == count, "{} records of {count} events", records.len());
        let mut versions: HashMap<&str, Vec<i64>> = HashMap::new();
        for record in &records {
            versions.entry(&record.key).or_default().push(record.version);
        }
        for (key, versions) in versions {
            let expected: Vec<i64> = (1..=i64::try_from(versions.len())?).collect();
            ensure!(versions == expected, "versions of {key}: {versions:?}");
            ensure!(key == "k" || key.starts_with(LATE), "{key}");
        }
        Ok(records)
    }

    /// In the new cluster: what was not published is, with what is written there, and nothing twice.
    async fn goes_on_in(&self, postgres: &Postgres) -> Result<()> {
        let mut connection = connect(&postgres.url(DATABASE)).await?;
        let relay = Relay::start(&postgres.url(DATABASE))?;
        self.write(&mut connection, "k", 8..=9).await?;
        self.all_settled(postgres).await?;
        relay.stop().await?;
        self.published(10).await?;
        Ok(())
    }
}

async fn identifier(postgres: &Postgres) -> Result<i64> {
    let mut connection = connect(&postgres.url("postgres")).await?;
    Ok(sqlx::query_scalar("SELECT system_identifier FROM pg_control_system()").fetch_one(&mut connection).await?)
}

/// `pg_upgrade` starts both servers itself, and comes in by a socket in its folder.
fn trust_local_sockets(folder: &Path) -> Result<()> {
    let file = folder.join("data/pg_hba.conf");
    let rules = std::fs::read_to_string(&file)?;
    Ok(std::fs::write(&file, format!("local all all trust\n{rules}"))?)
}

#[tokio::test(flavor = "multi_thread")]
async fn after_pg_upgrade_a_relay_goes_on_without_an_operator() -> Result<()> {
    let step = Move::new().await?;
    let mut before = step.before().await?;
    let old_identifier = identifier(&before).await?;
    before.stop().await?;
    // A new cluster, empty and stopped.
    let mut after = step.start("after").await?;
    after.stop().await?;
    for postgres in [&before, &after] {
        trust_local_sockets(postgres.folder())?;
    }
    let (old_port, new_port) = (free_port()?.to_string(), free_port()?.to_string());
    let data = |postgres: &Postgres| postgres.folder().join("data").display().to_string();
    let (old_data, new_data, programs) = (data(&before), data(&after), step.binaries.folder().display().to_string());
    let sockets = step.work().display().to_string();
    let launch = step.program("pg_upgrade")?.args([
        "-b", &programs, "-B", &programs, "-d", &old_data, "-D", &new_data, "-p", &old_port, "-P", &new_port, "-s",
        &sockets, "-U", "postgres",
    ]);
    launch.run(&step.supply.reaper).await?;
    // The superuser has the password that it had.
    std::fs::copy(before.folder().join("password"), after.folder().join("password"))?;

    let after = step.start("after").await?;
    ensure!(identifier(&after).await? != old_identifier, "pg_upgrade gives another identifier");
    step.goes_on_in(&after).await
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_dump_and_restore_a_relay_refuses_until_it_is_reanchored() -> Result<()> {
    let step = Move::new().await?;
    let before = step.before().await?;
    let after = step.start("after").await?;
    after.create_database(DATABASE).await?;
    let dump = step.work().join("dump.sql");
    let from = format!("--dbname={}", before.url(DATABASE));
    let launch = step.program("pg_dump")?.arg(from).arg("--file").arg(&dump);
    launch.run(&step.supply.reaper).await?;
    let mut connection = connect(&after.url(DATABASE)).await?;
    for role in ["api", "relay", "processor", "writer", "operator"] {
        connection.execute(AssertSqlSafe(format!("CREATE ROLE outrider_{role}"))).await?;
    }
    let into = format!("--dbname={}", after.url(DATABASE));
    let launch = step.program("psql")?.arg(into).args(["-q", "-v", "ON_ERROR_STOP=1", "-f"]).arg(&dump);
    launch.run(&step.supply.reaper).await?;

    let error = Relay::start(&after.url(DATABASE))?.task.await?.err().context("it refuses")?.to_string();
    ensure!(error.contains("restored from a dump") && error.contains("CALL relay_reanchor()"), "{error}");
    connection.execute("CALL relay_reanchor()").await?;
    step.goes_on_in(&after).await
}
