//! The command line as its users call it.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Result, ensure};

use super::OUTRIDER;

/// A run of the executable under test, without what the tests' own environment says.
pub(super) fn outrider(line: &str) -> Command {
    let mut command = Command::new(OUTRIDER);
    command.args(line.split_whitespace());
    for name in ["DATABASE_URL", "KAFKA_BROKERS", "JAVA_HOME"] {
        command.env_remove(name);
    }
    command
}

/// A run of it by alice, an operator, on this database and with nothing to read.
pub(super) fn operator(line: &str, url: &str) -> Command {
    let mut command = outrider(line);
    command.env("DATABASE_URL", url).env("DB_ROLE", "outrider_operator").env("USER", "alice").stdin(Stdio::null());
    command
}

/// Runs it. Its exit code, and all that it said.
pub(super) fn said(command: &mut Command) -> Result<(Option<i32>, String)> {
    let output = command.output()?;
    Ok((output.status.code(), String::from_utf8([output.stdout, output.stderr].concat())?))
}

/// Like [`said`], for what must go well.
pub(super) fn well(command: &mut Command) -> Result<String> {
    let (code, said) = said(command)?;
    ensure!(code == Some(0), "{:?} ended with {code:?}: {said}", command.get_args());
    Ok(said)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_command_shows_examples() -> Result<()> {
    let commands = [
        "up",
        "seed",
        "migrate",
        "doctor",
        "status",
        "parked list",
        "parked retry",
        "parked discard",
        "dead-letters list",
        "dead-letters show",
        "dead-letters replay",
        "dead-letters discard",
        "api-keys create",
        "api-keys list",
        "api-keys revoke",
        "api-keys rotate",
        "offsets list",
        "offsets accept",
        "test",
        "bench relay",
        "prepare",
        "deny",
        "notices",
    ];
    for command in commands {
        let output = outrider(command).arg("--help").output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("Examples:"), "{command}: {text}");
    }
    Ok(())
}

#[test]
fn a_command_line_that_makes_no_sense_ends_with_2() -> Result<()> {
    for line in ["", "fly", "up --port x", "up --port 0", "seed --count 0", "seed --min-user 2 --max-user 1"] {
        let output = outrider(line).output()?;
        assert_eq!(output.status.code(), Some(2), "{line}: {}", stderr(&output));
        assert!(!output.stderr.is_empty(), "{line}");
    }
    Ok(())
}

#[test]
fn a_missing_variable_is_named_in_one_line() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for command in ["migrate", "status"] {
        let output = outrider(command).current_dir(&folder).output()?;
        assert_eq!(output.status.code(), Some(64));
        let text = stderr(&output);
        assert!(text.starts_with("outrider: DATABASE_URL: ") && text.lines().count() == 1, "{text}");
    }
    Ok(())
}

#[test]
fn a_missing_java_is_one_line_that_says_how_to_install_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let output = outrider("up --data").arg(folder.path()).env("PATH", folder.path()).output()?;
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert_eq!(text.lines().count(), 1, "{text}");
    for word in ["Java 17", "`cargo dev` installs it with the flag --install"] {
        assert!(text.contains(word), "{text}");
    }
    Ok(())
}

#[test]
fn a_taken_port_that_was_asked_for_is_an_error() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port();
    let output = outrider(&format!("up --port {port} --data")).arg(folder.path()).output()?;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&format!("port {port} of 127.0.0.1 is taken")), "{}", stderr(&output));
    assert!(!Path::new(&folder.path().join("postgres")).exists());
    Ok(())
}

#[test]
fn orders_that_nobody_takes_are_counted_by_reason() -> Result<()> {
    let closed = std::net::TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", closed.local_addr()?);
    drop(closed);
    let output = outrider("seed --json --count 5 --url").arg(url).output()?;
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["accepted"], 0);
    let reasons = report["failed"].as_object().map(|reasons| reasons.iter().collect::<Vec<_>>());
    assert!(
        matches!(reasons.as_deref(), Some([(reason, count)]) if reason.starts_with("no connection") && *count == 5),
        "{report}"
    );
    Ok(())
}
