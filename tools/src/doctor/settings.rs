//! The services' settings, as the environment has them, and what does not go together.

use std::time::Duration;

use api::Config as ApiConfig;
use processor::config::ProcessorConfig;
use processor::short_retentions;
use relay::RelayConfig;
use shared::config::{ConfigError, Env};
use shared::findings::{Finding, fine_if_none};
use shared::kafka::{KafkaConfig, TopicUse};

use super::ServiceName;

/// What each service would read, of those whose settings are good.
pub struct Settings {
    pub relay: Option<RelayConfig>,
    pub processor: Option<ProcessorConfig>,
    /// Where the brokers are, which all of them read alike.
    pub kafka: Result<KafkaConfig, ConfigError>,
    /// Whether the environment says so.
    pub names_brokers: bool,
}

impl Settings {
    /// Reads what concerns `services`, and says what of it is bad.
    pub fn read(env: &Env, services: &[ServiceName], findings: &mut Vec<Finding>) -> Self {
        let mut bad: Vec<ConfigError> = Vec::new();
        let mut keep = |error: ConfigError| {
            // Database and brokers are read by all of them.
            if bad.iter().all(|known| known.to_string() != error.to_string()) {
                bad.push(error);
            }
        };
        let asked = |service| services.contains(&service);
        if asked(ServiceName::Api) {
            let _ = ApiConfig::from_env(env).map_err(&mut keep);
        }
        let relay = asked(ServiceName::Relay).then(|| RelayConfig::from_env(env).map_err(&mut keep).ok()).flatten();
        let processor =
            asked(ServiceName::Processor).then(|| ProcessorConfig::from_env(env).map_err(&mut keep).ok()).flatten();
        if bad.is_empty() {
            findings.push(Finding::fine("settings", "each service reads its environment"));
        }
        findings.extend(bad.into_iter().map(|error| Finding::error("settings", error)));
        let (kafka, names_brokers) = (KafkaConfig::from_env(env), env.var("KAFKA_BROKERS").is_some());
        Self { relay, processor, kafka, names_brokers }
    }

    /// How old an open transaction must be to be named.
    pub fn holder_age(&self) -> Duration {
        self.relay.as_ref().map_or(Duration::from_mins(1), |relay| relay.limits.holder_age)
    }

    /// Whether the processor remembers events for as long as topics keep them.
    pub async fn inbox(&self, kafka: &KafkaConfig) -> Vec<Finding> {
        const CHECK: &str = "processor.inbox";
        let Some(processor) = &self.processor else { return Vec::new() };
        // A topic that is not there is said elsewhere.
        let Ok(short) = short_retentions(kafka, super::NAME, &processor.settings).await else { return Vec::new() };
        let short = short.into_iter().map(|error| Finding::error(CHECK, error)).collect();
        fine_if_none(CHECK, "remembers events for as long as topics keep them", short)
    }

    /// What is good by itself, and not together.
    pub fn contradictions(&self, uses: &[TopicUse]) -> Vec<Finding> {
        const CHECK: &str = "settings.together";
        let (Some(_), Some(processor)) = (&self.relay, &self.processor) else { return Vec::new() };
        let unwritten = uses.iter().filter(|of| of.group.is_some() && !of.written);
        let findings = unwritten
            .map(|of| {
                let found = format!("the group {} reads the topic {}, which no route of the relay leads to", processor.settings.group, of.topic);
                Finding::warning(CHECK, found, "let PROCESSOR_TOPICS name what the relay writes to (RELAY_ROUTES, relay_routes), unless others write it")
            })
            .collect();
        fine_if_none(CHECK, "the processor reads what the relay writes", findings)
    }
}
