//! What Kafka has said of the records handed to the producer, between the threads that hear it and the session that acts on it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use shared::propagation::TraceId;
use tokio::sync::Notify;

use crate::lanes::Ticket;

/// A record that Kafka has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Acknowledged {
    /// The record's.
    pub ticket: Ticket,
    /// The trace that its span is part of, if it has one.
    pub trace_id: Option<TraceId>,
}

/// A row that is to wait in `relay_parked`.
#[derive(Debug)]
pub(crate) struct Parked {
    /// Its record's.
    pub ticket: Ticket,
    /// `outbox.id`.
    pub id: i64,
    /// Why Kafka refuses it; none if an elder of its key was refused.
    pub reason: Option<String>,
}

/// A record that a broker has refused, perhaps only for the company in its batch.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    /// The record's.
    pub ticket: Ticket,
    /// What the broker said.
    pub code: RDKafkaErrorCode,
    /// Where the record was to go.
    pub topic: String,
}

/// How a retry of parked rows has ended.
#[derive(Debug)]
pub(crate) struct Retried {
    /// How many of them, from the first, Kafka has.
    pub published: usize,
    /// Why it refuses the one after those.
    pub refused: Option<String>,
}

/// Why nothing more can be sent.
#[derive(Debug, Clone)]
pub(crate) enum Failure {
    /// A record was not taken, or the producer as a whole is done for.
    Kafka(KafkaError),
    /// A topic could not be looked at or made.
    Topic {
        /// Its name.
        topic: String,
        /// What the brokers say.
        error: KafkaError,
    },
    /// A topic takes smaller batches only, of so many bytes.
    SmallerBatches(usize),
}

/// Outcomes that have not been taken yet.
#[derive(Debug, Default)]
struct State {
    acknowledged: Vec<Acknowledged>,
    parked: Vec<Parked>,
    refused: Vec<Refused>,
    /// The first failure is the cause; those after it are its consequences.
    failure: Option<Failure>,
    /// A record that is sent alone, and its outcome once it is known.
    alone: Option<(Ticket, Option<Result<(), RDKafkaErrorCode>>)>,
    /// Parked records that were tried again and acknowledged since the last retry began.
    retried: usize,
    retry: Option<Retried>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    state: Mutex<State>,
    changed: Notify,
    answered: Condvar,
    /// Whether all records that had to be sent alone have been.
    cleared: AtomicBool,
}

impl Outcomes {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn acknowledge(&self, ticket: Ticket, trace_id: Option<TraceId>) {
        let mut state = self.lock();
        if ticket.is_retry() {
            state.retried += 1;
            self.answered.notify_all();
        } else {
            state.acknowledged.push(Acknowledged { ticket, trace_id });
        }
        let first = state.acknowledged.len() == 1;
        if let Some((_, outcome @ None)) = state.alone.as_mut().filter(|(alone, _)| *alone == ticket) {
            *outcome = Some(Ok(()));
            self.answered.notify_all();
        }
        drop(state);
        if first {
            self.changed.notify_one();
        }
    }

    /// A broker, or the producer by itself, has given up on a record. Returns whether that leaves a gap, behind which nothing may be sent: it
    /// leaves none when the record was sent alone.
    pub(crate) fn reject(&self, ticket: Ticket, error: &KafkaError, topic: &str) -> bool {
        let mut state = self.lock();
        let code = error.rdkafka_error_code().filter(|code| is_refusal(*code));
        let gap = match (code, state.alone.as_mut().filter(|(alone, _)| *alone == ticket)) {
            // It was alone, so it was itself that was refused: no failure, but an answer.
            (Some(code), Some((_, outcome))) => {
                *outcome = Some(Err(code));
                false
            }
            (code, _) => {
                if let Some(code) = code {
                    state.refused.push(Refused { ticket, code, topic: topic.to_owned() });
                }
                state.failure.get_or_insert_with(|| Failure::Kafka(error.clone()));
                true
            }
        };
        drop(state);
        self.answered.notify_all();
        self.changed.notify_one();
        gap
    }

    pub(crate) fn fail(&self, failure: Failure) {
        self.lock().failure.get_or_insert(failure);
        self.answered.notify_all();
        self.changed.notify_one();
    }

    pub(crate) fn park(&self, parked: Parked) {
        self.lock().parked.push(parked);
        self.changed.notify_one();
    }

    /// Wakes the session.
    pub(crate) fn nudge(&self) {
        self.changed.notify_one();
    }

    /// Announces a record that is about to be sent alone.
    pub(crate) fn expect_alone(&self, ticket: Ticket) {
        self.lock().alone = Some((ticket, None));
    }

    /// Waits for the outcome of the record that was sent alone: none if everything has failed meanwhile. It ends within the message
    /// time-out, as every record does.
    pub(crate) fn outcome_alone(&self) -> Option<Result<(), RDKafkaErrorCode>> {
        let mut state = self.lock();
        loop {
            if let Some((_, Some(outcome))) = &state.alone {
                let outcome = *outcome;
                state.alone = None;
                return Some(outcome);
            }
            if state.failure.is_some() {
                return None;
            }
            state = self.answered.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Parked records are about to be tried again.
    pub(crate) fn begin_retry(&self) {
        self.lock().retried = 0;
    }

    /// Waits until so many of them are acknowledged; returns whether they are, or something has failed.
    pub(crate) fn all_retried(&self, count: usize) -> bool {
        let mut state = self.lock();
        while state.retried < count {
            if state.failure.is_some() {
                return false;
            }
            state = self.answered.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    pub(crate) fn end_retry(&self, retried: Retried) {
        self.lock().retry = Some(retried);
        self.changed.notify_one();
    }

    pub(crate) fn take_retry(&self) -> Option<Retried> {
        self.lock().retry.take()
    }

    /// The last record that had to be sent alone has its answer.
    pub(crate) fn clear(&self) {
        self.cleared.store(true, Ordering::Relaxed);
        self.changed.notify_one();
    }

    pub(crate) fn is_clear(&self) -> bool {
        self.cleared.load(Ordering::Relaxed)
    }

    /// Takes the acknowledgements into `into`, whose room is reused.
    pub(crate) fn take_acknowledged(&self, into: &mut Vec<Acknowledged>) {
        into.clear();
        std::mem::swap(&mut self.lock().acknowledged, into);
    }

    pub(crate) fn take_parked(&self) -> Vec<Parked> {
        std::mem::take(&mut self.lock().parked)
    }

    pub(crate) fn take_refused(&self) -> Vec<Refused> {
        std::mem::take(&mut self.lock().refused)
    }

    pub(crate) fn failure(&self) -> Option<Failure> {
        self.lock().failure.clone()
    }

    /// Resolves when something has come since the last call.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// Whether a broker says this of a record that it will never take, as opposed to one that it cannot take now. Of a batch of records
/// it may be true of one only.
fn is_refusal(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::MessageBatchTooLarge
            | Code::InvalidMessageSize
            | Code::InvalidRecord
            | Code::InvalidTimestamp
            | Code::UnsupportedForMessageFormat
            | Code::PolicyViolation
    ) || is_of_topic(code)
}

/// Whether it is said of all records of the topic.
pub(crate) fn is_of_topic(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::InvalidTopic)
}
