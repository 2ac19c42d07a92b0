//! A record in a topic of its own: whether brokers take one, and by which time they go.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rdkafka::Timestamp;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, FutureRecord};

use super::KafkaConfig;
use crate::clock;
use crate::findings::Finding;

/// The topic, which is there for a moment.
const TOPIC: &str = "outrider-doctor";

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(10);

impl KafkaConfig {
    /// Makes a topic, writes a record to it and deletes it.
    pub async fn probe(&self, client_id: &str) -> Vec<Finding> {
        const CHECK: &str = "kafka.write";
        match self.write_one(client_id).await {
            Ok(off) => {
                let written = Finding::fine(CHECK, format!("a record was written to {TOPIC}, which is deleted again"));
                vec![written, clock::judge("kafka.clock", "the broker", off)]
            }
            Err(error) => vec![Finding::wrong(
                CHECK,
                format!("no record can be written to a topic {TOPIC}: {error}"),
                "look at the brokers' log and at the rights of our user",
            )],
        }
    }

    /// Returns how far the broker's clock is from ours.
    async fn write_one(&self, client_id: &str) -> Result<TimeDelta, KafkaError> {
        let admin: AdminClient<DefaultClientContext> = self.client(client_id).create()?;
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE));
        let topic = NewTopic::new(TOPIC, 1, TopicReplication::Fixed(1))
            .set("message.timestamp.type", "LogAppendTime")
            .set("retention.ms", "3600000");
        for made in admin.create_topics([&topic], &options).await? {
            match made {
                // One that was left behind will do.
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(KafkaError::AdminOp(code)),
            }
        }
        let producer: FutureProducer = self.producer(client_id, PATIENCE).create()?;
        let record: FutureRecord<'_, str, str> = FutureRecord::to(TOPIC).payload("outrider doctor");
        let before = Utc::now();
        let delivered = producer.send(record, PATIENCE).await;
        let after = Utc::now();
        let deleted = admin.delete_topics(&[TOPIC], &options).await?;
        let delivery = delivered.map_err(|(error, _)| error)?;
        for deleted in deleted {
            deleted.map_err(|(_, code)| KafkaError::AdminOp(code))?;
        }
        let theirs = match delivery.timestamp {
            Timestamp::LogAppendTime(millis) => DateTime::from_timestamp_millis(millis),
            _ => None,
        };
        Ok(clock::distance(theirs.unwrap_or(before), before, after))
    }
}
