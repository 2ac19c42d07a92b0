//! `outrider up`, as a newcomer meets it, and what it leaves behind.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process};
use shared::testing::eventually;
use tools::stack::free_port;

use super::OUTRIDER;

/// An `up` in a data folder of its own.
struct Up {
    child: Child,
    output: PathBuf,
    data: PathBuf,
    _folder: tempfile::TempDir,
}

impl Up {
    fn start(arguments: &[&str]) -> Result<Self> {
        // Postgres, run as another user where we are root, must reach its folder.
        let folder = tempfile::Builder::new().prefix("outrider-up-").tempdir_in("/var/tmp")?;
        let (data, output) = (folder.path().join("data"), folder.path().join("output"));
        let file = File::create(&output)?;
        let mut command = Command::new(OUTRIDER);
        command.arg("up").arg("--data").arg(&data).args(arguments);
        for name in ["DATABASE_URL", "KAFKA_BROKERS"] {
            command.env_remove(name);
        }
        let child = command.stdout(file.try_clone()?).stderr(file).spawn()?;
        Ok(Self { child, output, data, _folder: folder })
    }

    fn output(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    async fn says(&mut self, text: &str) {
        eventually(text, async || {
            assert!(matches!(self.child.try_wait(), Ok(None)), "it ended: {}", self.output());
            self.output().contains(text).then_some(())
        })
        .await;
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Command lines of running processes that name `folder`, and environments that do.
fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.display().to_string();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let read = |name: &str| {
            String::from_utf8_lossy(&std::fs::read(entry.path().join(name)).unwrap_or_default()).into_owned()
        };
        let line = read("cmdline");
        // The services know the folder by their open log only.
        let log = std::fs::read_link(entry.path().join("fd/1")).unwrap_or_default().display().to_string();
        if line.contains(&folder) || log.starts_with(&folder) {
            found.push(line.replace('\0', " "));
        }
    }
    found
}

#[tokio::test]
async fn up_shows_ten_orders_processed_and_leaves_nothing_running() -> Result<()> {
    let port = free_port()?.to_string();
    let mut up = Up::start(&["--port", &port])?;
    up.says(&format!("\nready http://127.0.0.1:{port}\n")).await;
    up.says("10 of 10 orders Processed").await;
    assert!(processes_of(&up.data).len() >= 5, "servers and services run");
    up.signal(Signal::TERM)?;
    let status = eventually("the end of up", async || up.child.try_wait().ok().flatten()).await;
    assert!(status.success(), "{status}: {}", up.output());
    assert_eq!(processes_of(&up.data), [] as [String; 0]);
    Ok(())
}

#[tokio::test]
async fn a_killed_up_leaves_nothing_running() -> Result<()> {
    let port = free_port()?.to_string();
    let mut up = Up::start(&["--port", &port, "--no-seed"])?;
    up.says(&format!("\nready http://127.0.0.1:{port}\n")).await;
    up.signal(Signal::KILL)?;
    up.child.wait()?;
    let data = up.data.clone();
    eventually("the end of all children", async || processes_of(&data).is_empty().then_some(())).await;
    Ok(())
}
