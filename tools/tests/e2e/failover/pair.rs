//! A primary, a standby that confirms each of its commits, and the address that leads to the one that counts.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use shared::db::Connector;
use shared::testing::eventually;
use sqlx::{Executor, PgConnection};
use tools::migrate::migrate;
use tools::stack::Postgres;
use tools::stack::postgres::{PostgresOptions, connect};
use tools::stack::throwaway::{Supply, Throwaway};

use crate::proxy::Proxy;

const DATABASE: &str = "shop";

/// Servers of one test.
pub(super) struct Pair {
    pub(super) primary: Postgres,
    pub(super) standby: Postgres,
    pub(super) proxy: Proxy,
    // Last: the servers end before their folder.
    _place: Throwaway,
}

impl Pair {
    /// Starts both. The standby begins as a copy of the stopped primary's files, which needs no program but `postgres`.
    pub(super) async fn start(supply: &Supply) -> Result<Self> {
        let place = Throwaway::new()?;
        let start = async |name: &str, settings: &[(&str, &str)]| {
            let folder = place.folder().join(name);
            let log = place.folder().join(format!("{name}.log"));
            let binaries = supply.postgres(&log, &folder).await?;
            // Each commit waits for the standby, once there is one that is asked for.
            let settings = [&[("synchronous_commit", "on")], settings].concat();
            let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            Postgres::start(&binaries, &PostgresOptions { folder, log, durable: false, settings }, &supply.reaper).await
        };
        let mut first = start("primary", &[]).await?;
        first.create_database(DATABASE).await?;
        migrate(Connector::plain(first.url(DATABASE).parse()?)).await?;
        first.stop().await?;
        copy(first.folder(), &place.folder().join("standby"))?;

        let primary = start("primary", &[]).await?;
        let mut connection = connect(&primary.url(DATABASE)).await?;
        connection.execute("SELECT pg_create_physical_replication_slot('standby')").await?;
        let from = format!("{}?application_name=standby", primary.url("postgres"));
        let follow =
            [("primary_conninfo", from.as_str()), ("primary_slot_name", "standby"), ("hot_standby_feedback", "on")];
        let standby = start("standby", &follow).await?;
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'").await?;
        connection.execute("SELECT pg_reload_conf()").await?;
        eventually("the standby confirms commits", async || {
            let sql = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'sync'";
            let confirming: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.ok()?;
            (confirming == 1).then_some(())
        })
        .await;
        let proxy = Proxy::to(primary.port()).await?;
        Ok(Self { primary, standby, proxy, _place: place })
    }

    /// The URL that leads to whichever server counts.
    pub(super) fn url(&self) -> String {
        // Both have the same password, being copies.
        let port = format!(":{}/", self.primary.port());
        self.primary.url(DATABASE).replace(&port, &format!(":{}/", self.proxy.port()))
    }

    /// A connection to the primary, past the proxy.
    pub(super) async fn at_primary(&self) -> Result<PgConnection> {
        connect(&self.primary.url(DATABASE)).await
    }

    /// A connection to the standby, past the proxy.
    pub(super) async fn at_standby(&self) -> Result<PgConnection> {
        connect(&self.standby.url(DATABASE)).await
    }
}

/// A copy of a stopped server's folder that follows when it is started.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let run = |from: &Path, to: &Path| -> Result<()> {
        // With owners and permissions, which a server is strict about.
        let status = Command::new("cp").arg("-a").arg(from).arg(to).status().context("cp")?;
        ensure!(status.success(), "cp has failed");
        Ok(())
    };
    run(from, to)?;
    // Only that it is there matters; a copy has the right owner.
    run(&to.join("data/PG_VERSION"), &to.join("data/standby.signal"))
}
