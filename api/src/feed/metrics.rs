//! Figures of the feed.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Handles to all of them. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct FeedMetrics {
    /// Streams that are open.
    pub readers: Gauge,
    /// Looks at the outbox.
    pub reads: Counter,
    sent: Counter,
    cut_off: Counter,
}

impl FeedMetrics {
    /// Makes them and adds them to `registry`.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("api_sse_readers", "Event streams that are open", metrics.readers.clone());
        registry.register("api_sse_events", "Events queued for readers", metrics.sent.clone());
        registry.register("api_sse_cut_off", "Readers that were too slow for their stream", metrics.cut_off.clone());
        registry.register("api_feed_reads", "Reads of the outbox for whoever watches or waits", metrics.reads.clone());
        metrics
    }

    /// An event was queued for a reader, or the reader was cut off instead.
    pub fn sent(&self, cut_off: bool) {
        if cut_off {
            self.cut_off.inc()
        } else {
            self.sent.inc()
        };
    }
}
