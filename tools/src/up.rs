//! `outrider up`: the whole pipeline on this machine, from nothing to ten processed orders, until Ctrl-C.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::console::{say, short, shown, step};
use crate::http::OrdersApi;
use crate::migrate::migrate;
use crate::prerequisites;
use crate::signals::{Interrupted, StopSignals};
use crate::stack::kafka::{Jars, KafkaOptions};
use crate::stack::postgres::PostgresOptions;
use crate::stack::service::{Kind, Surroundings};
use crate::stack::throwaway::Supply;
use crate::stack::{Jaeger, Kafka, Pipeline, Postgres, Reaper, Service, free_port, is_free};
use crate::test::given;
use crate::workspace::{Executables, Workspace, dev_folder};
use data::DataFolder;

mod basic_seed;
mod data;
mod traces;

/// The port of the API unless another is asked for.
const PORT: u16 = 8080;

/// The database in a Postgres of our own.
const DATABASE: &str = "outrider";

/// How to run it.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct UpArgs {
    /// Port of the API on 127.0.0.1; 8080, or a free one when that is taken
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,

    /// Folder for the data of Postgres and Kafka and for the logs; `.dev/data` in the checkout unless given
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Throw away the data of earlier runs first
    #[arg(long)]
    fresh: bool,

    /// Run the services as they were built last, and build nothing
    #[arg(long)]
    no_build: bool,

    /// Collect traces in a Jaeger, which is built first (once, some minutes; needs Go); or send them to `OTEL_EXPORTER_OTLP_ENDPOINT`
    #[arg(long)]
    jaeger: bool,

    /// Send no orders
    #[arg(long)]
    no_seed: bool,
}

/// Brings everything up, stays until it is told to stop, and stops everything in order.
pub async fn run(args: UpArgs) -> Result<ExitCode> {
    let mut signals = StopSignals::listen()?;
    let executables = Executables::own()?;
    let folder = match &args.data {
        Some(folder) => folder.clone(),
        None => dev_folder()?.join("data"),
    };
    let data = signals.interrupts(DataFolder::open(&folder)).await?;
    let reaper = Reaper::start_with_lock(executables.outrider(), data.lock())?;
    let mut pipeline = Pipeline::default();
    let up =
        Up { args, executables, data, supply: Supply { cache: dev_folder()?, announce: |line| say(line), reaper } };
    let result = up.live(&mut pipeline, &mut signals).await;
    if let Err(error) = &result
        && !error.is::<Interrupted>()
    {
        eprintln!("outrider: {error:#}");
    }
    if !pipeline.is_empty() {
        stop(&mut pipeline, &mut signals).await;
    }
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if error.is::<Interrupted>() => Err(error),
        Err(_) => Ok(ExitCode::FAILURE),
    }
}

/// Stops in order; another signal meanwhile ends everything at once.
async fn stop(pipeline: &mut Pipeline, signals: &mut StopSignals) {
    let begun = Instant::now();
    say("stopping everything");
    let stopped = tokio::select! {
        complaints = pipeline.stop() => Some(complaints),
        _ = signals.next() => None,
    };
    if let Some(complaints) = stopped {
        for complaint in complaints {
            eprintln!("outrider: {complaint}");
        }
        say(format_args!("stopped in {}", short(begun.elapsed())));
    } else {
        // Dropping the processes kills them.
        *pipeline = Pipeline::default();
        say("killed");
    }
}

/// One run of `outrider up`.
struct Up {
    args: UpArgs,
    executables: Executables,
    data: DataFolder,
    supply: Supply,
}

impl Up {
    async fn live(&self, pipeline: &mut Pipeline, signals: &mut StopSignals) -> Result<()> {
        signals.interrupts(Box::pin(self.start(pipeline))).await?;
        let url = pipeline.api_url()?;
        say(format_args!("ready {url}"));
        if !self.args.no_seed {
            let api = OrdersApi::new(url.parse()?)?;
            let seeding = async {
                tokio::select! {
                    sent = basic_seed::send(&api) => sent,
                    death = pipeline.death() => Err(death?.error),
                }
            };
            let sent = signals.interrupts(Box::pin(seeding)).await;
            let first = sent.with_context(|| format!("see the logs in {}", shown(&self.data.logs())))?;
            if self.args.jaeger {
                traces::say_where_first_is(&api, first, pipeline.jaeger.as_ref()).await?;
            }
        }
        self.say_where_to_go(pipeline, &url);
        tokio::select! {
            _ = signals.next() => Ok(()),
            death = pipeline.death() => Err(death?.error),
        }
    }

    async fn start(&self, pipeline: &mut Pipeline) -> Result<()> {
        // Told before the long steps, and chosen after them: somebody may take a free port meanwhile.
        if let Some(port) = self.args.port {
            check_port(port)?;
        }
        if self.args.fresh {
            self.data.wipe()?;
        }
        self.data.set_logs_aside()?;
        step("prerequisites", async { self.check_prerequisites() }).await?;
        if let Some(arguments) = self.build_arguments() {
            step("build", self.build(arguments)).await?;
        }
        let database_url = step("postgres", Box::pin(self.start_postgres(pipeline))).await?;
        let kafka_brokers = step("kafka", Box::pin(self.start_kafka(pipeline))).await?;
        step("migrate", Box::pin(apply_migrations(&database_url))).await?;
        let env =
            if self.args.jaeger { step("jaeger", Box::pin(self.start_jaeger(pipeline))).await? } else { Vec::new() };
        let surroundings = Surroundings {
            binaries: self.executables.folder().to_owned(),
            logs: self.data.logs(),
            takes_role: pipeline.postgres.is_some(),
            database_url,
            kafka_brokers,
            env,
        };
        let port = match self.args.port {
            Some(port) => port,
            None => find_port()?,
        };
        step("services", self.start_services(pipeline, &surroundings, port)).await
    }

    fn build_arguments(&self) -> Option<Vec<String>> {
        if self.args.no_build { None } else { self.executables.build_arguments() }
    }

    fn check_prerequisites(&self) -> Result<((), String)> {
        let mut found = Vec::new();
        if given("KAFKA_BROKERS").is_none() {
            found.push(format!("Java {}", prerequisites::java()?.version));
            if !Jars::are_fetched(&self.supply.cache) {
                prerequisites::maven()?;
                found.push("Maven".to_owned());
            }
        }
        if self.build_arguments().is_some() {
            prerequisites::c_compiler()?;
            found.push("C compiler".to_owned());
        }
        if self.args.jaeger && given(traces::ENDPOINT).is_none() && !Jaeger::is_built(&self.supply.cache) {
            prerequisites::go()?;
            found.push("Go".to_owned());
        }
        Ok(((), found.join(", ")))
    }

    async fn build(&self, arguments: Vec<String>) -> Result<((), String)> {
        let workspace = Workspace::required()?;
        workspace.cargo().args(arguments).run(&self.supply.reaper).await?;
        Ok(((), "api, relay and processor are current".to_owned()))
    }

    async fn start_postgres(&self, pipeline: &mut Pipeline) -> Result<(String, String)> {
        if let Some(url) = given("DATABASE_URL") {
            return Ok((url, "given by DATABASE_URL".to_owned()));
        }
        let log = self.data.logs().join("postgres.log");
        let binaries = self.supply.postgres(&self.data.logs().join("maven.log"), &self.data.postgres()).await?;
        let options = PostgresOptions { folder: self.data.postgres(), log, durable: true, settings: Vec::new() };
        let postgres = pipeline.postgres.insert(Postgres::start(&binaries, &options, &self.supply.reaper).await?);
        postgres.create_database(DATABASE).await?;
        let words = format!(
            "Postgres {} on port {}, data in {}",
            postgres.version(),
            postgres.port(),
            shown(postgres.folder())
        );
        Ok((postgres.url(DATABASE), words))
    }

    async fn start_kafka(&self, pipeline: &mut Pipeline) -> Result<(String, String)> {
        if let Some(brokers) = given("KAFKA_BROKERS") {
            return Ok((brokers, "given by KAFKA_BROKERS".to_owned()));
        }
        let log = self.data.logs().join("kafka.log");
        let jars = self.supply.kafka(&self.data.logs().join("maven.log")).await?;
        let options = KafkaOptions { folder: self.data.kafka(), log, settings: Vec::new() };
        let kafka = pipeline.kafka.insert(Kafka::start(&jars, &options, &self.supply.reaper).await?);
        let words = format!("Kafka {} at {}, data in {}", Kafka::VERSION, kafka.brokers(), shown(&self.data.kafka()));
        Ok((kafka.brokers(), words))
    }

    /// Starts Jaeger, and returns what services are told to send their spans there.
    async fn start_jaeger(&self, pipeline: &mut Pipeline) -> Result<(traces::Env, String)> {
        if let Some(endpoint) = given(traces::ENDPOINT) {
            return Ok((traces::env(&endpoint), format!("{endpoint}, given by {}", traces::ENDPOINT)));
        }
        let log = self.data.logs().join("jaeger.log");
        let jaeger = Jaeger::start(&self.supply, &self.data.jaeger(), &log, true).await?;
        let jaeger = pipeline.jaeger.insert(jaeger);
        let words = format!("Jaeger {} at {}, in memory", Jaeger::VERSION, jaeger.url());
        Ok((traces::env(&jaeger.otlp_http()), words))
    }

    async fn start_services(
        &self,
        pipeline: &mut Pipeline,
        surroundings: &Surroundings,
        port: u16,
    ) -> Result<((), String)> {
        let bind = format!("127.0.0.1:{port}");
        for kind in Kind::ALL {
            let env = if kind == Kind::Api { vec![("API_BIND", bind.as_str())] } else { Vec::new() };
            let service = Service::start(kind, kind.name(), surroundings, &env, &self.supply.reaper)?;
            pipeline.services.push(service);
        }
        for service in &mut pipeline.services {
            service.wait_ready().await?;
        }
        Ok(((), "api, relay and processor are ready".to_owned()))
    }

    fn say_where_to_go(&self, pipeline: &Pipeline, url: &str) {
        let order = r#"{"user_id": 1, "product_id": 2, "quantity": 3}"#;
        say("");
        say(format_args!("  an order   curl -i {url}/orders -H 'content-type: application/json' -d '{order}'"));
        say(format_args!("  many       cargo dev seed --url {url}"));
        say("  callers    nobody is asked for a key (API_AUTH=none)");
        if let Some(postgres) = &pipeline.postgres {
            say(format_args!("  database   psql {}", postgres.url(DATABASE)));
        }
        if let Some(kafka) = &pipeline.kafka {
            say(format_args!("  kafka      {}", kafka.brokers()));
        }
        if let Some(jaeger) = &pipeline.jaeger {
            say(format_args!("  traces     DATABASE_URL=… cargo dev trace ORDER --jaeger {}", jaeger.url()));
        }
        for service in &pipeline.services {
            say(format_args!("  {:<10} {}/readyz and /metrics", service.kind().name(), service.admin_url()));
        }
        say(format_args!("  logs       {}/*.log", shown(&self.data.logs())));
        say("  Ctrl-C stops everything; the data stays for the next time (--fresh throws it away)");
    }
}

fn check_port(port: u16) -> Result<()> {
    if is_free(port) {
        return Ok(());
    }
    bail!("port {port} of 127.0.0.1 is taken; choose another, or leave out --port to let one be found")
}

fn find_port() -> Result<u16> {
    if is_free(PORT) {
        return Ok(PORT);
    }
    let port = free_port()?;
    say(format_args!("port {PORT} is taken, the API gets {port} (--port chooses another)"));
    Ok(port)
}

async fn apply_migrations(url: &str) -> Result<((), String)> {
    let options = url.parse().context("DATABASE_URL is no Postgres URL")?;
    let words = match migrate(&options).await?.as_slice() {
        [] => "the schema is current".to_owned(),
        applied => format!("{} migrations applied", applied.len()),
    };
    Ok(((), words))
}
