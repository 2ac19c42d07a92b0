//! The command line: what can be asked for, and who does it.

use std::io::ErrorKind;
use std::pin::Pin;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use shared::config::{ConfigError, EXIT_CONFIG};
use shared::db::chain;

use crate::console::not_printed;
use crate::signals::Interrupted;
use crate::{
    api_keys, bench, conformance, dead_letters, deny, doctor, migrate, notices, offsets, parked, prepare, producers,
    replay, seed, stack, status, test, top, trace, up,
};

/// Outrider: orders in over REST, events out through the outbox and Kafka, effects exactly once.
#[derive(Debug, Parser)]
#[command(name = "outrider", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring the whole pipeline up on this machine and show ten orders going through it
    ///
    /// Starts Postgres and Kafka privately unless `DATABASE_URL` and `KAFKA_BROKERS` name others, applies the migrations,
    /// runs the three services, and prints a line `ready URL` when orders can be posted. Stays until Ctrl-C, then stops
    /// everything in order. Kafka is fetched once through Maven, and Postgres too where the system has none
    /// (`OUTRIDER_POSTGRES`=auto, system or archive).
    #[command(after_help = UP_EXAMPLES)]
    Up(up::UpArgs),

    /// Post many orders, follow them till they are Processed, and print figures
    ///
    /// The exit code is 1 when an order was not accepted, or not Processed in time.
    #[command(after_help = SEED_EXAMPLES)]
    Seed(seed::SeedArgs),

    /// Apply this build's migrations to a database
    ///
    /// The database is that of `DATABASE_URL`, or of `DB_HOST`, `DB_USER`, `DB_PASSWORD`, `DB_NAME` and `DB_PORT`.
    #[command(after_help = MIGRATE_EXAMPLES)]
    Migrate(migrate::MigrateArgs),

    /// Show how the pipeline is doing: backlog, lanes, rate, parked keys, partitions, open transactions
    ///
    /// Reads the database of `DATABASE_URL`, or of `DB_HOST`, `DB_USER`, `DB_PASSWORD`, `DB_NAME` and `DB_PORT`; takes about
    /// a second, whatever the backlog. Beyond 20,000 events a lane the backlog is an estimate, marked "~" ("exact": false). A
    /// partition is "kept" while some of it is to be published, then "published" until `RELAY_RETENTION` is over.
    #[command(after_help = STATUS_EXAMPLES)]
    Status(status::StatusArgs),

    /// Look at everything that the services rely on, and say what is wrong or will be, and what to do
    ///
    /// The database, the way to it and its settings, roles and rights, the outbox, the brokers and topics, the services' settings, and, with
    /// `--admin`, services that run. Takes their environment; changes nothing. The exit code is 0 if all is fine, 1 after a warning, 2 if
    /// something is wrong.
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(doctor::DoctorArgs),

    /// Watch the pipeline: rates and times by stage, backlog, lanes, partitions, parked keys, open transactions
    ///
    /// A page for the terminal, drawn anew each second; q quits. Rates and times come from the services' admin ports, all else from the
    /// database of the environment, as for `status`, and from Kafka if `KAFKA_BROKERS` is set.
    #[command(after_help = top::EXAMPLES)]
    Top(top::TopArgs),

    /// List the keys whose events Kafka refuses, publish them again, or give an event up
    ///
    /// The database is that of the environment, as for `migrate`; the role `outrider_operator` has the rights that this needs.
    Parked(parked::ParkedArgs),

    /// List what processors could not apply, have it applied again, or give it up
    ///
    /// The database is that of the environment, as for `migrate`; the role `outrider_operator` has the rights that this needs.
    DeadLetters(dead_letters::DeadLettersArgs),

    /// Make, list, revoke and rotate the keys that let callers into the API
    ///
    /// The database is that of the environment, as for `migrate`; the role `outrider_operator` has the rights that this needs.
    ApiKeys(api_keys::ApiKeysArgs),

    /// Let roles append events of an aggregate type, or no longer, and show which may
    ///
    /// The database is that of the environment, as for `migrate`; the role `outrider_operator` has the rights that this needs.
    Producers(producers::ProducersArgs),

    /// Show where consumer groups stand, and let one go on where its position is lost
    ///
    /// The database and the brokers are those of the environment, as for the processor; the role `outrider_operator` has the rights that
    /// this needs.
    Offsets(offsets::OffsetsArgs),

    /// Publish events again that were published before, from the partitions that are still there
    ///
    /// In the order of each key and with the same event ids, so that consumers that know repeats stay right. Shows what it would do
    /// first. Takes the relay's environment: the database, the brokers, `RELAY_ROUTES`.
    #[command(after_help = replay::EXAMPLES)]
    Replay(replay::ReplayArgs),

    /// Show the way of one order through all services, from its trace in Jaeger
    ///
    /// Which trace that is, the order's events in the outbox say; the database is that of the environment, as for `migrate`, and the role
    /// `outrider_operator` has the right that this needs. The exit code is 1 when there is no such trace.
    #[command(after_help = trace::EXAMPLES)]
    Trace(trace::TraceArgs),

    /// Run the tests, with a Postgres and a Kafka of their own
    ///
    /// They are started on free ports in a temporary folder and are gone afterwards. `DATABASE_URL` (of a superuser, or of
    /// one who may create databases) and `KAFKA_BROKERS` in the environment replace them.
    #[command(after_help = TEST_EXAMPLES)]
    Test(test::TestArgs),

    /// Measure this build on this machine
    ///
    /// With a Postgres and a Kafka of its own, and the services as processes, built for release. Results are kept in
    /// `tools/src/bench/README.md`.
    Bench(bench::BenchArgs),

    /// Try whether the API does what its description says, with requests that are made up from it
    ///
    /// On a Postgres of its own. The requests are made up by schemathesis, which is fetched once by pip and needs Python 3.11 or newer. The
    /// exit code is 1 at a violation.
    #[command(after_help = conformance::EXAMPLES)]
    Conformance(conformance::ConformanceArgs),

    /// Describe the checked queries in `.sqlx`, so that a build needs no database, and the schema for `doctor`
    #[command(after_help = PREPARE_EXAMPLES)]
    Prepare(prepare::PrepareArgs),

    /// Look whether licences, sources and versions of what we depend on are those that `deny.toml` allows
    ///
    /// By cargo-deny, which must be installed. The exit code is 1 when something is not allowed.
    #[command(after_help = deny::EXAMPLES)]
    Deny(deny::DenyArgs),

    /// Write the licences of all packages that are in our programs
    #[command(after_help = notices::EXAMPLES)]
    Notices(notices::NoticesArgs),

    /// End the children of a vanished parent
    #[command(hide = true)]
    Reaper,
}

/// The exit code for a command line that makes no sense; clap uses the same.
const EXIT_USAGE: u8 = 2;

const UP_EXAMPLES: &str = "Examples:
  cargo dev up
  cargo dev up --fresh --port 9090
  cargo dev up --install             install what is missing first
  cargo dev up --demo                keep orders coming
  cargo dev up --no-stay --json      for scripts: what happens, an object a line, and then an end
  cargo dev up --jaeger
  cargo dev up --data /tmp/outrider --no-seed";

const SEED_EXAMPLES: &str = "Examples:
  cargo dev seed
  cargo dev seed --count 20000 --concurrency 64
  cargo dev seed --count 60000 --rate 1000 --seed 7 --json";

const MIGRATE_EXAMPLES: &str = "Examples:
  DATABASE_URL=postgres://me:secret@db.example/shop outrider migrate
  outrider migrate --json";

const STATUS_EXAMPLES: &str = "Examples:
  DATABASE_URL=postgres://me:secret@db.example/shop outrider status
  outrider status --watch
  outrider status --json | jq .relay.backlog";

const TEST_EXAMPLES: &str = "Examples:
  cargo dev test
  cargo dev test --install           install what some tests need first
  cargo dev test -p relay
  cargo dev test -p tools --test e2e -- --nocapture
  SOAK_SECS=300 cargo dev test --slow -- healthy_topics";

const PREPARE_EXAMPLES: &str = "Examples:
  cargo dev prepare            write .sqlx anew, after a change of a query or a migration
  cargo dev prepare --check    for CI: exit code 1 when .sqlx is not current";

impl Cli {
    /// Does what was asked for, and says how that went by the exit code: 0 well, 1 not, 2 for a command line that makes
    /// no sense, 64 for a bad variable in the environment, 128 and the signal's number after an interruption.
    #[must_use]
    pub fn run(self) -> ExitCode {
        if matches!(self.command, Command::Reaper) {
            stack::reaper::run(std::io::stdin().lock());
            return ExitCode::SUCCESS;
        }
        match self.run_async() {
            Ok(code) => match not_printed() {
                // A reader that has read enough, such as `head`, need not be told.
                Some(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::FAILURE,
                Some(error) => {
                    eprintln!("outrider: it is done, but what it had to say could not be printed: {error}");
                    ExitCode::FAILURE
                }
                None => code,
            },
            Err(error) => {
                if let Some(error) = error.downcast_ref::<clap::Error>() {
                    let _ = error.print();
                    return ExitCode::from(EXIT_USAGE);
                }
                if let Some(interrupted) = error.downcast_ref::<Interrupted>() {
                    return ExitCode::from(interrupted.exit_code());
                }
                eprintln!("outrider: {}", chain(&error));
                match error.downcast_ref::<ConfigError>() {
                    Some(_) => ExitCode::from(EXIT_CONFIG),
                    None => ExitCode::FAILURE,
                }
            }
        }
    }

    fn run_async(self) -> Result<ExitCode> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
        let work: Pin<Box<dyn Future<Output = Result<ExitCode>>>> = match self.command {
            Command::Up(args) => Box::pin(up::run(args)),
            Command::Seed(args) => Box::pin(seed::run(args)),
            Command::Migrate(args) => Box::pin(migrate::run(args)),
            Command::Status(args) => Box::pin(status::run(args)),
            Command::Doctor(args) => Box::pin(doctor::run(args)),
            Command::Replay(args) => Box::pin(replay::run(args)),
            Command::Parked(args) => Box::pin(parked::run(args)),
            Command::DeadLetters(args) => Box::pin(dead_letters::run(args)),
            Command::ApiKeys(args) => Box::pin(api_keys::run(args)),
            Command::Producers(args) => Box::pin(producers::run(args)),
            Command::Offsets(args) => Box::pin(offsets::run(args)),
            Command::Top(args) => Box::pin(top::run(args)),
            Command::Trace(args) => Box::pin(trace::run(args)),
            Command::Test(args) => Box::pin(test::run(args)),
            Command::Bench(args) => Box::pin(bench::run(args)),
            Command::Conformance(args) => Box::pin(conformance::run(args)),
            Command::Prepare(args) => Box::pin(prepare::run(args)),
            Command::Deny(args) => Box::pin(deny::run(args)),
            Command::Notices(args) => return notices::run(&args),
            Command::Reaper => return Ok(ExitCode::SUCCESS),
        };
        runtime.block_on(work)
    }
}
