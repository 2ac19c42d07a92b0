//! How we belong to the consumer group: by which protocol, with which assignment, and whether as somebody who comes back. Pure.

use rdkafka::ClientConfig;
use serde::Deserialize;
use shared::config::ConfigError;

use crate::config::Settings;

/// `PROCESSOR_GROUP_PROTOCOL`: who works out the assignment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupProtocol {
    /// A member, for all of them. Every broker has it.
    #[default]
    Classic,
    /// The broker (KIP-848, Kafka 4.0 and newer): members that keep their partitions are not held up by those that change.
    Consumer,
}

/// `PROCESSOR_ASSIGNMENT`: how partitions are shared out in a classic group. All of its members need to agree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Assignment {
    /// Only the partitions that move are stopped.
    #[default]
    #[serde(rename = "cooperative-sticky")]
    CooperativeSticky,
    /// All partitions are stopped at each change; neighbours go to one member.
    Range,
    /// All partitions are stopped at each change; neighbours go to different members.
    RoundRobin,
}

impl Assignment {
    const fn name(self) -> &'static str {
        match self {
            Self::CooperativeSticky => "cooperative-sticky",
            Self::Range => "range",
            Self::RoundRobin => "roundrobin",
        }
    }
}

/// Refuses what contradicts itself.
pub(crate) fn check(settings: &Settings) -> Result<(), ConfigError> {
    let bad = |variable: &str, problem: &str| Err(ConfigError::new(format!("PROCESSOR_{variable}"), problem));
    if settings.group_protocol == GroupProtocol::Consumer && settings.assignment.is_some() {
        return bad("ASSIGNMENT", "is for the brokers to say with PROCESSOR_GROUP_PROTOCOL=consumer");
    }
    if settings.instance_id.as_ref().is_some_and(|id| id.trim().is_empty()) {
        return bad("INSTANCE_ID", "is empty; leave it out unless each processor has one of its own");
    }
    // librdkafka refuses it too, but only when the client is made.
    if settings.group_protocol == GroupProtocol::Classic && settings.poll_interval_ms < settings.session_timeout_ms {
        return bad("POLL_INTERVAL_MS", "must be at least PROCESSOR_SESSION_TIMEOUT_MS");
    }
    Ok(())
}

/// Sets what belongs to the membership. librdkafka refuses to make a client when one protocol is given the settings of the other.
pub(crate) fn set(settings: &Settings, client: &mut ClientConfig) {
    client.set("max.poll.interval.ms", settings.poll_interval_ms.to_string());
    match settings.group_protocol {
        GroupProtocol::Classic => {
            client
                .set("group.protocol", "classic")
                .set("partition.assignment.strategy", settings.assignment.unwrap_or_default().name())
                .set("session.timeout.ms", settings.session_timeout_ms.to_string())
                .set("heartbeat.interval.ms", (settings.session_timeout_ms / 3).clamp(1, 3_000).to_string());
        }
        GroupProtocol::Consumer => {
            client.set("group.protocol", "consumer");
            for name in ["partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms"] {
                client.remove(name);
            }
        }
    }
    if let Some(id) = &settings.instance_id {
        client.set("group.instance.id", id);
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::consumer::BaseConsumer;
    use shared::config::Env;
    use shared::kafka::KafkaConfig;

    use crate::config::ProcessorConfig;

    use super::*;

    fn client(pairs: &[(&str, &str)]) -> Result<ClientConfig, ConfigError> {
        let needed = [("DATABASE_URL", "postgres://localhost/none"), ("KAFKA_BROKERS", "127.0.0.1:1")];
        let env = Env::from_pairs(needed.into_iter().chain(pairs.iter().copied()));
        let settings = ProcessorConfig::from_env(&env)?.settings;
        let mut client = KafkaConfig::from_env(&env)?.consumer("test", "group");
        set(&settings, &mut client);
        Ok(client)
    }

    #[test]
    fn every_membership_makes_a_client_that_librdkafka_takes() {
        for pairs in [
            &[][..],
            &[("PROCESSOR_ASSIGNMENT", "range"), ("PROCESSOR_INSTANCE_ID", "one")],
            &[("PROCESSOR_ASSIGNMENT", "roundrobin")],
            &[("PROCESSOR_GROUP_PROTOCOL", "consumer"), ("PROCESSOR_INSTANCE_ID", "one")],
        ] {
            let client = client(pairs).expect("good settings");
            assert!(client.create::<BaseConsumer>().is_ok(), "{pairs:?}");
        }
    }

    #[test]
    fn nothing_is_said_of_an_instance_unless_it_is_given() {
        let plain = client(&[]).expect("defaults");
        assert_eq!((plain.get("group.instance.id"), plain.get("group.protocol")), (None, Some("classic")));
        let own = client(&[("PROCESSOR_INSTANCE_ID", "one")]).expect("an instance");
        assert_eq!(own.get("group.instance.id"), Some("one"));
    }

    #[test]
    fn what_contradicts_itself_is_named() {
        let both = [("PROCESSOR_GROUP_PROTOCOL", "consumer"), ("PROCESSOR_ASSIGNMENT", "range")];
        assert_eq!(client(&both).expect_err("a contradiction").variable, "PROCESSOR_ASSIGNMENT");
        assert_eq!(
            client(&[("PROCESSOR_POLL_INTERVAL_MS", "44999")]).expect_err("too short").variable,
            "PROCESSOR_POLL_INTERVAL_MS"
        );
        let empty = [("PROCESSOR_INSTANCE_ID", " ")];
        assert_eq!(client(&empty).expect_err("no name").variable, "PROCESSOR_INSTANCE_ID");
    }
}
