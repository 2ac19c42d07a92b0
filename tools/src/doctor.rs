//! `outrider doctor`: looks at everything that the services rely on, before it hurts.

mod pipeline;
mod report;
mod services;
mod settings;

use std::fmt::Display;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use processor::LostPositions;
use processor::broker::Broker;
use processor::offsets::{OffsetsError, lost};
use relay::outbox::cluster::foreign_cursors;
use relay::outbox::routes::routes;
use relay::outbox::sequence::{IdSequence, id_sequence};
use reqwest::Url;
use shared::config::Env;
use shared::db::{DatabaseConfig, words};
use shared::findings::{Finding, fine_if_none};
use shared::kafka::TopicUse;
use sqlx::{Connection, PgConnection};

use crate::producers::store::{ProducerRow, list};
use crate::signals::StopSignals;
use crate::status;
use settings::Settings;

/// What `--help` shows.
pub const EXAMPLES: &str = "Examples:
  outrider doctor
  outrider doctor --for relay                 with the relay's environment, before it is started
  outrider doctor --write                     also write a record, to a topic of its own
  outrider doctor --admin http://relay-1:9090 --admin http://processor:9090
  outrider doctor --json | jq '.findings[] | select(.verdict != \"fine\")'

Beside `cargo dev up`: DATABASE_URL and KAFKA_BROKERS as it prints them.";

/// Our name to servers.
const NAME: &str = "outrider-doctor";

/// How long everything that the database is asked may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// The aggregate type that our own services write.
const ORDER: &str = "order";

/// What to look at, and how to say it.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Only what concerns this service, whose environment this is; may be given many times. All three unless given
    #[arg(long = "for", value_name = "SERVICE")]
    services: Vec<ServiceName>,

    /// Admin port of a service that runs; may be given many times
    #[arg(long = "admin", value_name = "URL")]
    admin: Vec<Url>,

    /// Also write a record, to a topic that is made for it and deleted again: shows whether the brokers take one, and their clock
    #[arg(long)]
    write: bool,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,

    /// Show what is fine, too; without this only how many checks were
    #[arg(long, short)]
    verbose: bool,
}

/// A service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ServiceName {
    /// Takes orders.
    Api,
    /// Publishes events.
    Relay,
    /// Applies events.
    Processor,
}

impl ServiceName {
    /// All of them.
    const ALL: [Self; 3] = [Self::Api, Self::Relay, Self::Processor];
}

/// Looks, says what was found, and returns 0 if all is fine, 1 after a warning, 2 if something is wrong.
pub async fn run(args: DoctorArgs) -> Result<ExitCode> {
    let env = Env::load()?;
    let services = if args.services.is_empty() { ServiceName::ALL.to_vec() } else { args.services.clone() };
    let findings = StopSignals::listen()?.interrupts(Box::pin(look(&env, &services, &args))).await?;
    report::print(&findings, args.json, args.verbose)?;
    Ok(ExitCode::from(report::worst(&findings) as u8))
}

async fn look(env: &Env, services: &[ServiceName], args: &DoctorArgs) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let settings = Settings::read(env, services, &mut findings);
    let database = DatabaseConfig::from_env(env, NAME);
    let mut uses = topics(Vec::new(), &[], &settings);
    match database {
        // Said by the services' settings, if they were asked for.
        Err(error) => {
            if findings.is_empty() {
                findings.push(Finding::error("settings.database", error));
            }
        }
        Ok(database) => {
            // What waits for a lock gives up, rather than wait with those that it is to find.
            let database = database.with_settings([("lock_timeout", "2s"), ("statement_timeout", "30s")]);
            match tokio::time::timeout(PATIENCE, examine(&database, &settings)).await {
                Ok((found, known)) => {
                    findings.extend(found);
                    uses = known.unwrap_or(uses);
                }
                Err(_) => findings.push(Finding::wrong(
                    "database.connection",
                    format!("the server has not answered everything within {} s", PATIENCE.as_secs()),
                    "look at its load and at its log",
                )),
            }
        }
    }
    if services != [ServiceName::Api] {
        match &settings.kafka {
            Err(error) => findings.push(Finding::error("settings.kafka", error)),
            Ok(kafka) => {
                findings.extend(kafka.diagnose(NAME, &uses).await);
                findings.extend(settings.inbox(kafka).await);
                if args.write {
                    findings.extend(kafka.probe(NAME).await);
                }
            }
        }
    }
    findings.extend(settings.contradictions(&uses));
    findings.extend(services::look(&args.admin).await?);
    Ok(findings)
}

/// Looks at the database, and at what it says of the pipeline. Returns the topics too, if it knows them.
async fn examine(database: &DatabaseConfig, settings: &Settings) -> (Vec<Finding>, Option<Vec<TopicUse>>) {
    let (mut findings, connection) = database.diagnose().await;
    let has_schema = findings.iter().any(|finding| finding.check == "database.objects");
    let Some(mut connection) = connection.filter(|_| has_schema) else { return (findings, None) };
    let table = read_or_say("outbox.routes", routes(&mut connection).await, &mut findings);
    let granted = read_or_say("outbox.producers", list(&mut connection).await, &mut findings);
    let uses = topics(table, &granted, settings);
    findings.extend(producers(&granted));
    findings.extend(outbox(&mut connection).await);
    findings.extend(pipeline(&mut connection, settings).await);
    findings.extend(positions(&mut connection, settings, &uses).await);
    let _ = connection.close().await;
    (findings, Some(uses))
}

/// What was read, or nothing and a finding that says why.
fn read_or_say<T: Default>(check: &'static str, read: Result<T, sqlx::Error>, findings: &mut Vec<Finding>) -> T {
    read.unwrap_or_else(|error| {
        findings.push(not_seen(check, words(&error)));
        T::default()
    })
}

/// The topics that relays write to and processors read, as far as they are known.
fn topics(table: Vec<(String, String)>, producers: &[ProducerRow], settings: &Settings) -> Vec<TopicUse> {
    let mut uses: Vec<TopicUse> = Vec::new();
    let mut add = |topic: String, written: bool, group: Option<&str>| {
        if let Some(known) = uses.iter_mut().find(|of| of.topic == topic) {
            known.written |= written;
            known.group = known.group.take().or_else(|| group.map(str::to_owned));
        } else {
            uses.push(TopicUse { topic, written, group: group.map(str::to_owned) });
        }
    };
    if let Some(relay) = &settings.relay {
        let routes = relay.routes.with_table(table);
        let mut types: Vec<&str> = vec![ORDER];
        types.extend(routes.types());
        types.extend(producers.iter().map(|producer| producer.aggregate_type.as_str()));
        for topic in types.into_iter().filter_map(|aggregate_type| routes.resolve(aggregate_type).ok()) {
            add(topic, true, None);
        }
    }
    if let Some(processor) = &settings.processor {
        for topic in &processor.settings.topics {
            add(topic.clone(), false, Some(&processor.settings.group));
        }
    }
    uses
}

/// Grants of aggregate types that have no effect.
fn producers(producers: &[ProducerRow]) -> Vec<Finding> {
    const CHECK: &str = "outbox.producers";
    let bad = producers.iter().filter(|producer| producer.state != "good").map(|producer| {
        let ProducerRow { role, aggregate_type, state, .. } = producer;
        let advice = if state == "cannot append" {
            format!("run `GRANT outrider_writer TO {role}`, or `outrider producers revoke {role} {aggregate_type}`")
        } else {
            format!(
                "run `outrider producers revoke {role} {aggregate_type}`, and grant it again if the role is to write"
            )
        };
        Finding::warning(CHECK, format!("the grant of {aggregate_type} to {role} has no effect: {state}"), advice)
    });
    fine_if_none(CHECK, "every grant has its effect", bad.collect())
}

/// What the relays look at when they begin.
async fn outbox(connection: &mut PgConnection) -> Vec<Finding> {
    let sequence = match id_sequence(connection).await.map(IdSequence::check) {
        Ok(Ok(())) => Finding::fine("outbox.sequence", "gives out ids in order"),
        Ok(Err(fault)) => Finding::error("outbox.sequence", fault),
        Err(error) => not_seen("outbox.sequence", words(&error)),
    };
    let cluster = match foreign_cursors(connection).await {
        Ok(None) => Finding::fine("outbox.cluster", "the cursors are of this Postgres cluster"),
        Ok(Some(foreign)) => Finding::error("outbox.cluster", foreign),
        Err(error) => not_seen("outbox.cluster", words(&error)),
    };
    vec![sequence, cluster]
}

fn not_seen(check: &'static str, why: impl Display) -> Finding {
    let advice = "run this as a member of outrider_operator, or as the owner of the tables";
    Finding::warning(check, format!("could not be looked at ({why})"), advice)
}

/// How the pipeline is doing.
async fn pipeline(connection: &mut PgConnection, settings: &Settings) -> Vec<Finding> {
    let kafka = settings.kafka.as_ref().ok().filter(|_| settings.names_brokers);
    match status::look(connection, kafka).await {
        Ok(status) => pipeline::judge(&status, settings.holder_age()),
        Err(error) => vec![not_seen("pipeline", shared::db::chain(&error))],
    }
}

/// Positions of the processor's group that the brokers do not bear out.
async fn positions(connection: &mut PgConnection, settings: &Settings, uses: &[TopicUse]) -> Vec<Finding> {
    const CHECK: &str = "processor.positions";
    let (Some(_), Ok(kafka)) = (&settings.processor, &settings.kafka) else { return Vec::new() };
    let mut findings = Vec::new();
    for (topic, group) in uses.iter().filter_map(|of| Some((&of.topic, of.group.as_ref()?))) {
        let Ok(broker) = Broker::new(&kafka.consumer(NAME, group)) else { continue };
        match lost(connection, &broker, group, topic, None).await {
            Ok(lost) if lost.is_empty() => {}
            Ok(lost) => findings.push(Finding::error(CHECK, LostPositions::from(lost))),
            // Said of the topic, or of the brokers.
            Err(OffsetsError::NoTopic(_) | OffsetsError::Kafka(_)) => {}
            Err(error) => findings.push(Finding::error(CHECK, error)),
        }
    }
    fine_if_none(CHECK, "the brokers have the records at the positions of the processor", findings)
}
