//! The idempotent producer: records in, outcomes out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext, PurgeConfig};

use crate::batch::Event;
use crate::lanes::Ticket;

pub(crate) mod destinations;
pub(crate) mod outcomes;
mod record;

use destinations::Destination;
use outcomes::Outcomes;

/// How often the thread that hears outcomes looks whether it is to end.
const HEAR: Duration = Duration::from_millis(100);

struct Context {
    outcomes: Arc<Outcomes>,
    stopped: AtomicBool,
    /// The producer that this is the context of.
    producer: OnceLock<Weak<BaseProducer<Context>>>,
}

impl Context {
    /// Has the producer send nothing more.
    ///
    /// A record that has failed leaves a gap in front of the younger ones of its key. librdkafka would close it and go on: records that
    /// waited too long are given up one after the other, and when a broker answers at last, it takes those that have not been. The
    /// session ends because of the failure, but it takes a while to notice. Between the failure and this lies less than the round trip to
    /// a broker that librdkafka needs before it goes on (a new producer epoch).
    fn stop(&self) {
        if !self.stopped.swap(true, Ordering::SeqCst) {
            self.purge();
        }
    }

    fn purge(&self) {
        if let Some(producer) = self.producer.get().and_then(Weak::upgrade) {
            // Those in flight too: they would be sent again if they fail.
            producer.purge(PurgeConfig::default().queue().inflight());
        }
    }
}

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        // librdkafka goes on trying by itself; if it does not succeed in time, the records' own outcomes say so. But after a fatal error
        // it takes nothing more, also where no record is under way that could say so.
        tracing::warn!(error = %error, reason, "the Kafka client reports a problem");
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.outcomes.fail(outcomes::Failure::Kafka(error));
        }
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Self::DeliveryOpaque) {
        let ticket = Ticket::from_integer(ticket);
        match result {
            Ok(_) => self.outcomes.acknowledge(ticket),
            Err((error, message)) => {
                if self.outcomes.reject(ticket, error, message.topic()) {
                    self.stop();
                }
            }
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

/// Why there is no producer.
#[derive(Debug)]
pub(crate) enum Unmade {
    /// librdkafka makes none.
    Kafka(KafkaError),
    /// There is no thread to hear its outcomes from.
    Thread(std::io::Error),
}

/// One producer, for as long as nothing has failed. Dropping it throws away what it has not sent.
pub(crate) struct Publisher {
    producer: Arc<BaseProducer<Context>>,
    closing: Arc<AtomicBool>,
    hearing: Option<JoinHandle<()>>,
}

impl Publisher {
    /// A new producer. It connects by itself.
    pub(crate) fn new(mut config: ClientConfig, batching: Batching, outcomes: Arc<Outcomes>) -> Result<Self, Unmade> {
        match batching {
            Batching::Full(bytes) => {
                config.set("batch.size", bytes.to_string()).set("enable.gapless.guarantee", "true");
            }
            Batching::Single => {
                config.set("batch.num.messages", "1");
            }
        }
        let context = Context { outcomes, stopped: AtomicBool::new(false), producer: OnceLock::new() };
        let producer: Arc<BaseProducer<Context>> =
            Arc::new(config.create_with_context(context).map_err(Unmade::Kafka)?);
        let _ = producer.client().context().producer.set(Arc::downgrade(&producer));
        let closing = Arc::new(AtomicBool::new(false));
        let hear = {
            let (producer, closing) = (Arc::clone(&producer), Arc::clone(&closing));
            move || {
                while !closing.load(Ordering::Relaxed) {
                    producer.poll(HEAR);
                }
            }
        };
        let hearing = std::thread::Builder::new().name("outcomes".to_owned()).spawn(hear).map_err(Unmade::Thread)?;
        Ok(Self { producer, closing, hearing: Some(hearing) })
    }

    /// Hands one event to the producer. Its outcome comes later, under `ticket`.
    pub(crate) fn send(&self, to: &Destination, event: &Event<'_>, ticket: Ticket) -> Result<(), SendError> {
        let record = BaseRecord::with_opaque_to(&to.topic, ticket.to_integer())
            .key(event.aggregate_id)
            .payload(event.payload)
            .headers(record::headers(event, &to.source));
        let context = self.producer.client().context();
        if context.stopped.load(Ordering::SeqCst) {
            return Err(SendError::Broken(KafkaError::Canceled));
        }
        match self.producer.send(record) {
            Ok(()) => {
                // Stopped in this instant: what came before this record was thrown away, and this one may have come too late for that.
                if context.stopped.load(Ordering::SeqCst) {
                    context.purge();
                }
                Ok(())
            }
            Err((error, _)) => Err(match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) => SendError::QueueFull,
                Some(code @ RDKafkaErrorCode::MessageSizeTooLarge) => SendError::Refused(code.to_string()),
                _ => SendError::Broken(error),
            }),
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
        if let Some(hearing) = self.hearing.take() {
            let _ = hearing.join();
        }
    }
}
