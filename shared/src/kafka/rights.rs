//! What the brokers let us do, in their own words (KIP-430).
#![expect(unsafe_code, reason = "librdkafka can ask for rights, and rdkafka has no way to that")]

use std::ffi::CString;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};
use std::slice;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::admin::AdminClient;
use rdkafka::bindings::{
    rd_kafka_AclOperation_t as Operation, rd_kafka_AdminOptions_destroy, rd_kafka_AdminOptions_new,
    rd_kafka_AdminOptions_s, rd_kafka_AdminOptions_set_include_authorized_operations,
    rd_kafka_AdminOptions_set_request_timeout, rd_kafka_ConsumerGroupDescription_authorized_operations,
    rd_kafka_ConsumerGroupDescription_error, rd_kafka_DescribeConsumerGroups,
    rd_kafka_DescribeConsumerGroups_result_groups, rd_kafka_DescribeTopics, rd_kafka_DescribeTopics_result_topics,
    rd_kafka_TopicCollection_destroy, rd_kafka_TopicCollection_of_topic_names,
    rd_kafka_TopicDescription_authorized_operations, rd_kafka_TopicDescription_error, rd_kafka_admin_op_t as Question,
    rd_kafka_error_code, rd_kafka_error_destroy, rd_kafka_event_DescribeConsumerGroups_result,
    rd_kafka_event_DescribeTopics_result, rd_kafka_event_destroy, rd_kafka_event_error, rd_kafka_event_t,
    rd_kafka_queue_destroy, rd_kafka_queue_new, rd_kafka_queue_poll, rd_kafka_queue_t, rd_kafka_t,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;

/// What we may do with something. Without an authorizer, brokers say that we may do everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rights {
    /// Records are read: of a topic; partitions are had: of a group.
    pub read: bool,
    /// Records are written: of a topic.
    pub write: bool,
}

/// Where the rights are looked up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// A topic of this name.
    Topic(String),
    /// A consumer group of this name, which need not exist.
    Group(String),
}

impl fmt::Display for Object {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(name) => write!(formatter, "the group {name}"),
            Self::Topic(name) => write!(formatter, "the topic {name}"),
        }
    }
}

/// How long librdkafka may wait for a group's coordinator: longer than anybody waits for us. When librdkafka gives such a question up, and the
/// coordinator is found afterwards, it uses what it has freed, and aborts the process (`rd_kafka_admin_coord_request`, 2.12.1).
/// So we give up, and librdkafka does not.
const GROUP_PATIENCE: Duration = Duration::from_hours(1);

/// Between two questions to a coordinator that is not ready.
const PAUSE: Duration = Duration::from_millis(100);

/// Asks the brokers what we may do.
pub struct RightsClient {
    admin: ManuallyDrop<AdminClient<DefaultClientContext>>,
    /// Whether a question to a coordinator was not answered in time. It stays open in librdkafka.
    has_open_question: bool,
}

impl RightsClient {
    /// A client of its own.
    ///
    /// # Errors
    /// When the settings are bad.
    pub fn new(config: &ClientConfig) -> Result<Self, KafkaError> {
        Ok(Self { admin: ManuallyDrop::new(config.create()?), has_open_question: false })
    }

    /// What we may do with `object`. Blocks. None if the brokers do not say, which is so for an object that we may not even see.
    ///
    /// # Errors
    /// When they do not answer within `patience`, or the name has a zero byte.
    pub fn of(&mut self, object: &Object, patience: Duration) -> Result<Option<Rights>, KafkaError> {
        let end = Instant::now() + patience;
        loop {
            match self.ask(object, end.saturating_duration_since(Instant::now())) {
                Err(KafkaError::AdminOp(code)) if is_passing(code) && Instant::now() + PAUSE < end => {
                    thread::sleep(PAUSE);
                }
                outcome => return outcome,
            }
        }
    }

    fn ask(&mut self, object: &Object, patience: Duration) -> Result<Option<Rights>, KafkaError> {
        let (Object::Group(name) | Object::Topic(name)) = object;
        let name = CString::new(name.as_str()).map_err(KafkaError::Nul)?;
        let client = self.admin.inner().native_ptr();
        let (question, limit) = match object {
            Object::Group(_) => (Question::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS, GROUP_PATIENCE),
            Object::Topic(_) => (Question::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, patience),
        };
        let queue = Queue::new(client);
        let options = Options::new(client, question, limit);
        let mut names = [name.as_ptr()];
        // SAFETY: the client outlives this function, and librdkafka copies names and options before each of these calls returns.
        unsafe {
            match object {
                Object::Group(_) => rd_kafka_DescribeConsumerGroups(client, names.as_mut_ptr(), 1, options.0, queue.0),
                Object::Topic(_) => {
                    let topics = rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), 1);
                    rd_kafka_DescribeTopics(client, topics, options.0, queue.0);
                    rd_kafka_TopicCollection_destroy(topics);
                }
            }
        }
        let Some(event) = queue.poll(patience + Duration::from_secs(1)) else {
            self.has_open_question |= matches!(object, Object::Group(_));
            return Err(KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut));
        };
        // SAFETY: the event is ours until it is dropped.
        let failed = unsafe { rd_kafka_event_error(event.0.as_ptr()) };
        if failed != RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(KafkaError::AdminOp(failed.into()));
        }
        event.rights(object).map_err(KafkaError::AdminOp)
    }
}

/// Whether a coordinator that says so will say something else in a moment: the group's partition moves, or is being loaded.
const fn is_passing(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::NotCoordinator
            | RDKafkaErrorCode::CoordinatorNotAvailable
            | RDKafkaErrorCode::CoordinatorLoadInProgress
    )
}

impl Drop for RightsClient {
    fn drop(&mut self) {
        // With an open question the client stays for as long as the process does: to end it gives the question up too.
        if !self.has_open_question {
            // SAFETY: nothing uses it afterwards.
            unsafe { ManuallyDrop::drop(&mut self.admin) }
        }
    }
}

/// A queue that answers come to.
struct Queue(*mut rd_kafka_queue_t);

impl Queue {
    fn new(client: *mut rd_kafka_t) -> Self {
        // SAFETY: the client is alive. A new queue is never null.
        Self(unsafe { rd_kafka_queue_new(client) })
    }

    fn poll(&self, patience: Duration) -> Option<Event> {
        let millis = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the queue is ours; what comes out of it is then ours too.
        NonNull::new(unsafe { rd_kafka_queue_poll(self.0, millis) }).map(Event)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: nothing else uses it.
        unsafe { rd_kafka_queue_destroy(self.0) }
    }
}

/// That the rights are asked for, and how long an answer may take.
struct Options(*mut rd_kafka_AdminOptions_s);

impl Options {
    fn new(client: *mut rd_kafka_t, question: Question, patience: Duration) -> Self {
        let millis = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the client is alive, the options are ours, and no text of an error is asked for.
        unsafe {
            let options = rd_kafka_AdminOptions_new(client, question);
            rd_kafka_AdminOptions_set_request_timeout(options, millis, ptr::null_mut(), 0);
            let error = rd_kafka_AdminOptions_set_include_authorized_operations(options, 1);
            if !error.is_null() {
                rd_kafka_error_destroy(error);
            }
            Self(options)
        }
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: nothing else uses it.
        unsafe { rd_kafka_AdminOptions_destroy(self.0) }
    }
}

/// An answer.
struct Event(NonNull<rd_kafka_event_t>);

impl Event {
    /// None: nothing is said. An error of the object itself says so too, if it is that we may not see it.
    fn rights(&self, object: &Object) -> Result<Option<Rights>, RDKafkaErrorCode> {
        let (event, mut count) = (self.0.as_ptr(), 0);
        // SAFETY: each result belongs to the event, which outlives this function; of one object there is one description at the most, and
        // its operations are `count` in number.
        let (operations, error) = unsafe {
            let (operations, error) = match object {
                Object::Group(_) => {
                    let result = rd_kafka_event_DescribeConsumerGroups_result(event);
                    if result.is_null() {
                        return Ok(None);
                    }
                    let group = rd_kafka_DescribeConsumerGroups_result_groups(result, &raw mut count);
                    if group.is_null() || count == 0 {
                        return Ok(None);
                    }
                    let error = rd_kafka_ConsumerGroupDescription_error(*group);
                    (rd_kafka_ConsumerGroupDescription_authorized_operations(*group, &raw mut count), error)
                }
                Object::Topic(_) => {
                    let result = rd_kafka_event_DescribeTopics_result(event);
                    if result.is_null() {
                        return Ok(None);
                    }
                    let topic = rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
                    if topic.is_null() || count == 0 {
                        return Ok(None);
                    }
                    let error = rd_kafka_TopicDescription_error(*topic);
                    (rd_kafka_TopicDescription_authorized_operations(*topic, &raw mut count), error)
                }
            };
            let error = if error.is_null() { RD_KAFKA_RESP_ERR_NO_ERROR } else { rd_kafka_error_code(error) };
            // As numbers: a broker that is newer than librdkafka may name an operation that the enumeration lacks.
            let operations =
                if operations.is_null() { None } else { Some(slice::from_raw_parts(operations.cast::<u32>(), count)) };
            (operations, RDKafkaErrorCode::from(error))
        };
        let Some(operations) = operations else {
            return match error {
                RDKafkaErrorCode::NoError
                | RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::UnknownTopicOrPartition => Ok(None),
                error => Err(error),
            };
        };
        let has = |operation: Operation| operations.contains(&(operation as u32));
        let may = |operation| has(operation) || has(Operation::RD_KAFKA_ACL_OPERATION_ALL);
        Ok(Some(Rights {
            read: may(Operation::RD_KAFKA_ACL_OPERATION_READ),
            write: may(Operation::RD_KAFKA_ACL_OPERATION_WRITE),
        }))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nothing else uses it.
        unsafe { rd_kafka_event_destroy(self.0.as_ptr()) }
    }
}
