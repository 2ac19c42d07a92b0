//! The queue to the exporter: bounded, with an exact count of what is lost, and one log line a minute about it.
//!
//! OpenTelemetry's own batch processor sends what is queued. It says nothing when the exporter fails, and of a full queue only that it
//! was; so the counting is done around it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor};

use super::exporter::Endpoint;
use crate::config::{ConfigError, Env};

/// Between two lines about spans that were lost.
const TELL_EVERY: Duration = Duration::from_mins(1);

/// Where spans go that are over. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Outlet {
    processor: Arc<BatchSpanProcessor>,
    ledger: Arc<Ledger>,
}

/// What is waiting and what was lost.
#[derive(Debug)]
struct Ledger {
    queue_max: usize,
    queued: AtomicUsize,
    /// Lost because the queue was full, since the last line.
    overflowed: AtomicU64,
    /// Lost because the exporter failed, since the last line.
    failed: AtomicU64,
    told: Mutex<Option<Instant>>,
    /// Passed over before there was a span, since the last line.
    missed: OnceLock<Arc<AtomicU64>>,
}

/// An exporter that counts.
#[derive(Debug)]
struct Counting<E> {
    exporter: E,
    ledger: Arc<Ledger>,
}

impl Outlet {
    /// Opens the way to `endpoint`, as wide as `OTEL_BSP_*` say.
    pub(super) fn open(endpoint: &Endpoint, env: &Env, resource: &Resource) -> Result<Self, ConfigError> {
        let number = |variable: &str, default: usize| match env.var(variable) {
            None => Ok(default),
            Some(value) => value
                .parse()
                .ok()
                .filter(|number| *number > 0)
                .ok_or_else(|| ConfigError::new(variable, format!("is a whole number from 1, not '{value}'"))),
        };
        let queue_max = number("OTEL_BSP_MAX_QUEUE_SIZE", 2_048)?;
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(queue_max)
            .with_max_export_batch_size(number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)?.min(queue_max))
            .with_scheduled_delay(Duration::from_millis(number("OTEL_BSP_SCHEDULE_DELAY", 5_000)? as u64))
            .build();
        let ledger = Arc::new(Ledger::new(queue_max));
        let exporter = Counting { exporter: endpoint.exporter()?, ledger: Arc::clone(&ledger) };
        let mut processor = BatchSpanProcessor::builder(exporter).with_batch_config(config).build();
        processor.set_resource(resource);
        Ok(Self { processor: Arc::new(processor), ledger })
    }

    /// Tells of this count too: what was to be recorded and was passed over.
    pub(super) fn count_too(&self, missed: Option<Arc<AtomicU64>>) {
        if let Some(missed) = missed {
            let _ = self.ledger.missed.set(missed);
        }
    }

    /// Says what was lost and not told yet.
    pub(super) fn tell(&self) {
        self.ledger.tell(None);
    }
}

impl SpanProcessor for Outlet {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.ledger.enqueue() {
            self.processor.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(timeout)
    }
}

impl<E: SpanExporter> SpanExporter for Counting<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let result = self.exporter.export(batch).await;
        self.ledger.exported(count, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl Ledger {
    fn new(queue_max: usize) -> Self {
        Self {
            queue_max,
            queued: AtomicUsize::new(0),
            overflowed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            told: Mutex::new(None),
            missed: OnceLock::new(),
        }
    }

    /// Counts a span in, if there is room: those that are being exported count until they are.
    fn enqueue(&self) -> bool {
        let has_room = self.queued.fetch_add(1, Ordering::Relaxed) < self.queue_max;
        if !has_room {
            self.queued.fetch_sub(1, Ordering::Relaxed);
            self.overflowed.fetch_add(1, Ordering::Relaxed);
        }
        has_room
    }

    /// Counts spans out.
    fn exported(&self, count: usize, result: &OTelSdkResult) {
        self.queued.fetch_sub(count, Ordering::Relaxed);
        let error = result.as_ref().err().map(ToString::to_string);
        if error.is_some() {
            self.failed.fetch_add(count as u64, Ordering::Relaxed);
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) && self.tell(error.as_deref()) {
            *told = Some(Instant::now());
        }
    }

    /// Says what was lost since the last line, if anything was; the first time at once.
    fn tell(&self, error: Option<&str>) -> bool {
        let [failed, overflowed] = [&self.failed, &self.overflowed].map(|count| count.swap(0, Ordering::Relaxed));
        let passed_over = self.missed.get().map_or(0, |missed| missed.swap(0, Ordering::Relaxed));
        if failed + overflowed > 0 {
            tracing::warn!(error, failed, overflowed, passed_over, "spans are lost: orders and events are not");
        } else if passed_over > 0 {
            tracing::info!(passed_over, "more was to be traced than TRACES_PER_SECOND_MAX");
        }
        failed + overflowed + passed_over > 0
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::error::OTelSdkError;

    use super::*;

    #[test]
    fn no_more_than_the_queue_holds_waits_and_the_rest_is_counted() {
        let ledger = Ledger::new(2);
        assert_eq!([ledger.enqueue(), ledger.enqueue(), ledger.enqueue()], [true, true, false]);
        assert_eq!(ledger.overflowed.load(Ordering::Relaxed), 1);
        ledger.exported(1, &Ok(()));
        assert!(ledger.enqueue() && !ledger.enqueue());
    }

    #[test]
    fn what_is_lost_is_told_once_a_minute() {
        let ledger = Ledger::new(10);
        let fail = || {
            assert!(ledger.enqueue());
            ledger.exported(1, &Err(OTelSdkError::InternalFailure("away".to_owned())));
        };
        fail();
        let first = *ledger.told.lock().expect("sound");
        assert!(first.is_some() && ledger.failed.load(Ordering::Relaxed) == 0, "at once");
        (0..5).for_each(|_| fail());
        assert_eq!(*ledger.told.lock().expect("sound"), first, "not again");
        assert_eq!(ledger.failed.load(Ordering::Relaxed), 5, "and kept for the next line");
        assert!(ledger.tell(None) && !ledger.tell(None));
    }
}
