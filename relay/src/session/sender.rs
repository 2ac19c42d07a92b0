//! The thread that hands events to the producer, so that the next read is under way meanwhile.

mod feeder;
mod held;
mod retrying;

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender as ChannelSender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use shared::ages::EventAge;
use shared::kafka::Topics;
use tokio::runtime::Handle;

use super::lease::Lease;
use crate::batch::Batch;
use crate::lanes::TypeIndex;
use crate::outbox::parked::ParkedRow;
use crate::publisher::Publisher;
use crate::publisher::destinations::{Destinations, OpenTopic};
use crate::publisher::flow::FlowControl;
use crate::publisher::outcomes::{Failure, Outcomes};
use crate::routes::Routes;

use feeder::Feeder;

/// Reads that wait for the sender. With the one it works on and the one that is being read, this bounds the memory for rows.
pub(super) const BATCHES_WAITING: usize = 2;

/// Between two looks at events that are held back, and at what is in flight.
const TICK: Duration = Duration::from_millis(1);
const TICK_IN_FLIGHT: Duration = Duration::from_millis(50);

/// What the sender is told, in this order.
#[derive(Debug)]
pub(super) enum Work {
    /// A lane was taken, and these keys of it (aggregate type and id) are parked.
    Lane(i16, Vec<(String, String)>),
    /// These keys of a lane are parked too.
    Parked(i16, Vec<(String, String)>),
    /// Where events go from now on.
    Routes(Routes),
    /// Events to publish.
    Batch(Batch),
    /// Parked events of one key, of this type, to try again while nothing else is under way.
    Retry(TypeIndex, Vec<ParkedRow>),
    /// This key (aggregate type and id) is parked no more.
    Unpark(i16, (String, String)),
    /// This type waits no more.
    Resume(TypeIndex),
    /// The topic of a type was looked at.
    Looked(Looked),
    /// The session has ended.
    Close,
}

/// What a look at the topic of a type has found.
#[derive(Debug)]
pub(super) struct Looked {
    pub type_index: TypeIndex,
    pub aggregate_type: String,
    pub topic: Result<OpenTopic, Failure>,
}

/// What the sender needs.
pub(super) struct Sender {
    pub publisher: Publisher,
    pub control: FlowControl,
    pub outcomes: Arc<Outcomes>,
    /// How old events are when they have been read.
    pub read_age: EventAge,
    pub lease: Arc<Lease>,
    pub topics: Topics,
    pub destinations: Destinations,
    /// Bytes that the producer puts into a batch.
    pub batch_bytes: usize,
    /// How much of its lease a lane must still have when a record of it is handed over.
    pub lease_needed: Duration,
    /// How long events of a type are held back while its topic is looked at; then the type waits, and all others go on.
    pub look_max: Duration,
    /// How long a record may be in flight before its topic is looked into.
    pub slow: Duration,
    /// Rows (lane and outbox id) of which one or more will be refused: they are sent one at a time.
    pub suspects: HashSet<(i16, i64)>,
    /// Whether parked events that are tried again all go alone, since some of them could not go together.
    pub retry_alone: bool,
}

/// The thread and the way to it.
///
/// Only batches are bounded, by [`Pipe::is_full`]. If the session could be made to wait here for anything else, it would no longer renew
/// the leases that the sender may be waiting for, and both would wait for ever.
pub(super) struct Pipe {
    work: ChannelSender<Work>,
    /// Batches that wait.
    waiting: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
    lease: Arc<Lease>,
    /// Batches that were sent, whose room is used again: fresh memory for every read costs a tenth of it.
    used: Arc<Mutex<Vec<Batch>>>,
}

impl Pipe {
    /// Starts the thread. It ends when the lease is closed or this is dropped.
    pub(super) fn start(sender: Sender) -> std::io::Result<Self> {
        let (work, receiver) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let lease = Arc::clone(&sender.lease);
        let used = Arc::new(Mutex::new(Vec::with_capacity(BATCHES_WAITING + 2)));
        let run = Run {
            feeder: Feeder::new(sender, work.clone(), Handle::current()),
            used: Arc::clone(&used),
            waiting: Arc::clone(&waiting),
        };
        let thread = std::thread::Builder::new().name("sender".to_owned()).spawn(move || run.work(&receiver))?;
        Ok(Self { work, waiting, thread: Some(thread), lease, used })
    }

    /// An empty batch for the next read.
    pub(super) fn empty_batch(&self) -> Batch {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// Takes back a batch of which nothing is to be sent.
    pub(super) fn give_back(&self, mut batch: Batch) {
        batch.clear();
        put(&self.used, batch);
    }

    /// Whether a batch would have to wait for room.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) >= BATCHES_WAITING
    }

    /// Hands over work. If the thread has ended, the outcomes say why.
    pub(super) fn send(&self, work: Work) {
        if matches!(work, Work::Batch(_)) {
            self.waiting.fetch_add(1, Ordering::Relaxed);
        }
        let _ = self.work.send(work);
    }

    /// Ends the thread and its producer: when this returns, nothing is sent any more, and what Kafka has acknowledged is known. Blocks.
    pub(super) fn close(mut self) {
        self.end();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    fn end(&self) {
        self.lease.close();
        // The thread may be waiting for work.
        let _ = self.work.send(Work::Close);
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.end();
    }
}

/// The thread's state.
struct Run {
    feeder: Feeder,
    used: Arc<Mutex<Vec<Batch>>>,
    waiting: Arc<AtomicUsize>,
}

impl Run {
    fn work(mut self, receiver: &Receiver<Work>) {
        let outcomes = self.feeder.outcomes();
        let failure = loop {
            let done = match self.next(receiver) {
                Ok(Some(work)) => self.take(work),
                Ok(None) => Ok(()),
                Err(stop) => Err(stop),
            };
            match done.and_then(|()| self.feeder.tick(Instant::now())) {
                Ok(()) => {}
                Err(Stop::Closed) => break None,
                Err(Stop::Failed(failure)) => break Some(failure),
            }
        };
        if failure.is_some() {
            outcomes.leave_open_topics(self.feeder.open_topics());
        }
        // The producer goes first: whoever hears of the failure may rely on nothing more being sent.
        drop(self);
        if let Some(failure) = failure {
            outcomes.fail(failure);
        }
    }

    /// Waits for work, and no longer than until something is to be looked at.
    fn next(&self, receiver: &Receiver<Work>) -> Result<Option<Work>, Stop> {
        let tick = if self.feeder.holds_events() {
            TICK
        } else if self.feeder.is_busy() {
            TICK_IN_FLIGHT
        } else {
            return receiver.recv().map(Some).map_err(|_| Stop::Closed);
        };
        match receiver.recv_timeout(tick) {
            Ok(work) => Ok(Some(work)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(Stop::Closed),
        }
    }

    fn take(&mut self, work: Work) -> Result<(), Stop> {
        match work {
            Work::Close => return Err(Stop::Closed),
            Work::Batch(mut batch) => {
                // There is room for another one.
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                self.feeder.outcomes().nudge();
                let done = self.feeder.batch(&batch);
                batch.clear();
                put(&self.used, batch);
                return done;
            }
            Work::Retry(type_index, rows) => return self.feeder.retry(type_index, &rows),
            Work::Routes(routes) => return self.feeder.reroute(routes),
            Work::Looked(looked) => return self.feeder.looked(looked),
            Work::Resume(type_index) => self.feeder.resume(type_index),
            Work::Lane(lane, keys) => self.feeder.take_lane(lane, keys),
            Work::Parked(lane, keys) => self.feeder.add_parked(lane, keys),
            Work::Unpark(lane, key) => self.feeder.unpark(lane, &key),
        }
        Ok(())
    }
}

fn put(used: &Mutex<Vec<Batch>>, batch: Batch) {
    used.lock().unwrap_or_else(PoisonError::into_inner).push(batch);
}

/// Why the thread ends.
pub(super) enum Stop {
    /// The session has ended.
    Closed,
    /// The session must end, or publish by another producer.
    Failed(Failure),
}
