//! PgBouncer between a service and its database, with its defaults.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use shared::config::Env;
use shared::db::{Connector, DatabaseConfig};
use shared::testing::{TestDatabase, eventually};
use tokio::net::TcpStream;
use tools::migrate::migrate;
use tools::stack::{Launch, Process, free_port};

use super::reaper;

/// A PgBouncer in front of a database.
struct Pooler {
    process: Process,
    url: String,
    _folder: tempfile::TempDir,
}

impl Pooler {
    async fn start(database: &TestDatabase, mode: &str) -> Result<Self> {
        let (credentials, place) =
            database.url.split_once("//").and_then(|(_, url)| url.split_once('@')).context("a user")?;
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        let (address, name) = place.split_once('/').context("a database")?;
        let (host, server_port) = address.split_once(':').context("a port")?;
        // An empty one is a fault of the file.
        let password = if password.is_empty() { String::new() } else { format!(" password='{password}'") };
        let port = free_port()?;
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("pgbouncer.ini");
        fs::write(
            &file,
            format!(
                "[databases]\n{name} = host={host} port={server_port} dbname={name} user={user}{password}\n\
                [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = {mode}\n"
            ),
        )?;
        // It refuses to run as root, and reads its file as whom it becomes.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let mut launch = Launch::new("pgbouncer", "pgbouncer").log(folder.path().join("log"));
        if rustix::process::geteuid().is_root() {
            launch = launch.arg("-u").arg("nobody");
        }
        let process = launch
            .arg(file.display().to_string())
            .spawn(&reaper()?)
            .context("PgBouncer is needed for this test; Debian: apt install pgbouncer")?;
        let url = format!("postgres://anybody@127.0.0.1:{port}/{name}");
        eventually("PgBouncer listens", async || TcpStream::connect(("127.0.0.1", port)).await.ok()).await;
        Ok(Self { process, url, _folder: folder })
    }

    fn config(&self) -> Result<DatabaseConfig> {
        let env = Env::from_pairs([("DATABASE_URL", self.url.as_str()), ("DB_ROLE", "outrider_relay")]);
        Ok(DatabaseConfig::from_env(&env, "outrider-test")?)
    }
}

#[tokio::test]
async fn a_pool_of_sessions_has_our_role_and_settings_and_one_of_transactions_is_refused() -> Result<()> {
    let database = TestDatabase::create("pooler").await;
    let mut sessions = Pooler::start(&database, "session").await?;
    let pool = sessions.config()?.open().await?;
    let found: (String, String, String) =
        sqlx::query_as("SELECT current_user::text, current_setting('row_security'), current_setting('search_path')")
            .fetch_one(&pool)
            .await?;
    assert_eq!(found, ("outrider_relay".to_owned(), "off".to_owned(), "public".to_owned()));
    pool.close().await;
    ensure!(migrate(Connector::plain(sessions.url.parse()?)).await?.applied.is_empty());
    sessions.process.stop().await?;

    let mut transactions = Pooler::start(&database, "transaction").await?;
    let refused = [
        transactions.config()?.open().await.err().map(|error| error.to_string()),
        migrate(Connector::plain(transactions.url.parse()?)).await.err().map(|error| format!("{error:#}")),
    ];
    for error in refused {
        let error = error.context("it should have refused")?;
        ensure!(error.contains("pool_mode=session") && error.lines().count() == 1, "{error}");
    }
    transactions.process.stop().await?;
    Ok(())
}
