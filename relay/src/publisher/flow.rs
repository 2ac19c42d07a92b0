//! What is in flight to each partition, and how much may be.
//!
//! **A producer introduces itself.** A broker takes any first sequence number from a producer that it does not know. If it refuses the
//! first request to a partition (the partition is being made, or its leader moves) and takes the second one, which is on its way by then,
//! the first is lost, and librdkafka reports it as delivered (KAFKA-15591). So one record goes first, alone, and the next ones follow when
//! it is acknowledged; and again after a rest, since brokers forget producers that are idle (`producer.id.expiration.ms`).
//!
//! **An acknowledgement is the broker's own word.** Reports without an offset are librdkafka's conclusions. After one, nothing that is
//! reported of that partition is believed: of a batch that was concluded to be there, only the first report is without an offset.
//!
//! **What is in flight adapts to what brokers take in time.** Records that wait longer than the message time-out are given up and
//! published again. A broker that throttles would never be done with a full queue. So there is a window of bytes: it shrinks to an eighth
//! when an acknowledgement takes long, and is doubled when it is what limits, up to a part of what was acknowledged in the last seconds.
//!
//! **A broker that throttles makes a pause after each request**, and there is one for each partition. However few bytes they have, the last of
//! several requests waits for all of those pauses. So when nothing at all is acknowledged for long, records go out in bursts: the next one
//! when nothing is in flight any more, and each to fewer partitions while bursts take long. It may be one partition alone that is silent: so
//! one record follows each burst that takes long, and if it is acknowledged at once, all is as before.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::partition::partition_of;
use crate::lanes::ticket::FLOWS;

/// After so long without an acknowledgement, a producer introduces itself to a partition again.
const REST: Duration = Duration::from_millis(500);

/// Bytes that may be in flight: at first, at the least, and at the most.
pub(crate) const WINDOW_FIRST: u64 = 128 * 1024;
const WINDOW_MIN: u64 = 32 * 1024;
const WINDOW_MAX: u64 = 4 * 1024 * 1024;

/// Above the first window, not more may be in flight than this part of what was acknowledged in the last ten seconds.
///
/// A broker that throttles lets ten seconds' worth of bytes pass at full speed. Then it is silent after each request, for as long as all
/// that is beyond them would have taken. Twice what may be in flight at that moment is beyond them, so each of the requests that it is in waits
/// for 10 s / 32 at the broker's pace. Five are on their way at most, which together is well within the message time-out. A broker that takes a hundred
/// megabytes a second, and needs ten milliseconds for an acknowledgement, soon gets more than is limited by the window.
const PART_OF_RECENT: u64 = 64;
const RECENT_MS: u32 = 10_000;

/// Between two samples of what was acknowledged.
const SAMPLE_MS: u32 = 500;

/// Looks that are remembered: one each 50 ms, so some seconds.
const MOMENTS_KEPT: usize = 120;

/// An acknowledgement that takes longer than this part of the message time-out shrinks the window.
const LONG: u32 = 8;

/// So much smaller it is then.
const SHRINK: u64 = 8;

/// What has been acknowledged, as the thread writes it that hears of it.
#[derive(Debug)]
pub(crate) struct Flows {
    begun: Instant,
    bytes: AtomicU64,
    /// When the last acknowledgement came, and in how many different milliseconds some did.
    last_ms: AtomicU32,
    moments: AtomicU32,
    /// Bytes that may be in flight, for the producer after this one to begin with.
    window: AtomicU64,
    places: Box<[Heard]>,
}

#[derive(Debug, Default)]
struct Heard {
    records: AtomicU64,
    last_ms: AtomicU32,
    doubted: AtomicBool,
}

impl Flows {
    fn new(window: u64) -> Self {
        let places = (0..FLOWS).map(|_| Heard::default()).collect();
        Self {
            begun: Instant::now(),
            bytes: AtomicU64::new(0),
            last_ms: AtomicU32::new(0),
            moments: AtomicU32::new(0),
            window: AtomicU64::new(window),
            places,
        }
    }

    /// Bytes that may be in flight now.
    pub(crate) fn window(&self) -> u64 {
        self.window.load(Ordering::Relaxed)
    }

    fn now_ms(&self) -> u32 {
        u32::try_from(self.begun.elapsed().as_millis()).unwrap_or(u32::MAX)
    }

    fn at(&self, flow: usize) -> &Heard {
        &self.places[flow % FLOWS]
    }

    /// A record was reported as delivered at this offset. Returns whether a broker has said so.
    pub(crate) fn acknowledge(&self, flow: usize, offset: i64, bytes: usize) -> bool {
        let heard = self.at(flow);
        if offset < 0 {
            heard.doubted.store(true, Ordering::Relaxed);
        }
        if heard.doubted.load(Ordering::Relaxed) {
            return false;
        }
        let now = self.now_ms();
        heard.last_ms.store(now, Ordering::Relaxed);
        // Only one thread writes these.
        if self.last_ms.load(Ordering::Relaxed) != now {
            self.last_ms.store(now, Ordering::Relaxed);
            self.moments.fetch_add(1, Ordering::Relaxed);
        }
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        heard.records.fetch_add(1, Ordering::Release);
        true
    }
}

/// What was sent to one partition, as the sender knows it.
#[derive(Debug, Default)]
struct Sent {
    records: u64,
    /// So many must be acknowledged before more than one may be in flight.
    introduced_with: u64,
    /// One that is in flight: its number, and when it was sent.
    probe: Option<(u64, u32)>,
}

/// A topic of which a record is in flight for long.
#[derive(Debug)]
pub(crate) struct Slow {
    /// Its name.
    pub topic: String,
    /// For how long.
    pub time: Duration,
    /// In how many different milliseconds brokers have acknowledged other records meanwhile.
    pub others: u32,
    /// For how long no broker has acknowledged anything.
    pub silence: Duration,
}

fn after(now_ms: u32, time: Duration) -> u32 {
    now_ms.saturating_add(u32::try_from(time.as_millis()).unwrap_or(u32::MAX))
}

/// Decides what may be sent. One for each producer.
#[derive(Debug)]
pub(crate) struct FlowControl {
    flows: Arc<Flows>,
    /// By flow.
    sent: Vec<Sent>,
    topics: HashMap<String, Range<usize>>,
    bytes: u64,
    shrunk_at_ms: u32,
    /// By time, how many bytes were acknowledged until then: of the last ten seconds, and one before them.
    samples: VecDeque<(u32, u64)>,
    long: Duration,
    /// By time, in how many milliseconds acknowledgements had come until then.
    moments: VecDeque<(u32, u32)>,
    /// One record at a time goes to each partition.
    one_at_a_time: bool,
    /// After an acknowledgement that took long, until one is quick.
    burst: Option<Burst>,
}

/// Records that go out together, when nothing else is in flight.
#[derive(Debug)]
struct Burst {
    /// To how many partitions the next one may go.
    flows_max: usize,
    /// To which it has gone so far.
    flows: Vec<usize>,
    /// Bytes that may follow.
    left: u64,
    begun_ms: u32,
    /// When one more record may follow, wherever it goes.
    next_ms: u32,
}

impl FlowControl {
    /// Of a producer whose records are given up after `message_timeout`.
    pub(crate) fn new(message_timeout: Duration) -> Self {
        Self {
            flows: Arc::new(Flows::new(WINDOW_FIRST)),
            sent: Vec::new(),
            topics: HashMap::new(),
            bytes: 0,
            shrunk_at_ms: 0,
            samples: VecDeque::from([(0, 0)]),
            long: message_timeout / LONG,
            moments: VecDeque::new(),
            one_at_a_time: false,
            burst: None,
        }
    }

    /// At first so many bytes may be in flight.
    pub(crate) fn begin_with(self, window: u64) -> Self {
        self.set_window(window);
        self
    }

    /// For a producer that goes on after a refused record. librdkafka does so under a new producer id, which no broker knows: then each
    /// record has to introduce it.
    pub(crate) const fn one_at_a_time(mut self, one_at_a_time: bool) -> Self {
        self.one_at_a_time = one_at_a_time;
        self
    }

    /// What the thread that hears outcomes writes to.
    pub(crate) fn flows(&self) -> Arc<Flows> {
        Arc::clone(&self.flows)
    }

    /// The flows of a topic's partitions.
    pub(crate) fn of_topic(&mut self, topic: &str, partitions: usize) -> Range<usize> {
        if let Some(range) = self.topics.get(topic).filter(|range| range.len() >= partitions) {
            return range.clone();
        }
        let range = self.sent.len()..self.sent.len() + partitions.max(1);
        self.sent.resize_with(range.end, Sent::default);
        self.topics.insert(topic.to_owned(), range.clone());
        range
    }

    /// The flow of a key among those of its topic.
    pub(crate) fn of_key(range: &Range<usize>, key: &str) -> usize {
        range.start + partition_of(key.as_bytes(), range.len())
    }

    fn acknowledged(&self, flow: usize) -> u64 {
        self.flows.at(flow).records.load(Ordering::Acquire)
    }

    /// Whether a record may be sent to this partition now.
    pub(crate) fn is_open(&mut self, flow: usize) -> bool {
        let acknowledged = self.acknowledged(flow);
        let rested = |flows: &Flows| {
            let last = flows.at(flow).last_ms.load(Ordering::Relaxed);
            acknowledged == 0 || u128::from(flows.now_ms().saturating_sub(last)) >= REST.as_millis()
        };
        let Some(sent) = self.sent.get_mut(flow) else { return true };
        if sent.records <= acknowledged {
            if rested(&self.flows) {
                sent.introduced_with = sent.records + 1;
            }
            return true;
        }
        !self.one_at_a_time && acknowledged >= sent.introduced_with
    }

    /// Whether so many bytes more may be in flight, to this partition.
    pub(crate) fn has_room(&mut self, flow: usize, bytes: usize) -> bool {
        let in_flight = self.bytes_in_flight();
        if in_flight == 0 {
            // After a rest, what was acknowledged before says nothing.
            let most = self.window_max();
            self.set_window(self.flows.window().min(most));
            self.next_burst();
            return true;
        }
        let fits = match &self.burst {
            None => in_flight + bytes as u64 <= self.flows.window(),
            Some(burst) => {
                let is_of_it = burst.flows.contains(&flow) || burst.flows.len() < burst.flows_max;
                (is_of_it && bytes as u64 <= burst.left) || self.flows.now_ms() >= burst.next_ms
            }
        };
        if !fits {
            self.adapt();
        }
        fits
    }

    /// The last burst, if there was one, is acknowledged: the next one may begin, to half as many partitions if that took long.
    fn next_burst(&mut self) {
        let (now, last) = (self.flows.now_ms(), self.flows.last_ms.load(Ordering::Relaxed));
        let (window, long) = (self.flows.window(), self.long * 2);
        if let Some(burst) = &mut self.burst {
            if Duration::from_millis(last.saturating_sub(burst.begun_ms).into()) > long {
                burst.flows_max = (burst.flows.len() / 2).max(1);
            }
            burst.flows.clear();
            (burst.left, burst.begun_ms, burst.next_ms) = (window, now, after(now, self.long));
        }
    }

    fn bytes_in_flight(&self) -> u64 {
        self.bytes.saturating_sub(self.flows.bytes.load(Ordering::Relaxed))
    }

    /// A record was handed to the producer.
    pub(crate) fn sent(&mut self, flow: usize, bytes: usize) {
        self.bytes += bytes as u64;
        if let Some(burst) = &mut self.burst {
            let now = self.flows.now_ms();
            burst.left = burst.left.saturating_sub(bytes as u64);
            if now >= burst.next_ms {
                // Once: a request for each pause would be more than the pauses let pass.
                burst.next_ms = u32::MAX;
            } else if !burst.flows.contains(&flow) {
                burst.flows.push(flow);
            }
        }
        let acknowledged = self.acknowledged(flow);
        let Some(sent) = self.sent.get_mut(flow) else { return };
        sent.records += 1;
        match sent.probe {
            None => sent.probe = Some((sent.records, self.flows.now_ms())),
            Some((number, sent_ms)) if acknowledged >= number => {
                sent.probe = None;
                self.took(self.flows.at(flow).last_ms.load(Ordering::Relaxed).saturating_sub(sent_ms));
            }
            Some(_) => {}
        }
    }

    /// The last record that was handed over was sent alone, and a broker has refused it: it is in flight no more.
    pub(crate) fn refused(&mut self, flow: usize, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes as u64);
        let Some(sent) = self.sent.get_mut(flow) else { return };
        sent.records = sent.records.saturating_sub(1);
        sent.probe = sent.probe.filter(|(number, _)| *number <= sent.records);
    }

    /// An acknowledgement took so long. One that comes after the window was shrunk, but was sent before, says nothing new.
    fn took(&mut self, ms: u32) {
        let now = self.flows.now_ms();
        if Duration::from_millis(ms.into()) > self.long {
            if now.saturating_sub(self.shrunk_at_ms) >= ms {
                self.set_window((self.flows.window() / SHRINK).max(WINDOW_MIN));
                self.shrunk_at_ms = now;
            }
            let silence = now.saturating_sub(self.flows.last_ms.load(Ordering::Relaxed));
            if Duration::from_millis(silence.into()) > self.long && self.burst.is_none() {
                // What is in flight was no burst, but is waited for like one.
                let (flows_max, next_ms) = (usize::MAX, after(now, self.long));
                self.burst = Some(Burst { flows_max, flows: Vec::new(), left: 0, begun_ms: now, next_ms });
            }
        } else if Duration::from_millis(ms.into()) < self.long / 4 {
            self.burst = None;
            if self.bytes_in_flight() * 2 > self.flows.window() {
                let most = self.window_max();
                self.set_window((self.flows.window() * 2).min(most));
            }
        }
    }

    /// How many bytes may be in flight by what was acknowledged lately.
    fn window_max(&mut self) -> u64 {
        let (now, acknowledged) = (self.flows.now_ms(), self.flows.bytes.load(Ordering::Relaxed));
        if self.samples.back().is_none_or(|(at, _)| now.saturating_sub(*at) >= SAMPLE_MS) {
            self.samples.push_back((now, acknowledged));
        }
        while self.samples.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= RECENT_MS) {
            self.samples.pop_front();
        }
        let before = self.samples.front().map_or(0, |(_, bytes)| *bytes);
        (acknowledged.saturating_sub(before) / PART_OF_RECENT).clamp(WINDOW_FIRST, WINDOW_MAX)
    }

    fn set_window(&self, bytes: u64) {
        self.flows.window.store(bytes, Ordering::Relaxed);
    }

    /// While nothing more may be sent, looks at what is in flight: one that has taken long counts before it is acknowledged.
    fn adapt(&mut self) {
        let now = self.flows.now_ms();
        for flow in 0..self.sent.len() {
            let acknowledged = self.acknowledged(flow);
            let Some(sent) = self.sent.get_mut(flow) else { continue };
            if let Some((number, sent_ms)) = sent.probe {
                if acknowledged >= number {
                    sent.probe = None;
                    self.took(self.flows.at(flow).last_ms.load(Ordering::Relaxed).saturating_sub(sent_ms));
                } else if Duration::from_millis(now.saturating_sub(sent_ms).into()) > self.long {
                    self.took(now.saturating_sub(sent_ms));
                }
            }
        }
    }

    /// Whether nothing is in flight to these partitions.
    pub(crate) fn is_idle(&self, mut flows: impl Iterator<Item = usize>) -> bool {
        flows.all(|flow| self.sent.get(flow).is_none_or(|sent| sent.records <= self.acknowledged(flow)))
    }

    /// All flows.
    pub(crate) fn all(&self) -> Range<usize> {
        0..self.sent.len()
    }

    /// Topics of which a record has been in flight for longer than `limit`.
    pub(crate) fn slow_topics(&mut self, limit: Duration) -> Vec<Slow> {
        let now = self.flows.now_ms();
        let moments = self.flows.moments.load(Ordering::Relaxed);
        self.moments.push_back((now, moments));
        while self.moments.len() > MOMENTS_KEPT {
            self.moments.pop_front();
        }
        let mut slow = Vec::new();
        for (topic, range) in &self.topics {
            let mut longest = 0;
            for flow in range.clone() {
                let acknowledged = self.flows.at(flow).records.load(Ordering::Acquire);
                let Some(sent) = self.sent.get_mut(flow) else { continue };
                match sent.probe {
                    Some((number, sent_ms)) if acknowledged < number => {
                        longest = longest.max(now.saturating_sub(sent_ms));
                    }
                    // What was sent after it may be in flight: it is as old as this look at the most.
                    _ => sent.probe = (sent.records > acknowledged).then_some((sent.records, now)),
                }
            }
            let time = Duration::from_millis(longest.into());
            if time > limit {
                let since = self.moments.iter().find(|(ms, _)| *ms >= now.saturating_sub(longest));
                let others = since.map_or(0, |(_, then)| moments.saturating_sub(*then));
                let silence = now.saturating_sub(self.flows.last_ms.load(Ordering::Relaxed));
                slow.push(Slow { topic: topic.clone(), time, others, silence: Duration::from_millis(silence.into()) });
            }
        }
        slow
    }

    /// Whether a broker has acknowledged a record of this topic within the last `time`.
    pub(crate) fn flows_to(&self, topic: &str, time: Duration) -> bool {
        self.topics.get(topic).is_some_and(|range| self.any_flows(range, time))
    }

    fn any_flows(&self, range: &Range<usize>, time: Duration) -> bool {
        let now = self.flows.now_ms();
        let recently = |flow: usize| {
            let heard = self.flows.at(flow);
            let since = now.saturating_sub(heard.last_ms.load(Ordering::Relaxed));
            heard.records.load(Ordering::Relaxed) > 0 && u128::from(since) < time.as_millis()
        };
        range.clone().any(recently)
    }

    /// Whether nothing is in flight to other topics than these.
    pub(crate) fn others_are_idle(&self, but: &[String]) -> bool {
        let mut others = self.topics.iter().filter(|(topic, _)| !but.contains(topic));
        others.all(|(_, range)| self.is_idle(range.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_producer_introduces_itself_with_one_record_and_again_after_a_rest() {
        let mut control = FlowControl::new(Duration::from_secs(5));
        let range = control.of_topic("t", 2);
        let (flow, flows) = (range.start, control.flows());
        assert!(control.is_open(flow));
        control.sent(flow, 10);
        assert!(!control.is_open(flow) && control.is_open(range.start + 1));
        assert!(flows.acknowledge(flow, 0, 10));
        for _ in 0..3 {
            assert!(control.is_open(flow), "it is known now");
            control.sent(flow, 10);
        }
        assert!(!control.is_idle(control.all()));
        for offset in 1..4 {
            flows.acknowledge(flow, offset, 10);
        }
        assert!(control.is_idle(control.all()));
        std::thread::sleep(REST);
        assert!(control.is_open(flow));
        control.sent(flow, 10);
        assert!(!control.is_open(flow), "the broker may have forgotten it");
    }

    #[test]
    fn a_record_that_is_refused_alone_is_in_flight_no_more() {
        let mut control = FlowControl::new(Duration::from_secs(5)).one_at_a_time(true);
        let flow = control.of_topic("t", 1).start;
        assert!(control.is_open(flow));
        control.sent(flow, 10);
        assert!(!control.is_open(flow));
        control.refused(flow, 10);
        assert!(control.is_open(flow) && control.is_idle(control.all()));
        assert_eq!(control.bytes_in_flight(), 0);
        assert!(control.slow_topics(Duration::ZERO).is_empty(), "nothing of it is waited for");
        for offset in 0..3 {
            control.sent(flow, 10);
            assert!(!control.is_open(flow), "the producer has a new id");
            assert!(control.flows().acknowledge(flow, offset, 10));
            assert!(control.is_open(flow));
        }
    }

    #[test]
    fn a_report_without_an_offset_is_no_acknowledgement_nor_is_any_after_it() {
        let flows = Flows::new(WINDOW_FIRST);
        assert!(flows.acknowledge(3, 7, 1));
        assert!(!flows.acknowledge(3, -1001, 1));
        assert!(!flows.acknowledge(3, 8, 1), "the rest of a batch that was concluded to be there");
        assert!(flows.acknowledge(4, 0, 1));
    }

    #[test]
    fn the_window_grows_to_a_part_of_what_was_acknowledged_lately() {
        let mut control = FlowControl::new(Duration::from_secs(5));
        let (flow, flows) = (control.of_topic("t", 1).start, control.flows());
        let send = |control: &mut FlowControl, windows: u64| {
            for offset in 0..windows.try_into().unwrap() {
                let bytes = usize::try_from(flows.window()).unwrap();
                // The second one ends the first one's probe, with as much in flight as may be.
                control.sent(flow, 0);
                flows.acknowledge(flow, offset, 0);
                control.sent(flow, bytes);
                flows.acknowledge(flow, offset, bytes);
            }
        };
        send(&mut control, 7);
        assert_eq!(flows.window(), WINDOW_FIRST, "less than so many windows were acknowledged");
        send(&mut control, 300);
        assert_eq!(flows.window(), WINDOW_MAX);
        control.samples = VecDeque::from([(0, flows.bytes.load(Ordering::Relaxed))]);
        assert!(control.has_room(flow, 1));
        assert_eq!(flows.window(), WINDOW_FIRST, "nothing was acknowledged lately");
    }

    #[test]
    fn the_window_shrinks_when_brokers_take_long() {
        let mut control = FlowControl::new(Duration::from_millis(80));
        let flow = control.of_topic("t", 1).start;
        let half = usize::try_from(WINDOW_FIRST / 2).unwrap();
        control.sent(flow, half);
        assert!(control.has_room(flow, half) && !control.has_room(flow, half + 1));
        std::thread::sleep(Duration::from_millis(30));
        assert!(!control.has_room(flow, half + 1), "that was long: the window shrinks");
        assert!(!control.has_room(flow, half));
        assert_eq!(control.flows().window(), (WINDOW_FIRST / SHRINK).max(WINDOW_MIN));
        assert_eq!(control.slow_topics(Duration::from_millis(20)).len(), 1);
        assert!(!control.flows_to("t", Duration::from_secs(1)));
        assert!(control.others_are_idle(&["t".to_owned()]) && !control.others_are_idle(&[]));
    }
    #[test]
    fn a_broker_that_takes_long_gets_bursts_to_fewer_and_fewer_partitions() {
        let mut control = FlowControl::new(Duration::from_millis(80));
        let (flows, range) = (control.flows(), control.of_topic("t", 8));
        let kib = 1_024;
        for flow in range.clone() {
            assert!(control.has_room(flow, kib));
            control.sent(flow, kib);
        }
        std::thread::sleep(Duration::from_millis(30));
        control.adapt();
        assert!(!control.has_room(range.start, kib), "nothing follows");
        let send = |control: &mut FlowControl, flow: usize| {
            let goes = control.has_room(flow, kib);
            if goes {
                control.sent(flow, kib);
            }
            goes
        };
        let acknowledge_all = |control: &FlowControl| {
            for flow in range.clone() {
                for offset in control.acknowledged(flow)..control.sent[flow].records {
                    flows.acknowledge(flow, offset.try_into().unwrap(), kib);
                }
            }
        };
        for partitions in [8, 4, 2, 1, 1] {
            acknowledge_all(&control);
            let of_it = range.clone().filter(|flow| send(&mut control, *flow)).count();
            assert_eq!(of_it, partitions);
            assert!(send(&mut control, range.start), "more of the same partition");
            std::thread::sleep(Duration::from_millis(30));
            if partitions < 8 {
                let other = range.end - 1;
                assert!(send(&mut control, other), "in case it is one partition alone");
                std::thread::sleep(Duration::from_millis(30));
                assert!(!send(&mut control, other), "one is enough");
            }
        }
        acknowledge_all(&control);
        assert!(control.has_room(range.start, kib));
        // The first of these ends a look that was long, the second begins one, and the third ends that.
        for _ in 0..3 {
            assert!(send(&mut control, range.start));
            acknowledge_all(&control);
        }
        control.sent(range.start, kib);
        assert!(control.has_room(range.start + 1, kib), "as before");
    }
}
