//! A child process: in its own process group, its output in a file, known to the reaper, never left behind.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};
use tokio::time;

use super::reaper::Reaper;

/// How much of a log is shown with an error, in lines.
const TAIL_LINES: usize = 15;

/// How much of a log is read for that, in bytes.
const TAIL_BYTES: u64 = 16 * 1024;

/// How often a process that should become ready is asked.
const PROBE_INTERVAL: Duration = Duration::from_millis(20);

/// How long dropping a running process may block until it is gone.
const DROP_PATIENCE: Duration = Duration::from_secs(5);

/// The user and group to run a child as, when we are root and it may not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// What to start and how to end it.
#[derive(Debug)]
pub struct Launch {
    name: String,
    command: Command,
    log: Option<PathBuf>,
    end_with: Signal,
    drop_with: Signal,
    grace: Duration,
}

impl Launch {
    /// A program to start; `name` is what messages call it. Without further settings it reads nothing, shares our
    /// output, and is ended by SIGTERM with ten seconds of grace.
    #[must_use]
    pub fn new(name: impl Into<String>, program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).process_group(0);
        Self {
            name: name.into(),
            command,
            log: None,
            end_with: Signal::TERM,
            drop_with: Signal::KILL,
            grace: Duration::from_secs(10),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds several arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable in the child's environment, which is else a copy of ours.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Takes a variable out of the child's environment.
    #[must_use]
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Sets the folder that the child works in.
    #[must_use]
    pub fn current_dir(mut self, folder: impl AsRef<Path>) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Sends what the child prints, on both streams, to the end of a file, which is created when it is missing.
    #[must_use]
    pub fn log(mut self, file: impl Into<PathBuf>) -> Self {
        self.log = Some(file.into());
        self
    }

    /// Runs the child as another user.
    #[must_use]
    pub fn user(mut self, user: Option<User>) -> Self {
        if let Some(User { uid, gid }) = user {
            self.command.uid(uid).gid(gid);
        }
        self
    }

    /// Sets the signal that ends the child in good order, and how long that may take.
    #[must_use]
    pub fn end_with(mut self, signal: Signal, grace: Duration) -> Self {
        self.end_with = signal;
        self.grace = grace;
        self
    }

    /// Sets the signal that ends the child at once, when its handle is dropped. SIGKILL, unless set.
    #[must_use]
    pub fn drop_with(mut self, signal: Signal) -> Self {
        self.drop_with = signal;
        self
    }

    /// Starts the child and names it to the reaper.
    pub fn spawn(mut self, reaper: &Reaper) -> Result<Process> {
        if let Some(log) = &self.log {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(log)
                .with_context(|| format!("cannot write {}", log.display()))?;
            let copy = file.try_clone().context("cannot share a log file")?;
            self.command.stdout(file).stderr(copy);
        }
        let child = self.command.spawn().with_context(|| format!("cannot start {}", self.name))?;
        let pid = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw)
            .with_context(|| format!("{} has no process number", self.name))?;
        // Built first, so that a reaper that can't be told does not leave the child running.
        let process = Process {
            name: self.name,
            child,
            pid,
            log: self.log,
            end_with: self.end_with,
            drop_with: self.drop_with,
            grace: self.grace,
            reaper: reaper.clone(),
        };
        reaper.watch(pid, process.end_with).context("the reaper is gone")?;
        Ok(process)
    }

    /// Runs the child to its end and fails, with the tail of its log, unless it succeeds.
    pub async fn run(self, reaper: &Reaper) -> Result<()> {
        let mut process = self.spawn(reaper)?;
        let status = process.wait().await?;
        if status.success() {
            return Ok(());
        }
        Err(process.death(status))
    }
}

/// A child process, or what is known of it after its end.
///
/// Dropping a process that still runs ends it, and waits until it is gone.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pid: Pid,
    log: Option<PathBuf>,
    end_with: Signal,
    drop_with: Signal,
    grace: Duration,
    reaper: Reaper,
}

impl Process {
    /// What messages call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process number, which is also its process group.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The file that holds its output.
    #[must_use]
    pub fn log_file(&self) -> Option<&Path> {
        self.log.as_deref()
    }

    /// How it ended, or `None` while it runs.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.child.try_wait().context("cannot wait for a child")?;
        if status.is_some() {
            self.reaper.forget(self.pid);
        }
        Ok(status)
    }

    /// Waits for its end. May be cancelled, and called again afterwards.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        let status = self.child.wait().await.context("cannot wait for a child")?;
        self.reaper.forget(self.pid);
        Ok(status)
    }

    /// Sends a signal to the process and to those it has started in its group. Nothing happens when it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // A number that has been waited for may already belong to somebody else.
        if self.try_wait()?.is_some() {
            return Ok(());
        }
        kill_process_group(self.pid, signal).with_context(|| format!("cannot send a signal to {}", self.name))
    }

    /// Stops it where it stands (SIGSTOP), as a machine that swaps or a paused container would.
    pub fn freeze(&mut self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on after [`Process::freeze`].
    pub fn thaw(&mut self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Ends it at once (SIGKILL) and waits until it is gone.
    pub async fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        self.wait().await
    }

    /// Ends it in good order, and with SIGKILL when its grace is over. Says how it ended.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(self.end_with)?;
        self.thaw()?;
        match time::timeout(self.grace, self.wait()).await {
            Ok(ended) => ended,
            Err(_) => self.kill().await,
        }
    }

    /// Asks `probe` again and again until it says yes. Fails when the process ends before, or after `patience`.
    pub async fn wait_ready<P>(&mut self, patience: Duration, mut probe: P) -> Result<()>
    where
        P: AsyncFnMut() -> bool,
    {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.try_wait()? {
                return Err(self.death(status));
            }
            if probe().await {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("{} is not ready after {} s{}", self.name, patience.as_secs(), self.log_tail());
            }
            time::sleep(PROBE_INTERVAL).await;
        }
    }

    /// An error that says how the process ended, with the tail of its log.
    #[must_use]
    pub fn death(&self, status: ExitStatus) -> anyhow::Error {
        anyhow!("{} ended with {}{}", self.name, describe_status(status), self.log_tail())
    }

    /// The last lines of its log, indented, below a line that names the file; empty when it has none.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.log.as_deref().map(log_tail).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.try_wait(), Ok(None)) {
            return;
        }
        let _ = kill_process_group(self.pid, self.drop_with);
        let _ = kill_process_group(self.pid, Signal::CONT);
        let begun = Instant::now();
        while matches!(self.try_wait(), Ok(None)) {
            if begun.elapsed() > DROP_PATIENCE {
                let _ = kill_process_group(self.pid, Signal::KILL);
            }
            if begun.elapsed() > 2 * DROP_PATIENCE {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// How a process ended, in words: `exit code 1`, `signal 9`.
#[must_use]
pub fn describe_status(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// The last lines of a file, each indented by four spaces, below a line that names it. Empty when there are none.
#[must_use]
pub fn log_tail(file: &Path) -> String {
    use std::fmt::Write as _;
    let Ok(text) = read_end(file) else {
        return String::new();
    };
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.is_empty() {
        return String::new();
    }
    let mut tail = format!("\n  the end of {}:", file.display());
    for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
        let _ = write!(tail, "\n    {line}");
    }
    tail
}

fn read_end(file: &Path) -> std::io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(file)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn an_exit_status_is_told_in_words() {
        assert_eq!(describe_status(ExitStatus::from_raw(0)), "exit code 0");
        assert_eq!(describe_status(ExitStatus::from_raw(64 << 8)), "exit code 64");
        assert_eq!(describe_status(ExitStatus::from_raw(9)), "signal 9");
    }

    #[test]
    fn the_tail_of_a_log_is_its_last_lines() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("a.log");
        let lines: Vec<String> = (1..=40).map(|number| format!("line {number}")).collect();
        std::fs::write(&file, lines.join("\n"))?;
        let tail = log_tail(&file);
        assert!(tail.contains("a.log:\n    line 26\n"), "{tail}");
        assert!(tail.ends_with("\n    line 40"), "{tail}");
        assert_eq!(log_tail(&folder.path().join("none")), "");
        Ok(())
    }
}
