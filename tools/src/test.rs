//! `outrider test`: starts what the tests need, runs them, stops it.

use std::ffi::OsString;
use std::num::NonZero;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use prerequisites::{BUILD, Program};
use rustix::process::Signal;

use crate::required::java;
use crate::signals::StopSignals;
use crate::stack::Reaper;
use crate::stack::throwaway::{Supply, Throwaway};
use crate::workspace::{Executables, Workspace};

/// How long cargo may take to end when it is interrupted.
const CARGO_PATIENCE: Duration = Duration::from_secs(5);

/// What chooses the slow tests for cargo. Of the whole workspace, so that the dependencies have the features that they have in every build.
const SLOW: [&str; 5] = ["--workspace", "--features", "tools/slow-tests", "--test", "slow"];

/// The same for the rare tests.
const WITH_RARE: [&str; 5] = ["--workspace", "--features", "tools/slow-tests", "--test", "e2e"];

/// Ways to break a topic that are the twin of another one, which every run tries: they are tried with the slow tests.
const RARE: [&str; 5] = [
    "broken_topic::a_topic_of_long_events_whose_replica_stands_still_",
    "broken_topic::a_topic_whose_brokers_disk_has_failed_",
    "broken_topic::a_topic_whose_leader_is_not_available_",
    "broken_topic::a_topic_whose_replica_is_killed_",
    "broken_topic::a_topic_that_refuses_the_time_of_its_records_",
];

/// The variable that says how many tests of a binary run at the same time.
const THREADS: &str = "RUST_TEST_THREADS";

/// Tests that measure how late events are: they run one at a time, and beside no other.
const TIMED: [&str; 2] = ["late_bulks::", "topic_faults::"];

/// What to test.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Run the tests that take long or are rare, and only those, one after the other: a soak of half an hour (`SOAK_SECS` in the environment
    /// changes its length), many fresh starts (`FRESH_STARTS`), a large backlog under a quota, clients by all kinds of generators, and more ways to break a topic
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
    /// Whether nothing was chosen.
    fn is_whole(&self) -> bool {
        !self.slow && self.args.is_empty() && self.of_tests.is_empty()
    }

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
    let left_out = if args.is_whole() { left_out()? } else { Vec::new() };
    if given("KAFKA_BROKERS").is_none() {
        java()?;
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
    workspace.cargo().args(BUILD).run(&supply.reaper).await?;
    let mut code = ExitCode::SUCCESS;
    for run in runs(&args, &left_out) {
        let mut launch = workspace
            .cargo()
            .args(["test", "--no-default-features"])
            .args(run.arguments)
            .env("DATABASE_URL", &database_url)
            .env("KAFKA_BROKERS", &brokers)
            .end_with(Signal::TERM, CARGO_PATIENCE);
        // Tests that must run alone do, whatever is set.
        if let Some(threads) = run.threads.filter(|threads| *threads == 1 || given(THREADS).is_none()) {
            launch = launch.env(THREADS, threads.to_string());
        }
        let mut cargo = launch.spawn(&supply.reaper)?;
        let status = cargo.wait().await?;
        if !status.success() {
            code = ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
            break;
        }
    }
    for (program, found) in &left_out {
        eprintln!("not run, for want of {} ({found}):", program.name());
        for name in tests_with(*program) {
            eprintln!("  {name}…");
        }
    }
    if !left_out.is_empty() {
        eprintln!("to install what they need, and run all: cargo dev test --install");
    }
    Ok(code)
}

/// The tests that need a program which no newcomer has to have: the beginnings of their names.
fn tests_with(program: Program) -> &'static [&'static str] {
    match program {
        Program::Go => &["traces::", "replaced_system::a_go_client", "clients::a_generated_go_client"],
        Program::Node => &["clients::generated_typescript_types"],
        Program::Prometheus => &["alerts::"],
        Program::PostgresPrograms => &[
            "clusters::after_pg_upgrade_a_relay_goes_on_without",
            "clusters::after_a_dump_and_restore_a_relay_refuses",
            "compose::logins::",
        ],
        Program::PgBouncer => &["pooler::"],
        Program::Compiler | Program::Java | Program::JavaCompiler | Program::Maven | Program::Python => &[],
    }
}

/// What is missing that only some tests need, and what was found in its place. In CI all of them are to run.
fn left_out() -> Result<Vec<(Program, String)>> {
    let mut left_out = Vec::new();
    for program in Program::ALL.into_iter().filter(|program| !tests_with(*program).is_empty()) {
        if let Err(found) = program.look() {
            ensure!(given("CI").is_none(), "{} is missing ({found}), and in CI all tests run", program.name());
            left_out.push((program, found));
        }
    }
    Ok(left_out)
}

/// One run of `cargo test`.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    arguments: Vec<OsString>,
    /// Tests at the same time.
    threads: Option<usize>,
}

/// The runs, one after the other.
fn runs(args: &TestArgs, left_out: &[(Program, String)]) -> Vec<Run> {
    let run =
        |parts: &[&[&str]], threads| Run { arguments: parts.concat().iter().map(OsString::from).collect(), threads };
    let joined = args.joined();
    let given = |chosen: &[&str], threads| {
        let mut run = run(&[chosen], threads);
        run.arguments.extend(joined.iter().cloned());
        run
    };
    if args.slow {
        let mut chosen = vec![given(&SLOW, Some(1))];
        if joined.is_empty() {
            chosen.push(run(&[&WITH_RARE, &["--"], &RARE], Some(1)));
        }
        return chosen;
    }
    if !args.is_whole() {
        return vec![given(if names_packages(&joined) { &[] } else { &["--workspace"] }, None)];
    }
    let missing = left_out.iter().flat_map(|(program, _)| tests_with(*program));
    let skip = |names: &[&'static str]| names.iter().flat_map(|name| ["--skip", *name]).collect::<Vec<_>>();
    let skipped = skip(&TIMED.into_iter().chain(missing.copied()).collect::<Vec<_>>());
    // Most of them wait for something most of the time.
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    vec![
        run(&[&["--workspace", "--"], &skipped], Some(cores * 3)),
        run(&[&["--workspace", "--tests", "--"], &TIMED, &skip(&RARE)], Some(1)),
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
        let text = |run: Run| run.arguments.join(OsStr::new(" ")).into_string().unwrap();
        runs(&args, &[]).into_iter().map(text).collect()
    }

    #[test]
    fn each_test_runs_once_and_those_that_measure_run_alone() {
        let [all, timed] = lines("").try_into().unwrap();
        assert_eq!(all, "--workspace -- --skip late_bulks:: --skip topic_faults::");
        let rare = RARE.map(|name| format!(" --skip {name}")).concat();
        assert_eq!(timed, format!("--workspace --tests -- late_bulks:: topic_faults::{rare}"));
        let args = Command::parse_from(["test"]).args;
        let [all, timed] = runs(&args, &[(Program::Go, String::new())]).try_into().unwrap();
        assert_eq!((all.threads > Some(1), timed.threads), (true, Some(1)));
        let text = all.arguments.join(OsStr::new(" ")).into_string().unwrap();
        let expected = "--skip traces:: --skip replaced_system::a_go_client --skip clients::a_generated_go_client";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn what_is_given_is_handed_on_in_one_run() {
        assert_eq!(lines("--lib"), ["--workspace --lib"]);
        assert_eq!(lines("-p relay -- some"), ["-p relay -- some"]);
        assert_eq!(lines("some"), ["--workspace some"]);
        assert_eq!(lines("-- --nocapture some"), ["--workspace -- --nocapture some"]);
        let slow = "--workspace --features tools/slow-tests --test slow";
        let rare = format!("--workspace --features tools/slow-tests --test e2e -- {}", RARE.join(" "));
        assert_eq!(lines("--slow"), [slow, &rare]);
        assert_eq!(lines("--slow -- --nocapture"), [format!("{slow} -- --nocapture")]);
        assert_eq!(lines("--slow soak"), [format!("{slow} soak")]);
    }

    /// A test that was renamed would be run at the wrong time, or not at all.
    #[test]
    fn tests_that_are_chosen_by_name_exist() {
        let workspace = Workspace::required().unwrap();
        let sources = ["tools/tests/e2e", "relay/tests/integration"].map(|folder| workspace.root().join(folder));
        let mut files: Vec<_> = sources.to_vec();
        let mut texts = std::collections::HashMap::<String, String>::new();
        while let Some(path) = files.pop() {
            if path.is_dir() {
                files.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            } else {
                let module = path.file_stem().unwrap().to_string_lossy().into_owned();
                texts.entry(module).or_default().push_str(&std::fs::read_to_string(path).unwrap_or_default());
            }
        }
        let for_programs = Program::ALL.into_iter().flat_map(tests_with);
        for name in TIMED.iter().chain(&RARE).chain(for_programs) {
            let (path, test) = name.rsplit_once("::").unwrap();
            let module = path.rsplit("::").next().unwrap();
            let source = texts.get(module).unwrap_or_else(|| panic!("no module of {name}"));
            assert!(test.is_empty() || source.contains(&format!("fn {test}")), "{name}");
        }
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
