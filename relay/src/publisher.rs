//! The idempotent producer: records in, outcomes out.

use std::sync::Arc;

use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};

use crate::batch::Event;
use crate::lanes::Ticket;

pub(crate) mod destinations;
pub(crate) mod outcomes;
mod record;

use destinations::Destination;
use outcomes::Outcomes;

struct Context(Arc<Outcomes>);

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        // librdkafka goes on trying by itself; if it does not succeed in time, the records' own outcomes say so. But after a fatal error
        // it takes nothing more, also where no record is under way that could say so.
        tracing::warn!(error = %error, reason, "the Kafka client reports a problem");
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.0.fail(outcomes::Failure::Kafka(error));
        }
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Self::DeliveryOpaque) {
        let ticket = Ticket::from_integer(ticket);
        match result {
            Ok(_) => self.0.acknowledge(ticket),
            Err((error, message)) => self.0.reject(ticket, error, message.topic()),
        }
    }
}

/// How records are put into batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Batching {
    /// As many as fit into so many bytes. A batch that is refused ends the producer, so that no younger record of its keys gets ahead.
    Full(usize),
    /// Each record by itself, so that a refusal is its own. The producer goes on after one; it is the sender who waits.
    Single,
}

/// Why a record was not taken.
#[derive(Debug)]
pub(crate) enum SendError {
    /// The producer's queue is full: wait for acknowledgements and try again.
    QueueFull,
    /// This record will never be taken, whoever sends it: it parks its key.
    Refused(String),
    /// The producer is of no use any more.
    Broken(KafkaError),
}

/// One producer, for as long as nothing has failed. Dropping it throws away what it has not sent.
pub(crate) struct Publisher {
    producer: ThreadedProducer<Context>,
}

impl Publisher {
    /// A new producer. It connects by itself.
    pub(crate) fn new(
        mut config: ClientConfig,
        batching: Batching,
        outcomes: Arc<Outcomes>,
    ) -> Result<Self, KafkaError> {
        match batching {
            Batching::Full(bytes) => {
                config.set("batch.size", bytes.to_string()).set("enable.gapless.guarantee", "true");
            }
            Batching::Single => {
                config.set("batch.num.messages", "1");
            }
        }
        Ok(Self { producer: config.create_with_context(Context(outcomes))? })
    }

    /// Hands one event to the producer. Its outcome comes later, under `ticket`.
    pub(crate) fn send(&self, to: &Destination, event: &Event<'_>, ticket: Ticket) -> Result<(), SendError> {
        let record = BaseRecord::with_opaque_to(&to.topic, ticket.to_integer())
            .key(event.aggregate_id)
            .payload(event.payload)
            .headers(record::headers(event, &to.source));
        match self.producer.send(record) {
            Ok(()) => Ok(()),
            Err((error, _)) => Err(match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) => SendError::QueueFull,
                Some(code @ RDKafkaErrorCode::MessageSizeTooLarge) => SendError::Refused(code.to_string()),
                _ => SendError::Broken(error),
            }),
        }
    }
}
