//! The idempotent producer: records in, outcomes out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext, PurgeConfig};
use shared::spans::Spans;
use shared::throttle::Throttle;

use crate::batch::Event;
use crate::lanes::Ticket;
use crate::lanes::ticket::Arrived;

pub(crate) mod destinations;
pub(crate) mod flow;
pub(crate) mod outcomes;
mod partition;
mod record;
pub(crate) mod spans;

use destinations::Destination;
use flow::Flows;
use outcomes::Outcomes;
use spans::{PublishSpan, PublishSpans};

/// How often the thread that hears outcomes looks whether it is to end.
const HEAR: Duration = Duration::from_millis(50);

/// How long outcomes are still heard after the producer was stopped: by then each record has one.
const LAST_WORDS: Duration = Duration::from_millis(100);

struct Context {
    outcomes: Arc<Outcomes>,
    flows: Arc<Flows>,
    spans: Arc<PublishSpans>,
    stopped: AtomicBool,
    /// The producer that this is the context of.
    producer: OnceLock<Weak<BaseProducer<Context>>>,
    log: Throttle,
}

impl Context {
    /// Has the producer send nothing more; returns whether it did until now.
    ///
    /// A record that has failed leaves a gap in front of the younger ones of its key. librdkafka would close it and go on: records that
    /// waited too long are given up one after the other, and when a broker answers at last, it takes those that have not been. The
    /// session ends because of the failure, but it takes a while to notice. Between the failure and this lies less than the round trip to
    /// a broker that librdkafka needs before it goes on (a new producer epoch).
    fn stop(&self) -> bool {
        let is_first = !self.stopped.swap(true, Ordering::SeqCst);
        if is_first {
            self.purge();
        }
        is_first
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
        if let Some(others) = self.log.pass("client") {
            tracing::warn!(error = %error, reason, others_since_the_last = others, "the Kafka client reports a problem");
        }
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.outcomes.fail(outcomes::Failure::Kafka(error));
        }
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: Self::DeliveryOpaque) {
        let Arrived { ticket, traced, flow } = Ticket::from_integer(opaque);
        match result {
            Ok(message) => {
                let bytes = message.payload_len() + message.key_len();
                if !self.flows.acknowledge(flow, message.offset(), bytes) {
                    self.outcomes.doubt(message.topic());
                    self.stop();
                    return;
                }
                let trace_id = if traced { self.spans.acknowledged(ticket, message) } else { None };
                self.outcomes.acknowledge(ticket, trace_id);
            }
            Err((error, message)) => {
                let is_first = self.outcomes.reject(ticket, error, message.topic()) && self.stop();
                if traced {
                    self.spans.failed(ticket, message.topic(), error);
                } else if is_first {
                    self.spans.failed_first(message, error);
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

/// Who is told what becomes of the records.
#[derive(Debug)]
pub(crate) struct Listener {
    /// What Kafka says of each record.
    pub outcomes: Arc<Outcomes>,
    /// What each partition has taken.
    pub flows: Arc<Flows>,
}

/// One producer, for as long as nothing has failed. Dropping it throws away what it has not sent.
pub(crate) struct Publisher {
    producer: Arc<BaseProducer<Context>>,
    closing: Arc<AtomicBool>,
    hearing: Option<JoinHandle<()>>,
    spans: Arc<PublishSpans>,
}

impl Publisher {
    /// A new producer. It connects by itself.
    pub(crate) fn new(
        mut config: ClientConfig,
        batching: Batching,
        listener: Listener,
        spans: Spans,
    ) -> Result<Self, Unmade> {
        let Listener { outcomes, flows } = listener;
        match batching {
            Batching::Full(bytes) => {
                config.set("batch.size", bytes.to_string()).set("enable.gapless.guarantee", "true");
            }
            Batching::Single => {
                config.set("batch.num.messages", "1");
            }
        }
        let spans = Arc::new(PublishSpans::new(spans));
        let context = Context {
            outcomes,
            flows,
            spans: Arc::clone(&spans),
            stopped: AtomicBool::new(false),
            producer: OnceLock::new(),
            log: Throttle::new(),
        };
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
                let begun = Instant::now();
                while producer.in_flight_count() > 0 && begun.elapsed() < LAST_WORDS {
                    producer.poll(Duration::from_millis(1));
                }
            }
        };
        let hearing = std::thread::Builder::new().name("outcomes".to_owned()).spawn(hear).map_err(Unmade::Thread)?;
        Ok(Self { producer, closing, hearing: Some(hearing), spans })
    }

    /// The spans of the events that are sent.
    pub(crate) fn spans(&self) -> &PublishSpans {
        &self.spans
    }

    /// Throws away what was not acknowledged: nothing of it is sent any more.
    pub(crate) fn abandon(&self) {
        self.producer.client().context().stop();
    }

    /// Hands one event to the producer. Its outcome comes later, under `ticket`, and is counted for `flow`. With it ends `span`, which is
    /// left where it is if the producer does not take the event.
    pub(crate) fn send(
        &self,
        to: &Destination,
        event: &Event<'_>,
        ticket: Ticket,
        flow: usize,
        span: &mut Option<PublishSpan>,
    ) -> Result<(), SendError> {
        let context = self.producer.client().context();
        if context.stopped.load(Ordering::SeqCst) {
            return Err(SendError::Broken(KafkaError::Canceled));
        }
        let traceparent = span.as_ref().map(PublishSpan::traceparent);
        let record = BaseRecord::with_opaque_to(&to.topic, ticket.to_integer(span.is_some(), flow))
            .key(event.aggregate_id)
            .payload(event.payload)
            .headers(record::headers(event, &to.source, traceparent.as_deref()));
        // Before it is sent: the outcome may be heard before `send` returns.
        if let Some(span) = span.take() {
            self.spans.hold(ticket, span);
        }
        match self.producer.send(record) {
            Ok(()) => {
                // Stopped in this instant: what came before this record was thrown away, and this one may have come too late for that.
                if context.stopped.load(Ordering::SeqCst) {
                    context.purge();
                }
                Ok(())
            }
            Err((error, _)) => {
                if traceparent.is_some() {
                    *span = self.spans.take_back(ticket);
                }
                Err(match error.rdkafka_error_code() {
                    Some(RDKafkaErrorCode::QueueFull) => SendError::QueueFull,
                    Some(code @ RDKafkaErrorCode::MessageSizeTooLarge) => SendError::Refused(code.to_string()),
                    _ => SendError::Broken(error),
                })
            }
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.abandon();
        self.closing.store(true, Ordering::Relaxed);
        if let Some(hearing) = self.hearing.take() {
            let _ = hearing.join();
        }
        self.spans.close();
    }
}
