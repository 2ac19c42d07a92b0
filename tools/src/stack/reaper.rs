//! The reaper: a small process that ends our children when we are gone without having done so.
//!
//! A parent that is killed with SIGKILL can't clean up, and a child can't ask the kernel to die with its parent
//! without code between fork and exec, which needs `unsafe`. So the parent starts `outrider reaper` first, holds a
//! pipe to it and names every child on that pipe. When the parent ends, in whatever way, the pipe closes; the reaper
//! then ends whatever is still listed, and itself.
//!
//! The protocol is one line a change: `+PID SIGNAL` names a process group and the signal that ends it in good order
//! (`INT`, `TERM` or `QUIT`), `-PID` takes it off the list again.

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};

/// How long the children of a vanished parent have to end in good order before they get SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// How often the reaper looks whether the processes it has signalled are gone.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// A handle on the reaper of this process. Clones share one reaper; it ends when the last of them is dropped.
#[derive(Debug, Clone)]
pub struct Reaper(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    process: Mutex<std::process::Child>,
}

impl Reaper {
    /// Starts a reaper from the `outrider` executable at `outrider`.
    pub fn start(outrider: &Path) -> Result<Self> {
        Self::spawn(outrider, Stdio::null())
    }

    /// Like [`Reaper::start`], and lets the reaper keep `lock` open until the last child is gone. A file lock belongs
    /// to the open file, which is then shared with the reaper: the next owner of the lock can't meet our leftovers.
    pub fn start_with_lock(outrider: &Path, lock: &File) -> Result<Self> {
        let lock = lock.try_clone().context("cannot share the lock file")?;
        Self::spawn(outrider, Stdio::from(lock))
    }

    fn spawn(outrider: &Path, kept_open: Stdio) -> Result<Self> {
        use std::os::unix::process::CommandExt;
        let process = Command::new(outrider)
            .arg("reaper")
            .stdin(Stdio::piped())
            .stdout(kept_open)
            .stderr(Stdio::null())
            // Out of reach of a terminal's Ctrl-C, and of whoever kills our own process group.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {} reaper", outrider.display()))?;
        Ok(Self(Arc::new(Inner { process: Mutex::new(process) })))
    }

    /// Puts a process group on the list.
    pub(super) fn watch(&self, pid: Pid, end_with: Signal) -> io::Result<()> {
        self.write(&format!("+{} {}\n", pid.as_raw_nonzero(), signal_name(end_with)))
    }

    /// Takes a process group off the list; to be called when it has ended. A reaper that is gone can't be told, and
    /// has nothing to do any more, so failures are not reported.
    pub(super) fn forget(&self, pid: Pid) {
        let _ = self.write(&format!("-{}\n", pid.as_raw_nonzero()));
    }

    fn write(&self, line: &str) -> io::Result<()> {
        let mut process = self.0.process.lock().unwrap_or_else(PoisonError::into_inner);
        process.stdin.as_mut().map_or_else(
            || Err(io::Error::other("the reaper's pipe is closed")),
            |pipe| pipe.write_all(line.as_bytes()),
        )
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let process = self.process.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(process.stdin.take());
        let _ = process.wait();
    }
}

/// One line of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Watch(Pid, Signal),
    Forget(Pid),
}

fn parse_line(line: &str) -> Option<Line> {
    let pid = |text: &str| text.parse().ok().and_then(Pid::from_raw);
    if let Some(rest) = line.strip_prefix('+') {
        let (number, signal) = rest.split_once(' ')?;
        Some(Line::Watch(pid(number)?, signal_from_name(signal)?))
    } else {
        Some(Line::Forget(pid(line.strip_prefix('-')?)?))
    }
}

fn signal_name(signal: Signal) -> &'static str {
    match signal {
        Signal::INT => "INT",
        Signal::QUIT => "QUIT",
        _ => "TERM",
    }
}

fn signal_from_name(name: &str) -> Option<Signal> {
    match name {
        "INT" => Some(Signal::INT),
        "QUIT" => Some(Signal::QUIT),
        "TERM" => Some(Signal::TERM),
        _ => None,
    }
}

/// A listed process group, and since when its leader runs: a process number may be given out again.
#[derive(Debug)]
struct Watched {
    pid: Pid,
    end_with: Signal,
    started: Option<String>,
}

impl Watched {
    fn is_running(&self) -> bool {
        let now = started(self.pid);
        now.is_some() && now == self.started
    }
}

/// Runs the reaper: reads the list from `pipe` until it closes, then ends what is left on it.
pub fn run(pipe: impl BufRead) {
    let mut list = read_list(pipe);
    list.retain(Watched::is_running);
    for watched in &list {
        let _ = kill_process_group(watched.pid, watched.end_with);
        // A frozen process sees the signal only when it goes on.
        let _ = kill_process_group(watched.pid, Signal::CONT);
    }
    if !wait_until_gone(&mut list, GRACE) {
        for watched in &list {
            let _ = kill_process_group(watched.pid, Signal::KILL);
        }
        wait_until_gone(&mut list, GRACE);
    }
}

fn read_list(pipe: impl BufRead) -> Vec<Watched> {
    let mut list: Vec<Watched> = Vec::new();
    for line in pipe.lines().map_while(Result::ok) {
        match parse_line(&line) {
            Some(Line::Watch(pid, end_with)) => list.push(Watched { pid, end_with, started: started(pid) }),
            Some(Line::Forget(pid)) => list.retain(|watched| watched.pid != pid),
            None => {}
        }
    }
    list
}

fn wait_until_gone(list: &mut Vec<Watched>, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        list.retain(Watched::is_running);
        if list.is_empty() || Instant::now() >= deadline {
            return list.is_empty();
        }
        thread::sleep(LOOK_INTERVAL);
    }
}

/// When a running process was started, as an opaque text; `None` when there is no such process, or only its corpse.
#[must_use]
pub fn started(pid: Pid) -> Option<String> {
    let number = pid.as_raw_nonzero();
    if Path::new("/proc/self/stat").exists() {
        let stat = std::fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
        // The name, in parentheses, may hold anything; the state is the first field behind it, the start time the 20th.
        let fields: Vec<&str> = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect())?;
        let is_dead = matches!(fields.first(), Some(&("Z" | "X")));
        return fields.get(19).filter(|_| !is_dead).map(ToString::to_string);
    }
    let ps = Command::new("ps").args(["-o", "state=,lstart=", "-p", &number.to_string()]).output().ok()?;
    let text = String::from_utf8_lossy(&ps.stdout).trim().to_owned();
    let (state, since) = text.split_once(char::is_whitespace)?;
    (!state.starts_with('Z')).then(|| since.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(number: i32) -> Pid {
        Pid::from_raw(number).expect("a process number")
    }

    #[test]
    fn every_line_of_the_protocol_is_understood() {
        assert_eq!(parse_line("+12 INT"), Some(Line::Watch(pid(12), Signal::INT)));
        assert_eq!(parse_line("+12 TERM"), Some(Line::Watch(pid(12), Signal::TERM)));
        assert_eq!(parse_line("+12 QUIT"), Some(Line::Watch(pid(12), Signal::QUIT)));
        assert_eq!(parse_line("-12"), Some(Line::Forget(pid(12))));
    }

    #[test]
    fn a_broken_line_names_no_process() {
        for line in ["", "+", "-", "12", "+12", "+0 TERM", "+x TERM", "+12 HUP", "-0", "-x"] {
            assert_eq!(parse_line(line), None, "{line:?}");
        }
    }

    #[test]
    fn a_forgotten_process_is_off_the_list() {
        let list = read_list("+12 TERM\n+13 INT\nnonsense\n-12\n".as_bytes());
        assert_eq!(list.iter().map(|watched| watched.pid).collect::<Vec<_>>(), [pid(13)]);
    }

    #[test]
    fn a_running_process_has_a_start_time_and_keeps_it() {
        let own = rustix::process::getpid();
        assert!(started(own).is_some());
        assert_eq!(started(own), started(own));
        assert_eq!(started(pid(i32::MAX)), None);
    }
}
