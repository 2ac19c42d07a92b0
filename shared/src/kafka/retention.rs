//! For how long topics keep their records.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::{KafkaConfig, TOPIC_PATIENCE};

/// For how long a topic keeps its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicRetention {
    /// `retention.ms`: so long, and until their segment is done with.
    For(Duration),
    /// The last record of each key stays for ever, or all of them do.
    Forever,
    /// We may not look.
    Unknown,
}

impl KafkaConfig {
    /// For how long each of `topics` keeps its records, in their order.
    ///
    /// # Errors
    /// When the brokers do not answer within ten seconds, or have no such topic.
    pub async fn retentions(&self, client_id: &str, topics: &[&str]) -> Result<Vec<TopicRetention>, KafkaError> {
        let admin: AdminClient<DefaultClientContext> = self.client(client_id).create()?;
        let options = AdminOptions::new().request_timeout(Some(TOPIC_PATIENCE));
        let asked: Vec<ResourceSpecifier<'_>> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let described = admin.describe_configs(&asked, &options).await?;
        described
            .iter()
            .map(|described| match described {
                Ok(resource) => Ok(of(resource)),
                Err(RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed) => {
                    Ok(TopicRetention::Unknown)
                }
                Err(code) => Err(KafkaError::AdminOp(*code)),
            })
            .collect()
    }
}

fn of(resource: &ConfigResource) -> TopicRetention {
    let value = |name: &str| resource.get(name).and_then(|entry| entry.value.as_deref());
    retention(value("cleanup.policy"), value("retention.ms"))
}

/// A topic that is compacted and nothing else keeps the last record of each key; with `compact,delete` those go by age, too.
fn retention(policy: Option<&str>, retention_ms: Option<&str>) -> TopicRetention {
    let deletes = policy.is_none_or(|policy| policy.split(',').any(|policy| policy.trim() == "delete"));
    if !deletes {
        return TopicRetention::Forever;
    }
    match retention_ms.map(str::parse::<i64>) {
        Some(Ok(millis)) => u64::try_from(millis)
            .map_or(TopicRetention::Forever, |millis| TopicRetention::For(Duration::from_millis(millis))),
        _ => TopicRetention::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compacted_or_has_no_limit_is_kept_for_ever() {
        let seconds = |secs| TopicRetention::For(Duration::from_secs(secs));
        assert_eq!(retention(Some("delete"), Some("604800000")), seconds(604_800));
        assert_eq!(retention(Some("compact,delete"), Some("1000")), seconds(1));
        assert_eq!(retention(Some("compact"), Some("1000")), TopicRetention::Forever);
        assert_eq!(retention(Some("delete"), Some("-1")), TopicRetention::Forever);
        assert_eq!(retention(None, None), TopicRetention::Unknown);
    }
}
