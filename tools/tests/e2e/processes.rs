//! Children and their ends.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};
use shared::testing::eventually;
use tools::stack::reaper::started;
use tools::stack::{Launch, Process};

use super::reaper;

/// Names the file that [`a_parent`] writes the process numbers of its children to.
const CHILDREN_FILE: &str = "OUTRIDER_TEST_CHILDREN";

/// A child that would outlive any test.
fn sleeper() -> Launch {
    Launch::new("sleeper", "sleep").arg("600")
}

/// A child that takes no notice of SIGTERM, once it has made the file `ready`.
fn stubborn(ready: &Path) -> Launch {
    let script = format!("trap '' TERM; touch '{}'; while :; do sleep 1; done", ready.display());
    Launch::new("stubborn", "sh").arg("-c").arg(script)
}

async fn exists(file: &Path) {
    eventually(&format!("{}", file.display()), async || file.exists().then_some(())).await;
}

#[tokio::test]
async fn a_process_is_stopped_by_its_own_signal() -> Result<()> {
    use std::os::unix::process::ExitStatusExt;
    let mut process = sleeper().end_with(Signal::INT, Duration::from_secs(30)).spawn(&reaper()?)?;
    assert_eq!(process.try_wait()?, None);
    let status = process.stop().await?;
    assert_eq!(status.signal(), Some(Signal::INT.as_raw()));
    assert_eq!(started(process.pid()), None);
    // Once ended, it stays so, and nobody else gets its signals.
    assert_eq!(process.stop().await?, status);
    process.signal(Signal::TERM)?;
    Ok(())
}

#[tokio::test]
async fn a_process_that_ignores_its_signal_is_killed() -> Result<()> {
    use std::os::unix::process::ExitStatusExt;
    let folder = tempfile::tempdir()?;
    let ready = folder.path().join("ready");
    let mut process = stubborn(&ready).end_with(Signal::TERM, Duration::from_millis(50)).spawn(&reaper()?)?;
    exists(&ready).await;
    assert_eq!(process.stop().await?.signal(), Some(Signal::KILL.as_raw()));
    Ok(())
}

#[tokio::test]
async fn a_frozen_process_is_stopped_too() -> Result<()> {
    let mut process = sleeper().spawn(&reaper()?)?;
    process.freeze()?;
    process.stop().await?;
    assert_eq!(started(process.pid()), None);
    Ok(())
}

#[tokio::test]
async fn a_dropped_process_is_gone_when_the_drop_is_over() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let ready = folder.path().join("ready");
    let process = stubborn(&ready).spawn(&reaper()?)?;
    exists(&ready).await;
    let pid = process.pid();
    drop(process);
    assert_eq!(started(pid), None);
    Ok(())
}

#[tokio::test]
async fn a_failure_shows_the_end_of_the_log() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("it.log");
    let launch = Launch::new("it", "sh").args(["-c", "echo all is lost; exit 3"]).log(&log);
    let error = launch.run(&reaper()?).await.err().context("it fails")?.to_string();
    assert_eq!(error, format!("it ended with exit code 3\n  the end of {}:\n    all is lost", log.display()));
    Ok(())
}

#[tokio::test]
async fn who_ends_while_he_should_become_ready_is_not_waited_for() -> Result<()> {
    let begun = Instant::now();
    let mut process = Launch::new("it", "false").spawn(&reaper()?)?;
    let error = process.wait_ready(Duration::from_mins(10), async || false).await.err().context("it ended")?;
    assert_eq!(error.to_string(), "it ended with exit code 1");
    assert!(begun.elapsed() < Duration::from_mins(1));
    Ok(())
}

/// Not a test: the process that [`the_children_of_a_killed_parent_end`] kills.
#[tokio::test]
#[ignore = "is run by another test, in a process of its own"]
async fn a_parent() -> Result<()> {
    let Some(file) = std::env::var_os(CHILDREN_FILE).map(PathBuf::from) else {
        return Ok(());
    };
    let reaper = reaper()?;
    let ready = file.with_extension("ready");
    let mut children = [sleeper().spawn(&reaper)?, sleeper().spawn(&reaper)?, stubborn(&ready).spawn(&reaper)?];
    exists(&ready).await;
    children[1].freeze()?;
    let mut ended = sleeper().spawn(&reaper)?;
    ended.kill().await?;

    let pids: Vec<String> = children.iter().map(Process::pid).map(|pid| pid.as_raw_nonzero().to_string()).collect();
    let unfinished = file.with_extension("new");
    std::fs::write(&unfinished, pids.join("\n"))?;
    std::fs::rename(unfinished, file)?;
    tokio::time::timeout(Duration::from_mins(5), std::future::pending::<()>()).await?;
    Ok(())
}

#[tokio::test]
async fn the_children_of_a_killed_parent_end() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("children");
    let mut parent = Command::new(std::env::current_exe()?)
        .args(["--ignored", "--exact", "processes::a_parent"])
        .env(CHILDREN_FILE, &file)
        .stdout(Stdio::null())
        .spawn()?;
    exists(&file).await;
    let children: Vec<Pid> =
        std::fs::read_to_string(&file)?.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect();
    assert_eq!(children.len(), 3);
    assert!(children.iter().all(|child| started(*child).is_some()));

    parent.kill()?;
    parent.wait()?;
    for child in children {
        let what = format!("the end of child {}", child.as_raw_nonzero());
        eventually(&what, async || started(child).is_none().then_some(())).await;
    }
    Ok(())
}
