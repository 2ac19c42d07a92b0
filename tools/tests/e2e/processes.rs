//! Children and their ends.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;
use shared::testing::eventually;
use tools::stack::Launch;
use tools::stack::reaper::started;

use super::{OUTRIDER, reaper};

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

/// The reaper itself, on the pipe that a parent which was killed leaves behind. That of a whole `up` is in the module `up`.
#[tokio::test]
async fn the_children_of_a_vanished_parent_end() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let ready = folder.path().join("ready");
    let mut children = Vec::new();
    for script in [
        "exec sleep 600".to_owned(),
        "kill -STOP $$; exec sleep 600".to_owned(),
        format!("trap '' TERM; touch '{}'; while :; do sleep 1; done", ready.display()),
    ] {
        children.push(Command::new("sh").args(["-c", &script]).process_group(0).spawn()?);
    }
    let mut reaper = Command::new(OUTRIDER).arg("reaper").stdin(Stdio::piped()).process_group(0).spawn()?;
    let mut pipe = reaper.stdin.take().context("a pipe")?;
    for child in &children {
        writeln!(pipe, "+{} TERM", child.id())?;
    }
    exists(&ready).await;
    assert!(children.iter_mut().all(|child| matches!(child.try_wait(), Ok(None))), "all run until then");

    drop(pipe);
    for child in &mut children {
        let what = format!("the end of child {}", child.id());
        eventually(&what, async || child.try_wait().ok().flatten()).await;
    }
    assert!(reaper.wait()?.success());
    Ok(())
}
