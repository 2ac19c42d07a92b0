//! The folder that a pipeline keeps its data in, used by one `up` at a time.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, getpid};
use tokio::time;

use crate::console::shown;
use crate::stack::{reachable, reaper, unprivileged_user};

/// How long the children of an `up` that was killed may take to end. Its reaper gives them less.
const LEFTOVERS_PATIENCE: Duration = Duration::from_secs(15);

/// How often the lock is tried meanwhile.
const LOCK_INTERVAL: Duration = Duration::from_millis(100);

/// A data folder that is ours until this is dropped, and until the reaper that shares the lock has ended.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    lock: File,
}

impl DataFolder {
    /// Makes the folder when it is missing, and locks it.
    pub async fn open(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path)?;
        fs::create_dir_all(path.join("logs")).with_context(|| format!("cannot create {}", path.display()))?;
        let file = path.join("lock");
        let mut lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&file)
            .with_context(|| format!("cannot write {}", file.display()))?;
        take(&mut lock, &path).await?;
        lock.set_len(0)?;
        lock.rewind()?;
        let own = getpid();
        writeln!(lock, "{} {}", own.as_raw_nonzero(), reaper::started(own).unwrap_or_default())?;
        Ok(Self { path, lock })
    }

    /// The lock, to be shared with the reaper.
    #[must_use]
    pub fn lock(&self) -> &File {
        &self.lock
    }

    /// The folder for the logs.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// The folder for Postgres.
    #[must_use]
    pub fn postgres(&self) -> PathBuf {
        self.path.join("postgres")
    }

    /// The folder for Kafka.
    #[must_use]
    pub fn kafka(&self) -> PathBuf {
        self.path.join("kafka")
    }

    /// The folder for Jaeger, which keeps no data.
    #[must_use]
    pub fn jaeger(&self) -> PathBuf {
        self.path.join("jaeger")
    }

    /// Removes what earlier runs have left. Whatever else is in the folder is not ours and stays.
    pub fn wipe(&self) -> Result<()> {
        // As root, Postgres may live elsewhere.
        let elsewhere = reachable(&self.postgres(), unprivileged_user()?)?;
        for folder in [self.postgres(), elsewhere, self.kafka(), self.jaeger(), self.logs()] {
            if folder.exists() {
                fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
            }
        }
        fs::create_dir_all(self.logs())?;
        Ok(())
    }

    /// Puts the logs of the last run aside, as `*.log.1`.
    pub fn set_logs_aside(&self) -> Result<()> {
        for entry in fs::read_dir(self.logs())? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                fs::rename(&path, path.with_extension("log.1"))?;
            }
        }
        Ok(())
    }
}

async fn take(lock: &mut File, path: &Path) -> Result<()> {
    let deadline = Instant::now() + LEFTOVERS_PATIENCE;
    let mut told = false;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
            Err(TryLockError::WouldBlock) => {}
        }
        if let Some(pid) = owner(lock)? {
            bail!(
                "another outrider up (process {pid}) uses {}; stop it, or choose another folder with --data",
                shown(path)
            );
        }
        if Instant::now() >= deadline {
            bail!("{} is still in use by what an earlier run has left", shown(path));
        }
        if !told {
            eprintln!("waiting for the last run's processes to end");
            told = true;
        }
        time::sleep(LOCK_INTERVAL).await;
    }
}

/// The process that wrote the lock file, when it still runs.
fn owner(lock: &mut File) -> Result<Option<i32>> {
    let mut text = String::new();
    lock.rewind()?;
    lock.read_to_string(&mut text)?;
    let Some((pid, started)) = text.trim().split_once(' ') else {
        return Ok(None);
    };
    let running =
        pid.parse().ok().and_then(Pid::from_raw).filter(|pid| reaper::started(*pid).as_deref() == Some(started));
    Ok(running.map(|pid| pid.as_raw_nonzero().get()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_is_used_by_one_at_a_time() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let first = DataFolder::open(folder.path()).await?;
        let second = DataFolder::open(folder.path()).await;
        let error = second.err().context("the second is refused")?.to_string();
        assert!(error.contains(&format!("process {}", getpid().as_raw_nonzero())), "{error}");
        drop(first);
        DataFolder::open(folder.path()).await?;
        Ok(())
    }

    #[tokio::test]
    async fn wiping_leaves_what_is_not_ours() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let data = DataFolder::open(folder.path()).await?;
        fs::create_dir_all(data.kafka().join("data"))?;
        fs::write(data.logs().join("api.log"), "x")?;
        fs::write(folder.path().join("notes.txt"), "mine")?;
        data.wipe()?;
        assert!(!data.kafka().exists());
        assert!(!data.logs().join("api.log").exists());
        assert!(folder.path().join("notes.txt").exists());
        Ok(())
    }
}
