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

/// What chooses the slow tests for cargo.
const SLOW: [&str; 6] = ["--package", "tools", "--features", "slow-tests", "--test", "slow"];

/// What to test.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Run the tests that take long, and only those, one after the other: a soak of half an hour (`SOAK_SECS` in the environment changes
    /// its length), many fresh starts (`FRESH_STARTS`), and a large backlog under a quota
    #[arg(long)]
    slow: bool,

    /// Handed on to `cargo test`; `--workspace` is put before them unless they choose packages
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    args: Vec<OsString>,
}

/// Runs `cargo test --workspace` with a Postgres and a Kafka of its own; `DATABASE_URL` and `KAFKA_BROKERS` in the
/// environment replace them. The exit code is cargo's.
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
    let chosen: &[&str] = match args.slow {
        true => &SLOW,
        false if names_packages(&args.args) => &[],
        false => &["--workspace"],
    };
    let mut cargo = workspace.cargo().arg("test").args(chosen).args(&args.args);
    if args.slow {
        // Each of them needs the machine for itself.
        cargo = cargo.env("RUST_TEST_THREADS", "1");
    }
    let mut cargo = cargo
        .env("DATABASE_URL", database_url)
        .env("KAFKA_BROKERS", brokers)
        .end_with(Signal::TERM, CARGO_PATIENCE)
        .spawn(&supply.reaper)?;
    let status = cargo.wait().await?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
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
    use super::*;

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
