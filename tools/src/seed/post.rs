//! Posting: closed loop (a connection sends when it is free) or open loop (an order is sent when it is due).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;

use super::SeedArgs;
use super::follow::Sample;
use crate::http::{NewOrder, OrdersApi};
use crate::report::{Latencies, Reasons};
use crate::workload::Workload;

/// At most one order in this time is followed closely, so that looking does not slow down what is looked at.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(10);

/// What came of the posting.
#[derive(Debug)]
pub(super) struct Posted {
    /// When the first order was sent.
    pub started: Instant,
    /// From then to the last answer.
    pub took: Duration,
    /// How many were answered with 201.
    pub accepted: u64,
    /// Those of them that are not followed closely.
    pub unsampled: Vec<i64>,
    /// Why the others failed.
    pub failed: Reasons,
    /// From sent, or due, to answered, of the accepted ones.
    pub latencies: Latencies,
}

/// What one connection needs.
#[derive(Clone)]
pub(super) struct Poster {
    api: OrdersApi,
    jobs: Jobs,
    concurrency: u16,
    verbose: bool,
    bar: ProgressBar,
    last_sample: Arc<Mutex<Option<Instant>>>,
}

/// Where the next order comes from, and when it is or was due.
#[derive(Clone)]
enum Jobs {
    Closed(Arc<Mutex<std::iter::Take<Workload>>>),
    Open { queue: Arc<tokio::sync::Mutex<UnboundedReceiver<(NewOrder, Instant)>>> },
}

impl Jobs {
    fn new(args: &SeedArgs, workload: Workload) -> Self {
        let orders = workload.take(usize::try_from(args.count).unwrap_or(usize::MAX));
        let Some(rate) = args.rate else {
            return Self::Closed(Arc::new(Mutex::new(orders)));
        };
        let (sender, queue) = mpsc::unbounded_channel();
        // A thread of its own: the runtime's timers are a millisecond coarse, which would show in the latencies.
        std::thread::spawn(move || pace(orders, rate, &sender));
        Self::Open { queue: Arc::new(tokio::sync::Mutex::new(queue)) }
    }

    async fn next(&self) -> Option<(NewOrder, Instant)> {
        match self {
            Self::Closed(orders) => {
                let order = orders.lock().unwrap_or_else(PoisonError::into_inner).next()?;
                Some((order, Instant::now()))
            }
            Self::Open { queue } => queue.lock().await.recv().await,
        }
    }
}

/// Hands out each order when it is due. The queue may grow while the server stalls; that is what an open loop is for.
fn pace(orders: impl Iterator<Item = NewOrder>, rate: f64, queue: &UnboundedSender<(NewOrder, Instant)>) {
    let started = Instant::now();
    let mut number = 0.0;
    for order in orders {
        let due = started + Duration::from_secs_f64(number / rate);
        number += 1.0;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if queue.send((order, due)).is_err() {
            return;
        }
    }
}

impl Poster {
    pub(super) fn new(api: OrdersApi, args: &SeedArgs, workload: Workload) -> Self {
        let bar = ProgressBar::new(args.count).with_style(style("posted"));
        Self {
            api,
            jobs: Jobs::new(args, workload),
            concurrency: args.concurrency,
            verbose: args.verbose,
            bar,
            last_sample: Arc::default(),
        }
    }

    /// Posts everything; some of the accepted orders go to `samples` at once, to be followed closely.
    pub(super) async fn post_all(self, samples: UnboundedSender<Sample>) -> Result<Posted> {
        let started = Instant::now();
        let mut connections: JoinSet<Posted> =
            (0..self.concurrency).map(|_| self.clone().connection(started, samples.clone())).collect();
        drop(samples);
        let mut all = Posted::new(started);
        while let Some(part) = connections.join_next().await {
            all.merge(part?);
        }
        all.took = started.elapsed();
        self.bar.finish_and_clear();
        Ok(all)
    }

    async fn connection(self, started: Instant, samples: UnboundedSender<Sample>) -> Posted {
        let mut posted = Posted::new(started);
        while let Some((order, due)) = self.jobs.next().await {
            let answer = self.api.post(&order).await;
            let now = Instant::now();
            let latency = now - due;
            if self.verbose {
                self.tell(&order, latency, &answer);
            }
            self.bar.inc(1);
            match answer {
                Ok(answer) => {
                    posted.accepted += 1;
                    posted.latencies.record(latency);
                    let sample = Sample { id: answer.id, accepted: now };
                    // Nobody listens when nothing is to be followed.
                    if !self.is_sample(now) || samples.send(sample).is_err() {
                        posted.unsampled.push(answer.id);
                    }
                }
                Err(refusal) => posted.failed.count(refusal.0),
            }
        }
        posted
    }

    /// Whether it is time for the next sample. The time decides alone, never how the last ones fare: else slow phases
    /// would be looked at less than quick ones.
    fn is_sample(&self, now: Instant) -> bool {
        let mut last = self.last_sample.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| now.saturating_duration_since(last) >= SAMPLE_INTERVAL);
        if is_due {
            *last = Some(now);
        }
        is_due
    }

    fn tell(&self, order: &NewOrder, latency: Duration, answer: &Result<crate::http::Order, crate::http::Refusal>) {
        let NewOrder { user_id, product_id, quantity } = order;
        let result = match answer {
            Ok(answer) => format!("order {} {}", answer.id, answer.status),
            Err(refusal) => refusal.to_string(),
        };
        let millis = latency.as_secs_f64() * 1000.0;
        // The bar is out of the way meanwhile.
        self.bar.suspend(|| {
            eprintln!("user {user_id} product {product_id} quantity {quantity}: {result} ({millis:.1} ms)");
        });
    }
}

impl Posted {
    fn new(started: Instant) -> Self {
        Self {
            started,
            took: Duration::ZERO,
            accepted: 0,
            unsampled: Vec::new(),
            failed: Reasons::default(),
            latencies: Latencies::default(),
        }
    }

    fn merge(&mut self, part: Self) {
        self.accepted += part.accepted;
        self.unsampled.extend(part.unsampled);
        self.failed.merge(part.failed);
        self.latencies.merge(&part.latencies);
    }
}

/// A bar with a word before it. It is drawn on a terminal only.
pub(super) fn style(word: &str) -> ProgressStyle {
    ProgressStyle::with_template(&format!("{word:<10}{{wide_bar}} {{pos}}/{{len}} {{per_sec}} {{eta}}"))
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
