//! A consumer of the test's own: what arrives on every topic, when, how often, and in which order.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde::Deserialize;

use super::writer::Written;

/// Between two looks for new topics.
const LOOK_INTERVAL: Duration = Duration::from_millis(300);

/// Microseconds since 1970.
pub(crate) fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// What came of one key.
#[derive(Debug, Default)]
struct KeyRecords {
    /// All versions up to this one have come.
    without_gap: i64,
    /// Those beyond it that have come.
    ahead: BTreeSet<i64>,
}

impl KeyRecords {
    fn highest(&self) -> i64 {
        self.ahead.last().copied().unwrap_or(self.without_gap)
    }

    /// Takes in a record's version. Returns whether it is the event's first one.
    fn take(&mut self, version: i64) -> bool {
        if version <= self.without_gap || !self.ahead.insert(version) {
            return false;
        }
        while self.ahead.remove(&(self.without_gap + 1)) {
            self.without_gap += 1;
        }
        true
    }

    /// How many of the versions up to `highest` have not come.
    fn missing(&self, highest: i64) -> i64 {
        let behind_gap = self.ahead.range(..=highest).count();
        (highest - self.without_gap).max(0) - i64::try_from(behind_gap).unwrap_or(0)
    }
}

/// What came on one topic.
#[derive(Debug, Default)]
struct TopicRecords {
    keys: HashMap<String, KeyRecords>,
    out_of_order: u64,
    /// Of each event, when it was written and when it first arrived.
    arrivals: Vec<(i64, i64)>,
    /// Of each repeat, when its event was written.
    repeats: Vec<i64>,
}

/// What is known of one topic's events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Different events that arrived.
    pub(crate) events: u64,
    /// Records of events that had arrived before.
    pub(crate) repeats: u64,
    /// Milliseconds from writing to arrival.
    pub(crate) p50_ms: i64,
    pub(crate) p99_ms: i64,
    pub(crate) max_ms: i64,
}

impl Figures {
    /// Whether not more than one record in a hundred was a repeat.
    pub(crate) fn has_few_repeats(&self) -> bool {
        self.repeats * 100 <= self.events
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { events, repeats, p50_ms, p99_ms, max_ms } = self;
        write!(formatter, "{events} events, {repeats} repeats, p50 {p50_ms} ms, p99 {p99_ms} ms, max {max_ms} ms")
    }
}

type Topics = Arc<Mutex<HashMap<String, TopicRecords>>>;

/// Reads all topics from their beginning until it is dropped.
pub(crate) struct Reader {
    topics: Topics,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Reader {
    /// Reads the topics that are there, and those that come.
    pub(crate) fn start(brokers: &str) -> Result<Self> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers)
            .set("client.id", "test-reader")
            .set("group.id", "test-reader")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("fetch.wait.max.ms", "20")
            .set("fetch.error.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "250")
            .set("topic.metadata.refresh.interval.ms", "1000");
        let (looker, consumer): (BaseConsumer, BaseConsumer) = (config.create()?, config.create()?);
        let (topics, stop) = (Topics::default(), Arc::new(AtomicBool::new(false)));
        let (found, finds) = mpsc::channel();
        let (stopped, all) = (Arc::clone(&stop), Arc::clone(&topics));
        let threads = vec![
            std::thread::spawn({
                let stopped = Arc::clone(&stop);
                move || look(&looker, &found, &stopped)
            }),
            std::thread::spawn(move || read(&consumer, &finds, &all, &stopped)),
        ];
        Ok(Self { topics, stop, threads })
    }

    fn topics(&self) -> MutexGuard<'_, HashMap<String, TopicRecords>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The figures of a topic's events that were written in this time, in microseconds since 1970.
    pub(crate) fn figures(&self, topic: &str, written: Range<i64>) -> Figures {
        let topics = self.topics();
        let Some(of_topic) = topics.get(topic) else { return Figures::default() };
        let arrivals = of_topic.arrivals.iter().filter(|(at, _)| written.contains(at));
        let mut millis: Vec<i64> = arrivals.map(|(written, arrived)| (arrived - written) / 1_000).collect();
        millis.sort_unstable();
        let at = |percent: usize| millis.get((millis.len() * percent / 100).min(millis.len().saturating_sub(1)));
        Figures {
            events: millis.len() as u64,
            repeats: of_topic.repeats.iter().filter(|at| written.contains(at)).count() as u64,
            p50_ms: at(50).copied().unwrap_or(0),
            p99_ms: at(99).copied().unwrap_or(0),
            max_ms: millis.last().copied().unwrap_or(0),
        }
    }

    /// How many different events have arrived on a topic since this time, in microseconds since 1970.
    pub(crate) fn arrived_since(&self, topic: &str, since: i64) -> usize {
        let topics = self.topics();
        topics.get(topic).map_or(0, |topic| topic.arrivals.iter().filter(|(_, arrived)| *arrived >= since).count())
    }

    /// How many events of these have not arrived. The topic of a type is its name and an "s".
    pub(crate) fn missing(&self, written: &Written) -> i64 {
        let topics = self.topics();
        let mut missing = 0;
        for (of_type, keys) in written {
            let topic = topics.get(&format!("{of_type}s"));
            for (key, highest) in keys {
                let records = topic.and_then(|topic| topic.keys.get(key));
                missing += records.map_or(*highest, |records| records.missing(*highest));
            }
        }
        missing
    }

    /// First appearances that came after one of a higher version of their key, on all topics.
    pub(crate) fn out_of_order(&self) -> u64 {
        self.topics().values().map(|topic| topic.out_of_order).sum()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Finds partitions.
fn look(client: &BaseConsumer, found: &mpsc::Sender<(String, i32)>, stop: &AtomicBool) {
    let mut known = HashSet::new();
    while !stop.load(Ordering::SeqCst) {
        if let Ok(metadata) = client.fetch_metadata(None, Duration::from_secs(1)) {
            for topic in metadata.topics().iter().filter(|topic| !topic.name().starts_with("__")) {
                for partition in topic.partitions() {
                    let partition = (topic.name().to_owned(), partition.id());
                    if known.insert(partition.clone()) && found.send(partition).is_err() {
                        return;
                    }
                }
            }
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

fn read(consumer: &BaseConsumer, finds: &mpsc::Receiver<(String, i32)>, topics: &Topics, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        let mut more = TopicPartitionList::new();
        for (topic, partition) in finds.try_iter() {
            more.add_partition_offset(&topic, partition, Offset::Beginning).expect("an offset");
        }
        if more.count() > 0 {
            consumer.incremental_assign(&more).expect("partitions that are not assigned yet");
        }
        // Errors are those of brokers that are down; the client goes on by itself.
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(20)) {
            let arrived = now_us();
            let mut topics = topics.lock().unwrap_or_else(PoisonError::into_inner);
            let topic = topics.entry(message.topic().to_owned()).or_default();
            record(topic, &message, arrived).expect("a record of this test's writer");
        }
    }
}

#[derive(Deserialize)]
struct Payload {
    at: i64,
}

fn record(topic: &mut TopicRecords, message: &BorrowedMessage<'_>, arrived: i64) -> Result<()> {
    let key = str::from_utf8(message.key().context("a key")?)?;
    let headers = message.headers().context("headers")?;
    let version = headers.iter().find(|header| header.key == "aggregate_version").and_then(|header| header.value);
    let version: i64 = str::from_utf8(version.context("a version")?)?.parse()?;
    let Payload { at } = serde_json::from_slice(message.payload().context("a payload")?)?;
    let records = topic.keys.entry(key.to_owned()).or_default();
    let highest = records.highest();
    if !records.take(version) {
        topic.repeats.push(at);
        return Ok(());
    }
    if version < highest {
        topic.out_of_order += 1;
    }
    topic.arrivals.push((at, arrived));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_repeats_and_gaps() {
        let mut records = KeyRecords::default();
        let first: Vec<bool> = [1, 3, 3, 5, 1, 2].into_iter().map(|version| records.take(version)).collect();
        assert_eq!(first, [true, true, false, true, false, true]);
        assert_eq!((records.without_gap, records.highest()), (3, 5));
        assert_eq!([2, 3, 4, 5, 7].map(|highest| records.missing(highest)), [0, 0, 1, 1, 3]);
    }
}
