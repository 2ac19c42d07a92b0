//! Following orders till they are Processed, without being a load of its own.
//!
//! While orders are posted, only a sample of them is looked at, the oldest ones, a few at a time: since the pipeline
//! works in order, the younger ones can't be Processed much before. That gives the latencies. Every other order is
//! looked at when the posting is over, oldest first: once, if it is Processed by then.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::future::join_all;
use indicatif::ProgressBar;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time;

use super::SeedArgs;
use super::post::style;
use crate::http::OrdersApi;
use crate::report::{Latencies, Reasons};

/// How often each of the oldest samples is looked at: the resolution of the latencies.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// How many samples are looked at at the same time.
const WINDOW: usize = 8;

/// A sample that is not Processed after this time no longer keeps younger ones from being looked at.
const WINDOW_PATIENCE: Duration = Duration::from_secs(2);

/// How often an order of the rest is looked at that is not Processed yet.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// After so many looks an order of the rest makes room for the next one, and is looked at again at the end.
const LOOKS_IN_A_ROW: u32 = 20;

/// An accepted order that is followed closely.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub id: i64,
    pub accepted: Instant,
}

/// What came of the following.
#[derive(Debug, Default)]
pub(super) struct Followed {
    /// How many were seen Processed.
    pub processed: u64,
    /// Why the others were not.
    pub not_processed: Reasons,
    /// From the first order sent to the last one seen Processed.
    pub took: Duration,
    /// From accepted to seen Processed, of the samples.
    pub latencies: Latencies,
}

/// The following of the samples, under way.
pub(super) struct Following {
    api: OrdersApi,
    sampling: JoinHandle<Watched>,
    /// Set when the posting is over.
    deadline: Arc<OnceLock<Instant>>,
}

/// What is known of the samples when the last of them has left the window.
#[derive(Debug, Default)]
struct Watched {
    processed: u64,
    /// When the last of them was seen Processed.
    last: Option<Instant>,
    latencies: Latencies,
    /// Those that were not Processed in time, or of which nothing could be learned.
    late: Vec<i64>,
}

/// Starts to follow the samples that will come.
pub(super) fn start(api: OrdersApi) -> (UnboundedSender<Sample>, Following) {
    let (sender, samples) = mpsc::unbounded_channel();
    let deadline = Arc::new(OnceLock::new());
    let sampling = tokio::spawn(follow_samples(api.clone(), samples, Arc::clone(&deadline)));
    (sender, Following { api, sampling, deadline })
}

async fn follow_samples(
    api: OrdersApi,
    mut samples: UnboundedReceiver<Sample>,
    deadline: Arc<OnceLock<Instant>>,
) -> Watched {
    let mut watched = Watched::default();
    let mut window: VecDeque<(Sample, Instant)> = VecDeque::new();
    loop {
        while window.len() < WINDOW {
            // Waits for a sample only when there is nothing to look at.
            let next = if window.is_empty() { samples.recv().await } else { samples.try_recv().ok() };
            match next {
                Some(sample) => window.push_back((sample, Instant::now())),
                None if window.is_empty() => return watched,
                None => break,
            }
        }
        let looks = join_all(window.iter().map(|(sample, _)| api.read(sample.id))).await;
        let now = Instant::now();
        let before = window.len();
        for look in looks {
            let Some((sample, since)) = window.pop_front() else { break };
            match look {
                Ok(order) if order.is_processed() => {
                    watched.processed += 1;
                    watched.last = Some(now);
                    watched.latencies.record(now - sample.accepted);
                }
                Ok(order) if order.is_pending() && now - since < WINDOW_PATIENCE => window.push_back((sample, since)),
                _ => watched.late.push(sample.id),
            }
        }
        if deadline.get().is_some_and(|deadline| now >= *deadline) {
            watched.late.extend(window.iter().map(|(sample, _)| sample.id));
            while let Ok(sample) = samples.try_recv() {
                watched.late.push(sample.id);
            }
            return watched;
        }
        if window.len() == before {
            time::sleep(LOOK_INTERVAL).await;
        }
    }
}

impl Following {
    /// Follows the remaining orders too, `--wait` at most. `started` is when the first order was sent.
    pub(super) async fn finish(self, mut rest: Vec<i64>, started: Instant, args: &SeedArgs) -> Result<Followed> {
        let posted = Instant::now();
        let deadline = *self.deadline.get_or_init(|| posted + args.wait);
        let watched = self.sampling.await?;
        rest.extend(&watched.late);
        rest.sort_unstable();
        let bar = ProgressBar::new(watched.processed + rest.len() as u64).with_style(style("processed"));
        bar.inc(watched.processed);
        let queue = rest.into_iter().map(|id| (id, Seen::Never)).collect();
        let sweep = Sweep { api: self.api, queue: Arc::new(Mutex::new(queue)), deadline, bar };
        let mut lookers: JoinSet<Swept> = (0..args.concurrency).map(|_| sweep.clone().look()).collect();

        let mut last = watched.last;
        let mut followed =
            Followed { processed: watched.processed, latencies: watched.latencies, ..Followed::default() };
        while let Some(swept) = lookers.join_next().await {
            let swept = swept?;
            followed.processed += swept.processed;
            followed.not_processed.merge(swept.not_processed);
            last = last.max(swept.last);
        }
        followed.took = last.unwrap_or(posted).max(posted) - started;
        sweep.bar.finish_and_clear();
        Ok(followed)
    }
}

/// The looking at the rest, shared by those who do it.
#[derive(Clone)]
struct Sweep {
    api: OrdersApi,
    queue: Arc<Mutex<VecDeque<(i64, Seen)>>>,
    deadline: Instant,
    bar: ProgressBar,
}

/// Whether an order was seen Pending before. Only then is the time when it is seen Processed about the time when it
/// became so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Never,
    Pending,
}

#[derive(Debug, Default)]
struct Swept {
    processed: u64,
    not_processed: Reasons,
    /// When an order was last seen to become Processed.
    last: Option<Instant>,
}

enum Look {
    Processed(Seen),
    NotYet(String),
    Never(String),
}

impl Sweep {
    async fn look(self) -> Swept {
        let mut swept = Swept::default();
        while let Some((id, seen)) = self.pop() {
            match self.look_at(id, seen).await {
                Look::Processed(seen) => {
                    swept.processed += 1;
                    if seen == Seen::Pending {
                        swept.last = Some(Instant::now());
                    }
                    self.bar.inc(1);
                }
                Look::NotYet(_) if Instant::now() < self.deadline => self.push(id),
                Look::NotYet(reason) | Look::Never(reason) => swept.not_processed.count(reason),
            }
        }
        swept
    }

    /// Looks at one order several times, unless it is Processed; only once when time is up.
    async fn look_at(&self, id: i64, mut seen: Seen) -> Look {
        let mut looks = 0;
        loop {
            looks += 1;
            let reason = match self.api.read(id).await {
                Ok(order) if order.is_processed() => return Look::Processed(seen),
                Ok(order) if order.is_pending() => "still Pending".to_owned(),
                Ok(order) => return Look::Never(format!("became {}", order.status)),
                Err(refusal) => refusal.0,
            };
            seen = Seen::Pending;
            if looks >= LOOKS_IN_A_ROW || Instant::now() >= self.deadline {
                return Look::NotYet(reason);
            }
            time::sleep(RETRY_INTERVAL).await;
        }
    }

    fn pop(&self) -> Option<(i64, Seen)> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn push(&self, id: i64) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back((id, Seen::Pending));
    }
}
