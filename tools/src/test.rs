//! `outrider test`: starts what the tests need, runs them, stops it.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use rustix::process::Signal;

use crate::prerequisites;
use crate::signals::StopSignals;
use crate::stack::Reaper;
use crate::stack::throwaway::{Supply, Throwaway};
use crate::workspace::{Executables, Workspace};

/// How long cargo may take to end when it is interrupted.
const CARGO_PATIENCE: Duration = Duration::from_secs(5);

/// What chooses the slow tests for cargo. Of the whole workspace, so that the dependencies have the features that they have in every build.
const SLOW: [&str; 5] = ["--workspace", "--features", "tools/slow-tests", "--test", "slow"];

/// Tests that measure how late events are: they run one at a time, and beside no other.
const TIMED: [&str; 2] = ["late_bulks::", "topic_faults::"];

/// What to test.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Run the tests that take long, and only those, one after the other: a soak of half an hour (`SOAK_SECS` in the environment changes
    /// its length), many fresh starts (`FRESH_STARTS`), and a large backlog under a quota
    #[arg(long)]
    slow: bool,

    /// Handed on to `cargo test`; `--workspace` is put before them unless they choose packages
    #[arg(allow_hyphen_values = true, value_name = "ARGS")]
    args: Vec<OsString>,

    /// Handed on to the tests
    #[arg(last = true, allow_hyphen_values = true, value_name = "TEST_ARGS")]
    of_tests: Vec<OsString>,
}

impl TestArgs {
    /// All of them, as `cargo test` takes them.
    fn joined(&self) -> Vec<OsString> {
        let mut joined = self.args.clone();
        if !self.of_tests.is_empty() {
            // Behind arguments for cargo, the two dashes came along.
            joined.extend(joined.iter().all(|arg| arg != "--").then(|| "--".into()));
            joined.extend(self.of_tests.iter().cloned());
        }
        joined
    }
}

/// Runs `cargo test --workspace` with a Postgres and a Kafka of its own; `DATABASE_URL` and `KAFKA_BROKERS` in the
/// environment replace them. The exit code is cargo's, of the first run that fails.
pub async fn run(args: TestArgs) -> Result<ExitCode> {
    let workspace = Workspace::required()?;
    let mut signals = StopSignals::listen()?;
    let supply = Supply {
        cache: workspace.root().join(".dev"),
        announce: |line| eprintln!("{line}"),
        reaper: Reaper::start(Executables::own()?.outrider())?,
    };
    let mut servers = Throwaway::new()?;
    signals.interrupts(Box::pin(test(&workspace, &supply, &mut servers, args))).await
}

async fn test(workspace: &Workspace, supply: &Supply, servers: &mut Throwaway, args: TestArgs) -> Result<ExitCode> {
    if given("KAFKA_BROKERS").is_none() {
        prerequisites::java()?;
    }
    let database_url = match given("DATABASE_URL") {
        Some(url) => url,
        None => timed("Postgres", servers.start_postgres(supply)).await?,
    };
    let brokers = match given("KAFKA_BROKERS") {
        Some(brokers) => brokers,
        None => timed("Kafka", servers.start_kafka(supply)).await?,
    };
    // The end-to-end tests run the services, which cargo builds only if the tests of their own packages are built too.
    workspace.cargo().args(["build", "--workspace", "--bins"]).run(&supply.reaper).await?;
    for run in runs(&args) {
        let mut cargo = workspace
            .cargo()
            .arg("test")
            .args(run)
            .env("DATABASE_URL", &database_url)
            .env("KAFKA_BROKERS", &brokers)
            .end_with(Signal::TERM, CARGO_PATIENCE)
            .spawn(&supply.reaper)?;
        let status = cargo.wait().await?;
        if !status.success() {
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            return Ok(ExitCode::from(code.unwrap_or(1)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The arguments of each run of `cargo test`, one after the other.
fn runs(args: &TestArgs) -> Vec<Vec<OsString>> {
    let run = |parts: &[&[&str]]| parts.concat().iter().map(OsString::from).collect::<Vec<_>>();
    let joined = args.joined();
    let given = |chosen: &[&str]| [run(&[chosen]), joined.clone()].concat();
    if args.slow {
        let alone: &[&str] = if joined.iter().any(|arg| arg == "--") { &[] } else { &["--"] };
        return vec![[given(&SLOW), run(&[alone, &["--test-threads=1"]])].concat()];
    }
    if !joined.is_empty() {
        return vec![given(if names_packages(&joined) { &[] } else { &["--workspace"] })];
    }
    let skipped = TIMED.map(|name| ["--skip", name]).concat();
    vec![
        run(&[&["--workspace", "--"], &skipped]),
        run(&[&["--workspace", "--tests", "--", "--test-threads=1"], &TIMED]),
    ]
}

/// Whether the arguments for cargo choose packages; what follows `--` is for the tests.
fn names_packages(args: &[OsString]) -> bool {
    let mut for_cargo = args.iter().map(|arg| arg.to_string_lossy()).take_while(|arg| arg != "--");
    for_cargo.any(|arg| arg.starts_with("-p") || arg.starts_with("--package") || arg == "--workspace" || arg == "--all")
}

/// A variable that is set to something.
pub(crate) fn given(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

async fn timed(name: &str, start: impl Future<Output = Result<String>>) -> Result<String> {
    let begun = Instant::now();
    let address = start.await?;
    // The password stays out of the output.
    let place = address.rsplit('@').next().unwrap_or(&address);
    eprintln!("{name} at {place} ({:.1} s)", begun.elapsed().as_secs_f64());
    Ok(address)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: TestArgs,
    }

    fn lines(line: &str) -> Vec<String> {
        let args = Command::parse_from(std::iter::once("test").chain(line.split_whitespace())).args;
        let text = |run: Vec<OsString>| run.join(OsStr::new(" ")).into_string().unwrap();
        runs(&args).into_iter().map(text).collect()
    }

    #[test]
    fn each_test_runs_once_and_those_that_measure_run_alone() {
        let [all, timed] = lines("").try_into().unwrap();
        assert_eq!(all, "--workspace -- --skip late_bulks:: --skip topic_faults::");
        assert_eq!(timed, "--workspace --tests -- --test-threads=1 late_bulks:: topic_faults::");
    }

    #[test]
    fn what_is_given_is_handed_on_in_one_run() {
        assert_eq!(lines("--lib"), ["--workspace --lib"]);
        assert_eq!(lines("-p relay -- some"), ["-p relay -- some"]);
        assert_eq!(lines("some"), ["--workspace some"]);
        assert_eq!(lines("-- --nocapture some"), ["--workspace -- --nocapture some"]);
        let slow = "--workspace --features tools/slow-tests --test slow";
        assert_eq!(lines("--slow"), [format!("{slow} -- --test-threads=1")]);
        assert_eq!(lines("--slow -- --nocapture"), [format!("{slow} -- --nocapture --test-threads=1")]);
        assert_eq!(lines("--slow soak"), [format!("{slow} soak -- --test-threads=1")]);
    }

    #[test]
    fn packages_are_chosen_before_the_two_dashes_only() {
        let names = |line: &str| names_packages(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        for line in ["-p relay", "--lib --package=api", "--workspace --exclude tools"] {
            assert!(names(line), "{line}");
        }
        for line in ["--lib", "-- -p", "--test e2e -- --package"] {
            assert!(!names(line), "{line}");
        }
    }
}
