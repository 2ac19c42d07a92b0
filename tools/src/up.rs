//! `outrider up`: the whole pipeline on this machine, from nothing to ten processed orders, until Ctrl-C.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use prerequisites::Program;
use serde_json::json;
use shared::db::Connector;

use crate::console::{short, shown};
use crate::http::OrdersApi;
use crate::migrate::migrate;
use crate::output::Output;
use crate::required::{java, need};
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
mod demo;
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

    /// Keep five orders a second coming, to have something to look at
    #[arg(long)]
    demo: bool,

    /// Stop everything once the ten orders are Processed, and exit with 0
    #[arg(long, conflicts_with = "demo")]
    no_stay: bool,

    /// Print what happens as JSON, an object with `event` a line; whatever else there is to tell goes to stderr
    #[arg(long)]
    json: bool,
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
    let output = Output::new(args.json);
    let supply = Supply { cache: dev_folder()?, announce: output.announce(), reaper };
    let up = Up { args, executables, data, supply, output };
    let result = up.live(&mut pipeline, &mut signals).await;
    if let Err(error) = &result
        && !error.is::<Interrupted>()
    {
        eprintln!("outrider: {error:#}");
        output.event("failed", json!({ "error": format!("{error:#}") }));
    }
    if !pipeline.is_empty() {
        stop(&mut pipeline, &mut signals, output).await;
    }
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if error.is::<Interrupted>() => Err(error),
        Err(_) => Ok(ExitCode::FAILURE),
    }
}

/// Stops in order; another signal meanwhile ends everything at once.
async fn stop(pipeline: &mut Pipeline, signals: &mut StopSignals, output: Output) {
    let begun = Instant::now();
    output.tell("stopping", json!({}), "stopping everything");
    let stopped = tokio::select! {
        complaints = pipeline.stop() => Some(complaints),
        _ = signals.next() => None,
    };
    if let Some(complaints) = stopped {
        for complaint in complaints {
            eprintln!("outrider: {complaint}");
        }
        let taken = begun.elapsed();
        output.tell("stopped", json!({ "seconds": taken.as_secs_f64() }), format_args!("stopped in {}", short(taken)));
    } else {
        // Dropping the processes kills them.
        *pipeline = Pipeline::default();
        output.tell("killed", json!({}), "killed");
    }
}

/// One run of `outrider up`.
struct Up {
    args: UpArgs,
    executables: Executables,
    data: DataFolder,
    supply: Supply,
    output: Output,
}

impl Up {
    async fn live(&self, pipeline: &mut Pipeline, signals: &mut StopSignals) -> Result<()> {
        signals.interrupts(Box::pin(self.start(pipeline))).await?;
        let url = pipeline.api_url()?;
        self.output.headline("ready", json!({ "url": url }), format_args!("ready {url}"));
        let api = OrdersApi::new(url.parse()?)?;
        if !self.args.no_seed {
            let seeding = async {
                tokio::select! {
                    sent = basic_seed::send(&api, self.output) => sent,
                    death = pipeline.death() => Err(death?.error),
                }
            };
            let sent = signals.interrupts(Box::pin(seeding)).await;
            let first = sent.with_context(|| format!("see the logs in {}", shown(&self.data.logs())))?;
            if self.args.jaeger {
                traces::tell_where_first_is(&api, first, pipeline.jaeger.as_ref(), self.output).await?;
            }
        }
        self.tell_where_to_go(pipeline, &url);
        if self.args.no_stay {
            return Ok(());
        }
        let load =
            async { if self.args.demo { demo::run(&api, self.output).await } else { std::future::pending().await } };
        tokio::select! {
            _ = signals.next() => Ok(()),
            ended = load => ended,
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
        self.output.step("prerequisites", async { self.check_prerequisites() }).await?;
        if let Some(arguments) = self.build_arguments() {
            self.output.step("build", self.build(arguments)).await?;
        }
        let database_url = self.output.step("postgres", Box::pin(self.start_postgres(pipeline))).await?;
        let kafka_brokers = self.output.step("kafka", Box::pin(self.start_kafka(pipeline))).await?;
        self.output.step("migrate", Box::pin(apply_migrations(&database_url))).await?;
        let env = if self.args.jaeger {
            self.output.step("jaeger", Box::pin(self.start_jaeger(pipeline))).await?
        } else {
            Vec::new()
        };
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
            None => find_port(self.output)?,
        };
        self.output.step("services", self.start_services(pipeline, &surroundings, port)).await
    }

    fn build_arguments(&self) -> Option<Vec<String>> {
        if self.args.no_build { None } else { self.executables.build_arguments() }
    }

    fn check_prerequisites(&self) -> Result<((), String)> {
        let mut found = Vec::new();
        if given("KAFKA_BROKERS").is_none() {
            found.push(format!("Java {}", java()?.version));
            if !Jars::are_fetched(&self.supply.cache) {
                found.push(need(Program::Maven)?);
            }
        }
        if self.build_arguments().is_some() {
            found.push(need(Program::Compiler)?);
        }
        if self.args.jaeger && given(traces::ENDPOINT).is_none() && !Jaeger::is_built(&self.supply.cache) {
            found.push(need(Program::Go)?);
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

    fn tell_where_to_go(&self, pipeline: &Pipeline, url: &str) {
        let order = r#"{"user_id": 1, "product_id": 2, "quantity": 3}"#;
        let database = pipeline.postgres.as_ref().map(|postgres| postgres.url(DATABASE));
        let brokers = pipeline.kafka.as_ref().map(Kafka::brokers);
        let jaeger = pipeline.jaeger.as_ref().map(Jaeger::url);
        let logs = shown(&self.data.logs());
        let admin = |service: &Service| (service.kind().name().to_owned(), service.admin_url().into());
        let services: serde_json::Map<_, _> = pipeline.services.iter().map(admin).collect();
        self.output.event(
            "addresses",
            json!({ "api": url, "database_url": database, "kafka_brokers": brokers, "jaeger": jaeger, "admin": services, "logs": logs }),
        );
        let say = |line: std::fmt::Arguments<'_>| self.output.say(line);
        say(format_args!(""));
        say(format_args!("  an order   curl -i {url}/orders -H 'content-type: application/json' -d '{order}'"));
        say(format_args!("  many       cargo dev seed --url {url}"));
        say(format_args!("  callers    every caller may send orders without a key (API_AUTH=none)"));
        if let Some(database) = database {
            say(format_args!("  database   psql {database}"));
        }
        if let Some(brokers) = brokers {
            say(format_args!("  kafka      {brokers}"));
        }
        if let Some(jaeger) = jaeger {
            say(format_args!("  traces     DATABASE_URL=… cargo dev trace ORDER --jaeger {jaeger}"));
        }
        for service in &pipeline.services {
            say(format_args!("  {:<10} curl {}/readyz, and /metrics", service.kind().name(), service.admin_url()));
        }
        say(format_args!("  logs       tail -f {logs}/*.log"));
        if !self.args.no_stay {
            say(format_args!("  Ctrl-C stops everything; the data stays for the next time (--fresh throws it away)"));
        }
    }
}

fn check_port(port: u16) -> Result<()> {
    if is_free(port) {
        return Ok(());
    }
    bail!("port {port} of 127.0.0.1 is taken; choose another, or leave out --port to let one be found")
}

fn find_port(output: Output) -> Result<u16> {
    if is_free(PORT) {
        return Ok(PORT);
    }
    let port = free_port()?;
    output.say(format_args!("port {PORT} is taken, the API gets {port} (--port chooses another)"));
    Ok(port)
}

async fn apply_migrations(url: &str) -> Result<((), String)> {
    let options = url.parse().context("DATABASE_URL is no Postgres URL")?;
    let words = match migrate(Connector::plain(options)).await?.applied.as_slice() {
        [] => "the schema is current".to_owned(),
        applied => format!("{} migrations applied", applied.len()),
    };
    Ok(((), words))
}
