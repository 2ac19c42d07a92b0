//! The thread that hands events to the producer, so that the next read is under way meanwhile.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use shared::ages::EventAge;
use shared::spans;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::lease::Lease;
use crate::batch::{Batch, Event};
use crate::lanes::{RowKey, Ticket};
use crate::outbox::parked::ParkedRow;
use crate::publisher::destinations::Destinations;
use crate::publisher::outcomes::{Failure, Outcomes, Parked, Retried};
use crate::publisher::spans::{Origin, PublishSpan};
use crate::publisher::{Publisher, SendError};
use crate::routes::Routes;

/// Reads that wait for the sender. With the one it works on and the one that is being read, this bounds the memory for rows.
pub(super) const BATCHES_WAITING: usize = 2;

/// Between two tries to hand over a record while the producer's queue is full.
const QUEUE_FULL_WAIT: Duration = Duration::from_millis(1);

/// What the sender is told, in this order.
#[derive(Debug)]
pub(super) enum Work {
    /// A lane was taken, and these keys of it (aggregate type and id) are parked.
    Lane(i16, Vec<(String, String)>),
    /// Where events go from now on.
    Routes(Routes),
    /// Events to publish.
    Batch(Batch),
    /// Parked events of one key to try again, while nothing else is under way.
    Retry(Vec<ParkedRow>),
    /// This key (aggregate type and id) is parked no more.
    Unpark(i16, (String, String)),
}

/// What the sender needs.
pub(super) struct Sender {
    pub publisher: Publisher,
    pub outcomes: Arc<Outcomes>,
    /// How old events are when they have been read.
    pub read_age: EventAge,
    pub lease: Arc<Lease>,
    pub destinations: Destinations,
    /// How much of its lease a lane must still have when a record of it is handed over.
    pub lease_needed: Duration,
    /// Rows (lane and outbox id) of which one or more will be refused: they are sent one at a time.
    pub suspects: HashSet<(i16, i64)>,
    /// Whether parked events that are tried again all go alone, since some of them could not go together.
    pub retry_alone: bool,
}

/// The thread and the way to it.
///
/// Only batches are bounded, by [`Pipe::is_full`]. If the session could be made to wait here for anything else, it would no longer renew
/// the leases that the sender may be waiting for, and both would wait for ever: while a topic is looked at, which can take longer than
/// a lease, nothing is taken from the channel.
pub(super) struct Pipe {
    work: mpsc::UnboundedSender<Work>,
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
        let (work, receiver) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let lease = Arc::clone(&sender.lease);
        let handle = Handle::current();
        let used = Arc::new(Mutex::new(Vec::with_capacity(BATCHES_WAITING + 2)));
        let run =
            Run { sender, handle, parked: HashMap::new(), used: Arc::clone(&used), waiting: Arc::clone(&waiting) };
        let thread = std::thread::Builder::new().name("sender".to_owned()).spawn(move || run.work(receiver))?;
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

    /// Ends the thread and its producer. What was not sent is thrown away, which takes up to half a second. Blocks.
    pub(super) fn close(mut self) {
        self.lease.close();
        let Self { work, thread, .. } = &mut self;
        // The thread may be waiting for work.
        drop(std::mem::replace(work, mpsc::unbounded_channel().0));
        if let Some(thread) = thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.lease.close();
    }
}

/// The thread's state.
struct Run {
    sender: Sender,
    handle: Handle,
    /// By lane, the keys whose events wait in `relay_parked`.
    parked: HashMap<i16, HashSet<(String, String)>>,
    used: Arc<Mutex<Vec<Batch>>>,
    waiting: Arc<AtomicUsize>,
}

impl Run {
    fn work(mut self, mut receiver: mpsc::UnboundedReceiver<Work>) {
        while let Some(work) = receiver.blocking_recv() {
            if matches!(work, Work::Batch(_)) {
                // There is room for another one.
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                self.sender.outcomes.nudge();
            }
            let done = match work {
                Work::Lane(lane, keys) => {
                    self.parked.insert(lane, keys.into_iter().collect());
                    Ok(())
                }
                Work::Routes(routes) => {
                    self.sender.destinations.reroute(routes);
                    Ok(())
                }
                Work::Batch(mut batch) => {
                    let done = self.batch(&batch);
                    batch.clear();
                    put(&self.used, batch);
                    done
                }
                Work::Retry(rows) => self.retry(&rows),
                Work::Unpark(lane, key) => {
                    if let Some(keys) = self.parked.get_mut(&lane) {
                        keys.remove(&key);
                    }
                    Ok(())
                }
            };
            match done {
                Ok(()) => {}
                Err(Stop::Closed) => return,
                Err(Stop::Failed(failure)) => return self.sender.outcomes.fail(failure),
            }
        }
    }

    fn batch(&mut self, batch: &Batch) -> Result<(), Stop> {
        let read_at = batch.read_at.unwrap_or_else(spans::now);
        for (row, ticket, event) in batch.events() {
            if self.is_parked(row.lane, &event) {
                self.sender.outcomes.park(Parked { ticket, id: row.id, reason: None });
            } else if let Some(reason) = self.send(row, ticket, &event, read_at)? {
                tracing::error!(
                    event.id = %event.event_id,
                    outbox.id = row.id,
                    reason,
                    "Kafka refuses an event for good: its key is parked, see `outrider parked list`"
                );
                let key = (event.aggregate_type.to_owned(), event.aggregate_id.to_owned());
                self.parked.entry(row.lane).or_default().insert(key);
                self.sender.outcomes.park(Parked { ticket, id: row.id, reason: Some(reason) });
            }
        }
        Ok(())
    }

    /// Tries parked events of one key again. Those that were refused before go alone, so that a refusal is their own; the others
    /// follow them at full speed, unless one of those was refused in the company of its batch.
    fn retry(&mut self, rows: &[ParkedRow]) -> Result<(), Stop> {
        self.sender.outcomes.begin_retry();
        let read_at = spans::now();
        for (index, row) in rows.iter().enumerate() {
            let alone = row.reason.is_some() || self.sender.retry_alone;
            let outcomes = Arc::clone(&self.sender.outcomes);
            if alone && !outcomes.all_retried(index) {
                return Err(Stop::Closed);
            }
            let origin = Origin { id: row.id, lane: None, read_at };
            if let Some(reason) = self.hand_over(Ticket::retry(index as u64), &row.event(), alone, origin)? {
                if !outcomes.all_retried(index) {
                    return Err(Stop::Closed);
                }
                outcomes.end_retry(Retried { published: index, refused: Some(reason) });
                return Ok(());
            }
        }
        if !self.sender.outcomes.all_retried(rows.len()) {
            return Err(Stop::Closed);
        }
        self.sender.outcomes.end_retry(Retried { published: rows.len(), refused: None });
        Ok(())
    }

    fn is_parked(&self, lane: i16, event: &Event<'_>) -> bool {
        // Almost always there is none.
        self.parked.get(&lane).is_some_and(|keys| {
            !keys.is_empty() && keys.contains(&(event.aggregate_type.to_owned(), event.aggregate_id.to_owned()))
        })
    }

    fn send(
        &mut self,
        row: RowKey,
        ticket: Ticket,
        event: &Event<'_>,
        read_at: SystemTime,
    ) -> Result<Option<String>, Stop> {
        let suspects = &mut self.sender.suspects;
        let alone = !suspects.is_empty() && suspects.remove(&(row.lane, row.id));
        let origin = Origin { id: row.id, lane: Some(row.lane), read_at };
        let refused = self.hand_over(ticket, event, alone, origin)?;
        if alone && self.sender.suspects.is_empty() {
            self.sender.outcomes.clear();
        }
        Ok(refused)
    }

    /// Hands an event to the producer, with a span if its trace is recorded. Returns a reason if Kafka will never take it.
    fn hand_over(
        &mut self,
        ticket: Ticket,
        event: &Event<'_>,
        alone: bool,
        origin: Origin,
    ) -> Result<Option<String>, Stop> {
        if let Some(reason) = event.unpublishable() {
            return Ok(Some(reason.to_owned()));
        }
        let mut span = self.sender.publisher.spans().begin(event, origin);
        let had_span = span.is_some();
        // A parked event that is tried again was counted before.
        if origin.lane.is_some() {
            let trace_id = span.as_ref().map(PublishSpan::trace_id);
            self.sender.read_age.observe(event.occurred_at.into(), origin.read_at, trace_id);
        }
        let refused = self.try_to_hand_over(ticket, event, alone, &mut span)?;
        // A span that went with its record has its end there.
        if let Some(reason) = &refused {
            let spans = self.sender.publisher.spans();
            let forced = || if had_span { None } else { spans.force(event, origin) };
            if let Some(span) = span.or_else(forced) {
                let topic = self.sender.destinations.known(event.aggregate_type).map_or("", |to| &to.topic);
                spans.refused(span, topic, reason);
            }
        }
        Ok(refused)
    }

    /// Waits for room in the producer's queue; for the event's outcome too, if it is to go alone.
    fn try_to_hand_over(
        &mut self,
        ticket: Ticket,
        event: &Event<'_>,
        alone: bool,
        span: &mut Option<PublishSpan>,
    ) -> Result<Option<String>, Stop> {
        let Sender { publisher, outcomes, lease, destinations, lease_needed, .. } = &mut self.sender;
        if !destinations.is_known(event.aggregate_type) {
            self.handle.block_on(destinations.find(event.aggregate_type)).map_err(Stop::Failed)?;
        }
        let to = match destinations.known(event.aggregate_type) {
            Ok(destination) => destination,
            Err(reason) => return Ok(Some(reason.to_owned())),
        };
        let bytes = event.payload.len() + event.aggregate_id.len() + event.headers.len();
        if bytes > to.bytes_max {
            return Ok(Some(format!("it is too large for max.message.bytes of the topic '{}'", to.topic)));
        }
        if alone {
            outcomes.expect_alone(ticket);
        }
        loop {
            if !lease.allows(*lease_needed) {
                return Err(Stop::Closed);
            }
            match publisher.send(to, event, ticket, span) {
                Ok(()) => break,
                Err(SendError::Refused(reason)) => return Ok(Some(reason)),
                Err(SendError::Broken(error)) => return Err(Stop::Failed(Failure::Kafka(error))),
                // Every record in the queue ends within the message time-out, so this does too.
                Err(SendError::QueueFull) => std::thread::sleep(QUEUE_FULL_WAIT),
            }
        }
        if !alone {
            return Ok(None);
        }
        let outcome = outcomes.outcome_alone().ok_or(Stop::Closed)?;
        Ok(outcome.err().map(|code| format!("a broker said: {code}")))
    }
}

fn put(used: &Mutex<Vec<Batch>>, batch: Batch) {
    used.lock().unwrap_or_else(PoisonError::into_inner).push(batch);
}

/// Why the thread ends.
enum Stop {
    /// The session has ended.
    Closed,
    /// The session must end.
    Failed(Failure),
}
