//! A Postgres of one test's own, for what concerns how it listens and whom it lets in.

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;

use anyhow::{Context, Result};
use shared::config::{ConfigError, Env};
use shared::db::{Connector, DatabaseConfig};
use sqlx::{AssertSqlSafe, PgConnection};
use tools::migrate::migrate;
use tools::stack::postgres::{PostgresOptions, connect};
use tools::stack::throwaway::{Supply, Throwaway};
use tools::stack::{Postgres, unprivileged_user};

use super::supply;

/// Its server, with a migrated database.
pub(super) struct PrivatePostgres {
    pub(super) postgres: Postgres,
    pub(super) supply: Supply,
    // Last: the server ends before its folder.
    place: Throwaway,
}

impl PrivatePostgres {
    /// The name of the database.
    pub(super) const DATABASE: &str = "shop";

    /// Starts one that listens on these addresses, and at a socket in [`Self::sockets`].
    pub(super) async fn listening_on(addresses: &[IpAddr]) -> Result<Self> {
        let place = Throwaway::new()?;
        let sockets = sockets_in(&place);
        fs::create_dir(&sockets)?;
        hand_over(&sockets)?;
        let addresses: Vec<String> =
            ["127.0.0.1".to_owned()].into_iter().chain(addresses.iter().map(IpAddr::to_string)).collect();
        let sockets = sockets.display().to_string();
        let settings = [("listen_addresses", addresses.join(",").as_str()), ("unix_socket_directories", &sockets)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self::start_in(place, false, settings.to_vec()).await
    }

    /// Starts one that a crash of the machine would cost nothing, with these settings.
    pub(super) async fn durable(settings: &[(&str, &str)]) -> Result<Self> {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Self::start_in(Throwaway::new()?, true, settings.collect()).await
    }

    async fn start_in(place: Throwaway, durable: bool, settings: Vec<(String, String)>) -> Result<Self> {
        let supply = supply()?;
        let (folder, log) = (place.folder().join("pg"), place.folder().join("pg.log"));
        let binaries = supply.postgres(&log, &folder).await?;
        let options = PostgresOptions { folder, log, durable, settings };
        let postgres = Postgres::start(&binaries, &options, &supply.reaper).await?;
        postgres.create_database(Self::DATABASE).await?;
        migrate(Connector::plain(postgres.url(Self::DATABASE).parse()?)).await?;
        Ok(Self { postgres, supply, place })
    }

    /// The URL of its database, as superuser.
    pub(super) fn url(&self) -> String {
        self.postgres.url(Self::DATABASE)
    }

    /// Its password, as superuser.
    pub(super) fn password(&self) -> Result<String> {
        Ok(fs::read_to_string(self.postgres.folder().join("password"))?.trim().to_owned())
    }

    /// The folder of its socket. Its name has colons, as that of Cloud SQL has.
    pub(super) fn sockets(&self) -> PathBuf {
        sockets_in(&self.place)
    }

    /// A folder for what a test writes.
    pub(super) fn folder(&self) -> PathBuf {
        self.place.folder().to_owned()
    }

    /// A connection as superuser.
    pub(super) async fn connect(&self) -> Result<PgConnection> {
        connect(&self.url()).await
    }

    /// Writes a file of the server, which only it may read.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let file = self.postgres.folder().join("data").join(name);
        fs::write(&file, text)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        hand_over(&file)
    }

    /// Sets something in the running server, and has it read its files again.
    pub(super) async fn set(&self, settings: &[(&str, &str)]) -> Result<()> {
        let mut connection = self.connect().await?;
        for (name, value) in settings {
            let sql = format!("ALTER SYSTEM SET {name} = '{value}'");
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
        }
        sqlx::raw_sql("SELECT pg_reload_conf()").execute(&mut connection).await?;
        Ok(())
    }

    /// Lets logins in from this address, by password.
    pub(super) async fn let_in(&self, address: IpAddr) -> Result<()> {
        let file = self.postgres.folder().join("data/pg_hba.conf");
        let rules = fs::read_to_string(&file)?;
        fs::write(&file, format!("{rules}\nhost all all {address}/32 scram-sha-256\n"))?;
        self.set(&[]).await
    }
}

fn sockets_in(place: &Throwaway) -> PathBuf {
    place.folder().join("project:region:instance")
}

fn hand_over(path: &std::path::Path) -> Result<()> {
    if let Some(user) = unprivileged_user()? {
        std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid))?;
    }
    Ok(())
}

/// An address of this machine that is not on loopback. What is sent there does not leave the machine.
pub(super) fn address_of_this_machine() -> Result<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // Of those for documentation: it is only looked up by which address it would be reached, and nothing is sent.
    socket.connect("203.0.113.1:9").context("this machine has no address but loopback")?;
    Ok(socket.local_addr()?.ip())
}

/// The configuration of a service in this environment.
pub(super) fn config<const N: usize>(variables: [(&str, &str); N]) -> Result<DatabaseConfig, ConfigError> {
    DatabaseConfig::from_env(&Env::from_pairs(variables), "outrider-test")
}
