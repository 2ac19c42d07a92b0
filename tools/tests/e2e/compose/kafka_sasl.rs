//! The overlay `compose.kafka-sasl.yaml` on a real broker: its settings start one, `kafka-rights.sh` gives out names and rights, and these are
//! enough for the pipeline and allow nothing else.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rustix::process::Signal;
use shared::config::Env;
use shared::kafka::KafkaConfig;
use shared::testing::{TestDatabase, eventually};
use tools::http::NewOrder;
use tools::stack::kafka::Jars;
use tools::stack::throwaway::{Supply, Throwaway};
use tools::stack::{Kind, Launch, Process, Service, free_port};

use super::super::command_line::{operator, well};
use super::super::doctor::{doctor, examined};
use super::super::harness::surroundings;
use super::super::pipeline::orders_of;
use super::super::supply;
use super::{Compose, SECRETS, deploy, make_secrets};

/// Programs of Kafka's that the script calls.
const PROGRAMS: [(&str, &str); 3] = [
    ("kafka-topics.sh", "org.apache.kafka.tools.TopicCommand"),
    ("kafka-configs.sh", "kafka.admin.ConfigCommand"),
    ("kafka-acls.sh", "org.apache.kafka.tools.AclCommand"),
];

/// How long a broker may take for what a client wants.
const PATIENCE: Duration = Duration::from_secs(20);

/// A broker with the overlay's settings, after the script has run.
struct Scene {
    compose: Compose,
    supply: Supply,
    jars: Jars,
    secrets: PathBuf,
    ports: [u16; 3],
    // Last but the folder: the broker ends before its files.
    _broker: Process,
    place: Throwaway,
}

impl Scene {
    async fn new() -> Result<Self> {
        let (supply, place) = (supply()?, Throwaway::new()?);
        let jars = supply.kafka(&place.folder().join("maven.log")).await?;
        let compose = Compose::read(&["compose.yaml", "compose.kafka-sasl.yaml"])?;
        let secrets = place.folder().join("secrets");
        make_secrets(&secrets, &supply.reaper).await?;
        let ports = [free_port()?, free_port()?, free_port()?];
        let log = place.folder().join("kafka.log");
        // As the image's own start does: it makes the settings from the environment, and formats the folder.
        let config = place.folder().join("config");
        fs::create_dir(&config)?;
        let mut setup = jars.launch("kafka-setup", &["-Xmx256m"], "kafka.docker.KafkaDockerWrapper").arg("setup");
        for (option, folder) in [("default", "none"), ("mounted", "none"), ("final", "config")] {
            setup = setup.arg(format!("--{option}-configs-dir")).arg(place.folder().join(folder));
        }
        for (name, value) in broker_environment(&compose, place.folder(), &secrets, ports)? {
            setup = setup.env(name, value);
        }
        setup.env("CLUSTER_ID", "5L6g3nShT-eMCtK--X86sw").log(&log).run(&supply.reaper).await?;
        let properties = config.join("server.properties");
        let broker = jars.launch("kafka", &["-Xmx512m"], "kafka.Kafka").arg(&properties).log(&log);
        let broker = broker.end_with(Signal::TERM, Duration::from_secs(20)).spawn(&supply.reaper)?;
        let scene = Self { compose, supply, jars, secrets, ports, _broker: broker, place };
        scene.give_rights().await?;
        Ok(scene)
    }

    fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.ports[0])
    }

    /// What the service `kafka-rights` runs.
    async fn give_rights(&self) -> Result<()> {
        let bin = self.place.folder().join("bin");
        fs::create_dir_all(&bin)?;
        for (name, class) in PROGRAMS {
            self.jars.write_script(&bin.join(name), class)?;
        }
        let script = deploy().join("kafka-rights.sh").display().to_string();
        let command = self.compose.list("kafka-rights", "command")?;
        let words: Vec<String> = command.iter().map(|word| word.replace("/kafka-rights.sh", &script)).collect();
        let (program, arguments) = words.split_first().context("a command")?;
        Launch::new("kafka-rights", program)
            .args(arguments)
            .env("KAFKA_BIN", bin)
            .env("KAFKA_ADMIN", format!("localhost:{}", self.ports[1]))
            .env("OUTRIDER_SECRETS", &self.secrets)
            .log(self.rights_log())
            .run(&self.supply.reaper)
            .await
    }

    fn rights_log(&self) -> PathBuf {
        self.place.folder().join("kafka-rights.log")
    }

    /// The variables `KAFKA_*` of a service, as they are here.
    fn environment(&self, service: &str) -> Result<Vec<(String, String)>> {
        let mut instead = vec![("KAFKA_BROKERS", self.brokers())];
        if cfg!(not(feature = "kafka-tls")) {
            // Without OpenSSL, librdkafka knows no SCRAM. The broker lets the same names in by PLAIN then.
            instead.push(("KAFKA_SASL_MECHANISM", "PLAIN".to_owned()));
        }
        let mut environment = self.compose.environment_at(service, &self.secrets, &instead)?;
        environment.retain(|(name, _)| name.starts_with("KAFKA_"));
        Ok(environment)
    }

    fn password(&self, service: &str) -> Result<String> {
        Ok(fs::read_to_string(self.secrets.join(format!("kafka_{service}")))?)
    }

    /// The settings of a client that is one of the services.
    fn client(&self, service: &str) -> Result<KafkaConfig> {
        let environment = self.environment(service)?.into_iter().filter(|(name, _)| !name.ends_with("_FILE"));
        let password = ("KAFKA_SASL_PASSWORD".to_owned(), self.password(service)?);
        Ok(KafkaConfig::from_env(&Env::from_pairs(environment.chain([password])))?)
    }

    /// What becomes of a record that one of the services writes.
    async fn writes(&self, service: &str, topic: &str) -> Result<Result<(), KafkaError>> {
        // Not an idempotent one, which needs a right to write as soon as it begins, and says no more than that it ended.
        let producer: FutureProducer = self.client(service)?.client("test").create()?;
        let record: FutureRecord<'_, str, str> = FutureRecord::to(topic).payload("{}");
        Ok(producer.send(record, PATIENCE).await.map(drop).map_err(|(error, _)| error))
    }

    /// What one of the services is told that reads a topic as this group.
    fn reads(&self, service: &str, topic: &str, group: &str) -> Result<Option<KafkaError>> {
        let mut client = self.client(service)?.consumer("test", group);
        let consumer: BaseConsumer = client.set("auto.offset.reset", "earliest").create()?;
        consumer.subscribe(&[topic])?;
        let started = std::time::Instant::now();
        while started.elapsed() < PATIENCE {
            match consumer.poll(Duration::from_millis(200)) {
                Some(Ok(_)) => return Ok(None),
                Some(Err(error)) => return Ok(Some(error)),
                None => {}
            }
        }
        anyhow::bail!("{service} is told nothing of {topic}")
    }
}

/// The environment of the broker, as it is here.
fn broker_environment(
    compose: &Compose,
    folder: &Path,
    secrets: &Path,
    ports: [u16; 3],
) -> Result<BTreeMap<String, String>> {
    let [clients, internal, controller] = ports;
    let mut environment = compose.environment("kafka")?;
    for value in environment.values_mut() {
        *value = value
            .replace("CLIENTS://:9092", &format!("CLIENTS://127.0.0.1:{clients}"))
            .replace("CLIENTS://kafka:9092", &format!("CLIENTS://127.0.0.1:{clients}"))
            .replace(":9094", &format!(":{internal}"))
            .replace(":9093", &format!(":{controller}"))
            .replace("/var/lib/kafka/data", &folder.join("data").display().to_string())
            .replace(SECRETS, &secrets.display().to_string());
    }
    if cfg!(not(feature = "kafka-tls")) {
        let mut plain = "org.apache.kafka.common.security.plain.PlainLoginModule required".to_owned();
        for name in ["relay", "processor", "operator"] {
            let password = fs::read_to_string(secrets.join(format!("kafka_{name}")))?;
            write!(plain, " user_{name}=\"{password}\"")?;
        }
        let set = |name: &str, value: &str| (format!("KAFKA_LISTENER_NAME_CLIENTS_{name}"), value.to_owned());
        environment.extend([
            set("SASL_ENABLED_MECHANISMS", "SCRAM-SHA-512,PLAIN"),
            set("PLAIN_SASL_JAAS_CONFIG", &(plain + ";")),
        ]);
    }
    Ok(environment)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_of_the_overlay_are_enough_for_the_pipeline() -> Result<()> {
    let scene = Scene::new().await?;
    let database = TestDatabase::create("compose_kafka").await;
    let surroundings = surroundings(&database.url, scene.brokers(), scene.place.folder().to_owned())?;
    let mut services = Vec::new();
    for kind in Kind::ALL {
        let environment = if kind == Kind::Api { Vec::new() } else { scene.environment(kind.name())? };
        let pairs: Vec<(&str, &str)> =
            environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut service = Service::start(kind, kind.name(), &surroundings, &pairs, &scene.supply.reaper)?;
        service.wait_ready().await?;
        services.push(service);
    }
    let api = orders_of(&services)?;
    let order = NewOrder { user_id: 7, product_id: 1, quantity: 1 };
    let id = api.post(&order).await.context("an order")?.id;
    eventually("the order is Processed", async || api.read(id).await.ok()?.is_processed().then_some(())).await;

    // Neither they nor the doctor, as whom they are, miss a right; and operators see where the processor stands.
    for name in ["relay", "processor"] {
        let mut command = doctor(&database.url, &scene.brokers());
        let findings = examined(command.envs(scene.environment(name)?).args(["--for", name]))?;
        let wrong: Vec<_> = findings.iter().filter(|found| found.concerns("kafka") && !found.is_fine()).collect();
        ensure!(wrong.is_empty(), "{name}: {wrong:#?}");
    }
    let offsets = well(operator("offsets list", &database.url).envs(scene.environment("operator")?))?;
    ensure!(offsets.lines().any(|line| line.starts_with("outrider-processor") && line.contains("orders")), "{offsets}");
    for service in &mut services {
        let name = service.kind().name();
        ensure!(service.stop().await?.success(), "{name} ended well");
        let log = fs::read_to_string(scene.place.folder().join(format!("{name}.log")))?.to_lowercase();
        ensure!(!log.contains("authoriz") && !log.contains("authenticat"), "{name}: {log}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_of_the_overlay_allow_nothing_else() -> Result<()> {
    let scene = Scene::new().await?;
    try_scram(&scene).await?;
    let refused = |what: &str, error: Option<KafkaError>, codes: &[RDKafkaErrorCode]| {
        let code = error.as_ref().and_then(KafkaError::rdkafka_error_code);
        ensure!(code.is_some_and(|code| codes.contains(&code)), "{what}: {error:?}");
        Ok(())
    };
    let (topic, group) = (RDKafkaErrorCode::TopicAuthorizationFailed, RDKafkaErrorCode::GroupAuthorizationFailed);
    ensure!(scene.writes("relay", "orders").await?.is_ok(), "the relay writes");
    ensure!(scene.reads("processor", "orders", "outrider-processor")?.is_none(), "the processor reads");
    for (service, of) in [("processor", "orders"), ("operator", "orders"), ("relay", "payments")] {
        let error = scene.writes(service, of).await?.err();
        refused(&format!("{service} writes {of}"), error, &[topic])?;
    }
    for (service, as_group, code) in [
        ("relay", "outrider-processor", group),
        ("processor", "another", group),
        ("operator", "outrider-processor", group),
    ] {
        refused(&format!("{service} reads as {as_group}"), scene.reads(service, "orders", as_group)?, &[code, topic])?;
    }
    for service in ["relay", "processor", "operator"] {
        let mut environment = scene.environment(service)?;
        environment.retain(|(name, _)| name != "KAFKA_CREATE_TOPICS" && !name.ends_with("_FILE"));
        environment.push(("KAFKA_SASL_PASSWORD".to_owned(), scene.password(service)?));
        let config = KafkaConfig::from_env(&Env::from_pairs(environment.clone()))?;
        let error = config.ensure_topics("test", &["payments"]).await.err();
        ensure!(
            matches!(error, Some(KafkaError::AdminOp(code)) if code == topic || code == RDKafkaErrorCode::ClusterAuthorizationFailed),
            "{service} makes a topic: {error:?}"
        );
        // With another's password it is let in nowhere.
        environment.push(("KAFKA_SASL_PASSWORD".to_owned(), scene.password("admin")?));
        let client: BaseConsumer = KafkaConfig::from_env(&Env::from_pairs(environment))?.client("test").create()?;
        ensure!(client.fetch_metadata(None, Duration::from_secs(2)).is_err(), "{service} has another's password");
    }
    let said = fs::read_to_string(scene.rights_log())?;
    for service in ["admin", "relay", "processor", "operator"] {
        ensure!(!said.contains(&scene.password(service)?), "a password is in the log: {said}");
    }
    Ok(())
}

/// Whether the passwords are good for SCRAM, each for its own name: by Kafka's own client, which knows it in every build of ours.
async fn try_scram(scene: &Scene) -> Result<()> {
    let module = "org.apache.kafka.common.security.scram.ScramLoginModule";
    for (service, of, is_let_in) in [("relay", "relay", true), ("relay", "processor", false)] {
        let file = scene.place.folder().join("client.properties");
        let password = scene.password(of)?;
        let text = format!(
            "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=SCRAM-SHA-512\n\
            sasl.jaas.config={module} required username=\"{service}\" password=\"{password}\";\n"
        );
        fs::write(&file, text)?;
        let log = scene.place.folder().join(format!("{service}-{of}.log"));
        let list = scene.jars.launch("kafka-topics", &["-Xmx128m"], "org.apache.kafka.tools.TopicCommand");
        let list = list.args(["--bootstrap-server", &scene.brokers(), "--list", "--command-config"]).arg(file);
        let listed = list.log(&log).run(&scene.supply.reaper).await;
        let said = fs::read_to_string(log)?;
        ensure!(listed.is_ok() == is_let_in, "{service} with the password of {of}: {said}");
        ensure!(said.contains(if is_let_in { "orders" } else { "Authentication failed" }), "{said}");
    }
    Ok(())
}
