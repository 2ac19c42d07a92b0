//! `outrider doctor`: each check finds what was planted for it, in words that say what to do, and nothing on a good stack.

mod database;
mod kafka;
mod services;
mod start;

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::command_line::outrider;

/// What the command says of one check.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Finding {
    check: String,
    verdict: String,
    found: String,
    advice: Option<String>,
}

impl Finding {
    pub(super) fn is_fine(&self) -> bool {
        self.verdict == "fine"
    }

    /// Whether it is of this part of what is looked at.
    pub(super) fn concerns(&self, part: &str) -> bool {
        self.check.split('.').next() == Some(part)
    }
}

#[derive(Debug, Deserialize)]
struct Report {
    verdict: String,
    findings: Vec<Finding>,
}

/// The findings, after the exit code was compared with the worst of them.
pub(super) fn examined(command: &mut Command) -> Result<Vec<Finding>> {
    let output = command.arg("--json").output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let report: Report =
        serde_json::from_str(&said).with_context(|| format!("{said}{}", String::from_utf8_lossy(&output.stderr)))?;
    let code = match report.verdict.as_str() {
        "fine" => 0,
        "warning" => 1,
        _ => 2,
    };
    ensure!(output.status.code() == Some(code), "{} ended with {:?}", report.verdict, output.status);
    let worst = |verdict: &str| report.findings.iter().any(|found| found.verdict == verdict);
    let expected = if worst("wrong") { 2 } else { i32::from(worst("warning")) };
    ensure!(code == expected, "{said}");
    for found in &report.findings {
        ensure!(!found.found.contains('\n'), "more than a line: {found:?}");
        ensure!(found.is_fine() || found.advice.is_some() || found.found.contains(':'), "nothing to do: {found:?}");
    }
    Ok(report.findings)
}

/// The command on these servers.
pub(super) fn doctor(database_url: &str, kafka_brokers: &str) -> Command {
    let mut command = outrider("doctor");
    command.env("DATABASE_URL", database_url).env("KAFKA_BROKERS", kafka_brokers);
    command
}

/// Checks that a finding of this verdict has these words, and returns it.
pub(super) fn has<'a>(findings: &'a [Finding], check: &str, verdict: &str, words: &str) -> Result<&'a Finding> {
    let found =
        findings.iter().find(|found| found.check == check && found.verdict == verdict && found.found.contains(words));
    let others: Vec<&Finding> = findings.iter().filter(|found| !found.is_fine()).collect();
    found.with_context(|| format!("no {verdict} of {check} says {words:?}: {others:#?}"))
}

/// Checks that nothing is to be complained of.
fn all_fine(findings: &[Finding]) -> Result<()> {
    let others: Vec<&Finding> = findings.iter().filter(|found| !found.is_fine()).collect();
    ensure!(others.is_empty(), "{others:#?}");
    Ok(())
}
