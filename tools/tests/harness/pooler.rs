//! PgBouncer between a service and its database.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use shared::config::Env;
use shared::db::DatabaseConfig;
use shared::testing::{TestDatabase, eventually};
use tokio::net::TcpStream;
use tools::stack::{Launch, Process, free_port};

use super::reaper;

/// A program of PgBouncer, with what it needs to run here.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// The program, and the arguments that come before its own.
    pub(crate) command: Vec<PathBuf>,
}

impl Program {
    /// That of the system.
    pub(crate) fn installed() -> Self {
        Self { command: vec!["pgbouncer".into()] }
    }

    pub(crate) fn launch(&self) -> Launch {
        Launch::new("pgbouncer", &self.command[0]).args(&self.command[1..])
    }
}

/// A PgBouncer in front of a database.
pub(crate) struct Pooler {
    pub(crate) process: Process,
    pub(crate) url: String,
    _folder: tempfile::TempDir,
}

impl Pooler {
    /// Starts one with its defaults, and with `settings`.
    pub(crate) async fn start(program: &Program, database: &TestDatabase, settings: &[(&str, &str)]) -> Result<Self> {
        let (credentials, place) =
            database.url.split_once("//").and_then(|(_, url)| url.split_once('@')).context("a user")?;
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        let (address, name) = place.split_once('/').context("a database")?;
        let (host, server_port) = address.split_once(':').context("a port")?;
        // An empty one is a fault of the file.
        let password = if password.is_empty() { String::new() } else { format!(" password='{password}'") };
        let settings: Vec<String> = settings.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        let settings = settings.join("\n");
        let port = free_port()?;
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("pgbouncer.ini");
        fs::write(
            &file,
            format!(
                "[databases]\n{name} = host={host} port={server_port} dbname={name} user={user}{password}\n\
                [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n{settings}\n"
            ),
        )?;
        // It refuses to run as root, and reads its file as whom it becomes.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let mut launch = program.launch().log(folder.path().join("log"));
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

    /// The configuration of a relay behind it.
    pub(crate) fn config(&self) -> Result<DatabaseConfig> {
        let env = Env::from_pairs([("DATABASE_URL", self.url.as_str()), ("DB_ROLE", "outrider_relay")]);
        Ok(DatabaseConfig::from_env(&env, "outrider-test")?)
    }
}
