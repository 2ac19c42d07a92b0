//! What Kafka has said of the records handed to the producer, between the threads that hear it and the session that acts on it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use shared::propagation::TraceId;
use tokio::sync::Notify;

use crate::lanes::{Ticket, TypeIndex};
use crate::publisher::destinations::OpenTopic;

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

/// How a retry of parked rows has ended.
#[derive(Debug)]
pub(crate) enum Retried {
    /// It has been made.
    Ended {
        /// How many of them, from the first, Kafka has.
        published: usize,
        /// Why it refuses the one after those.
        refused: Option<String>,
    },
    /// Their topic is not known yet, or takes no records now: it is to be made later.
    Later,
}

/// Why nothing more can be sent.
#[derive(Debug, Clone)]
pub(crate) enum Failure {
    /// The producer as a whole is done for.
    Kafka(KafkaError),
    /// These topics take no records, or not these. The others are well, as far as is known.
    Topics(Vec<Trouble>),
    /// A topic takes smaller batches only, of so many bytes.
    SmallerBatches(usize),
}

impl Failure {
    /// The brokers have not acknowledged a record for this topic in time.
    pub(crate) fn silence_of(topic: &str) -> Self {
        let cause = Cause::Unavailable(SILENT.to_owned());
        Self::Topics(vec![Trouble { topic: topic.to_owned(), cause }])
    }

    /// Whether the records that failed are not to blame.
    pub(crate) fn is_of_silence(&self) -> bool {
        let is_silent = |trouble: &Trouble| matches!(trouble.cause, Cause::TimedOut(_) | Cause::Unavailable(_));
        matches!(self, Self::Topics(troubles) if troubles.iter().all(is_silent))
    }
}

/// Why a topic waits whose brokers say nothing.
pub(crate) const SILENT: &str = "its brokers have not acknowledged a record in time";

/// A topic, and what is wrong with it.
#[derive(Debug, Clone)]
pub(crate) struct Trouble {
    /// Its name.
    pub topic: String,
    /// What is wrong.
    pub cause: Cause,
}

impl Trouble {
    /// In words for a person.
    pub(crate) fn reason(&self) -> String {
        match &self.cause {
            Cause::TimedOut(why) | Cause::Unavailable(why) => why.clone(),
            Cause::Refused => "a broker has refused a batch for what is in one of its records".to_owned(),
            Cause::Unconfirmed => "records were reported as delivered that no broker has acknowledged".to_owned(),
        }
    }
}

/// What is wrong with a topic.
#[derive(Debug, Clone)]
pub(crate) enum Cause {
    /// Nothing was heard in time: the topic's brokers do not take records, or all brokers are away.
    TimedOut(String),
    /// A broker has said why it takes none.
    Unavailable(String),
    /// A broker has refused a batch for what is in it.
    Refused,
    /// The client has reported records as delivered which no broker has acknowledged.
    Unconfirmed,
}

/// Outcomes that have not been taken yet.
#[derive(Debug, Default)]
struct State {
    acknowledged: Vec<Acknowledged>,
    parked: Vec<Parked>,
    /// Records that a broker has refused, perhaps only for the company in their batch.
    refused: Vec<Ticket>,
    /// Types whose topic takes no records, and of which nothing is under way.
    set_aside: Vec<(TypeIndex, Trouble)>,
    /// The first failure is the cause; those after it are its consequences.
    failure: Option<Failure>,
    /// What the stream knew of topics when it ended.
    open_topics: Vec<(TypeIndex, OpenTopic)>,
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
    /// Whether a topic is slow now, so that another producer may be needed soon.
    topic_is_slow: AtomicBool,
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
        let code = error.rdkafka_error_code();
        if matches!(code, Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight)) {
            // We have thrown it away ourselves, for a reason that is known.
            return false;
        }
        let mut state = self.lock();
        let own = code.filter(|code| is_own_fault(*code));
        let gap = match (own, state.alone.as_mut().filter(|(alone, _)| *alone == ticket)) {
            // It was alone, so it was itself that was refused: no failure, but an answer.
            (Some(code), Some((_, outcome))) => {
                *outcome = Some(Err(code));
                false
            }
            (own, _) => {
                state.refused.extend(own.map(|_| ticket));
                state.failure.get_or_insert_with(|| failure(error, topic));
                true
            }
        };
        drop(state);
        self.answered.notify_all();
        self.changed.notify_one();
        gap
    }

    /// A record was reported as delivered, but no broker has said so.
    pub(crate) fn doubt(&self, topic: &str) {
        self.fail(Failure::Topics(vec![Trouble { topic: topic.to_owned(), cause: Cause::Unconfirmed }]));
    }

    /// The topic of a type takes no records, and none of the type is under way: it is to wait, and all others go on.
    pub(crate) fn set_aside(&self, type_index: TypeIndex, trouble: Trouble) {
        self.lock().set_aside.push((type_index, trouble));
        self.changed.notify_one();
    }

    /// Takes at most so many of these.
    pub(crate) fn take_set_aside(&self, count_max: usize) -> Vec<(TypeIndex, Trouble)> {
        let mut state = self.lock();
        let count = state.set_aside.len().min(count_max);
        state.set_aside.drain(..count).collect()
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

    /// Whether a topic is slow, for which the producer may be given up.
    pub(crate) fn set_topic_slow(&self, is_slow: bool) {
        if self.topic_is_slow.swap(is_slow, Ordering::Relaxed) != is_slow {
            self.changed.notify_one();
        }
    }

    /// Whether one is.
    pub(crate) fn is_topic_slow(&self) -> bool {
        self.topic_is_slow.load(Ordering::Relaxed)
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

    /// How many of them are acknowledged by now.
    pub(crate) fn retried(&self) -> usize {
        self.lock().retried
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

    pub(crate) fn take_refused(&self) -> Vec<Ticket> {
        std::mem::take(&mut self.lock().refused)
    }

    /// The stream ends, and these topics were open.
    pub(crate) fn leave_open_topics(&self, topics: Vec<(TypeIndex, OpenTopic)>) {
        self.lock().open_topics = topics;
    }

    pub(crate) fn take_open_topics(&self) -> Vec<(TypeIndex, OpenTopic)> {
        std::mem::take(&mut self.lock().open_topics)
    }

    pub(crate) fn failure(&self) -> Option<Failure> {
        self.lock().failure.clone()
    }

    /// Resolves when something has come since the last call.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// What an error of a record means for the others.
fn failure(error: &KafkaError, topic: &str) -> Failure {
    use RDKafkaErrorCode as Code;
    let Some(code) = error.rdkafka_error_code() else { return Failure::Kafka(error.clone()) };
    let cause = match code {
        code if is_own_fault(code) => Cause::Refused,
        // What the broker says of the other records of a batch in which it has refused one.
        Code::InvalidDifferentRecord => Cause::Refused,
        Code::MessageTimedOut => Cause::TimedOut("its brokers did not acknowledge a record in time".to_owned()),
        Code::TopicAuthorizationFailed
        | Code::InvalidTopic
        | Code::InvalidTimestamp
        | Code::LeaderNotAvailable
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::InvalidRequiredAcks
        | Code::KafkaStorageError
        | Code::UnknownPartition
        | Code::UnknownTopic
        | Code::UnknownTopicId
        | Code::UnknownTopicOrPartition
        | Code::UnsupportedForMessageFormat
        | Code::ThrottlingQuotaExceeded => Cause::Unavailable(format!("a broker said: {code}")),
        _ => return Failure::Kafka(error.clone()),
    };
    Failure::Topics(vec![Trouble { topic: topic.to_owned(), cause }])
}

/// Whether a broker says this of a record for what is in it: it will never take it. Of a batch of records it may be true of one only.
/// What a topic, the rights to it or a clock are to blame for is none of these: such records wait.
fn is_own_fault(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::MessageBatchTooLarge
            | Code::InvalidMessageSize
            | Code::InvalidRecord
            | Code::PolicyViolation
    )
}
