//! Every instrument of the API, with its unit and its meaning, in one place. `deploy/METRICS.md` has the same list. Names follow
//! OpenTelemetry's conventions where there is one.
//! No ids in labels: each value of a label is a time series.

use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::auth::refusal::Reason;
use crate::batcher::Refusal;
use crate::problem::Kind;

/// From half a millisecond to ten seconds.
const SECONDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const ROWS: [f64; 12] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 10_000.0];

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Handles to all of them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: Histograms<RequestLabels>,
    problems: Family<ProblemLabels, Counter>,
    /// Requests that are being served, up to the heads of their answers.
    pub active: Gauge,
    statements: Histograms<StatementLabels>,
    rows: Histogram,
    pool_waits: Histogram,
    /// Orders that wait for a statement.
    pub queued: Gauge,
    refused: Family<RefusedLabels, Counter>,
    /// Orders that were answered again, under their idempotency key.
    pub replayed: Counter,
    /// Partitions of idempotency keys.
    pub key_partitions: Gauge,
    /// Partitions of idempotency keys that were dropped.
    pub key_partitions_dropped: Counter,
    /// Those of who may do what.
    pub auth: AuthMetrics,
    /// Those of the feed.
    pub feed: FeedMetrics,
    /// When the certificate of the API's port ends, in seconds since 1970.
    pub certificate_expiry: Gauge,
}

/// Who may do what. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct AuthMetrics {
    refused: Family<RefusedLabels, Counter>,
    /// Requests that were over their caller's rate.
    pub rate_limited: Counter,
}

/// The feed of transitions. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct FeedMetrics {
    /// Streams that are open.
    pub readers: Gauge,
    /// Looks at the outbox.
    pub reads: Counter,
    sent: Counter,
    cut_off: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    http_route: &'static str,
    http_response_status_class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProblemLabels {
    http_route: &'static str,
    problem: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatementLabels {
    db_operation_name: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    reason: &'static str,
}

impl Metrics {
    /// Makes them and adds them to `registry`.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let seconds: fn() -> Histogram = || Histogram::new(SECONDS);
        let metrics = Self {
            requests: Family::new_with_constructor(seconds),
            problems: Family::default(),
            active: Gauge::default(),
            statements: Family::new_with_constructor(seconds),
            rows: Histogram::new(ROWS),
            pool_waits: seconds(),
            queued: Gauge::default(),
            refused: Family::default(),
            replayed: Counter::default(),
            key_partitions: Gauge::default(),
            key_partitions_dropped: Counter::default(),
            auth: AuthMetrics::register(registry),
            feed: FeedMetrics::register(registry),
            certificate_expiry: Gauge::default(),
        };
        registry.register_with_unit(
            "http_server_request_duration",
            "Time from a request's head to its answer, by route and class of status",
            Unit::Seconds,
            metrics.requests.clone(),
        );
        registry.register(
            "api_problems",
            "Requests that were answered with a problem, by route and by the last part of the problem's type",
            metrics.problems.clone(),
        );
        registry.register(
            "http_server_active_requests",
            "Requests that are being served, up to the heads of their answers",
            metrics.active.clone(),
        );
        registry.register_with_unit(
            "db_client_operation_duration",
            "Time that statements took, by statement and outcome",
            Unit::Seconds,
            metrics.statements.clone(),
        );
        registry.register_with_unit(
            "db_client_connection_wait_time",
            "Time that requests waited for a connection of the pool, those included that got none",
            Unit::Seconds,
            metrics.pool_waits.clone(),
        );
        registry.register("api_statement_rows", "Orders that one statement wrote or tried to", metrics.rows.clone());
        registry.register("api_queue_depth", "Orders that wait for a statement", metrics.queued.clone());
        for refusal in Refusal::ALL {
            // Known before it first happens, so that its first time is an increase.
            let _ = metrics.refused.get_or_create(&RefusedLabels { reason: refusal.reason() });
        }
        registry.register(
            "api_orders_refused",
            "Valid orders that were not accepted, by reason",
            metrics.refused.clone(),
        );
        registry.register(
            "api_orders_replayed",
            "Orders that were answered again, under their idempotency key",
            metrics.replayed.clone(),
        );
        registry.register(
            "api_idempotency_partitions",
            "Partitions of idempotency keys",
            metrics.key_partitions.clone(),
        );
        registry.register(
            "api_idempotency_partitions_dropped",
            "Partitions of idempotency keys that were dropped",
            metrics.key_partitions_dropped.clone(),
        );
        registry.register_with_unit(
            "api_tls_certificate_expiry_timestamp",
            "When the certificate of the API's port ends, in seconds since 1970; 0 if there is none or that cannot be read",
            Unit::Seconds,
            metrics.certificate_expiry.clone(),
        );
        metrics
    }

    /// A request was answered.
    pub fn request(&self, route: &'static str, status: u16, start: Instant) {
        let http_response_status_class = match status {
            ..200 => "1xx",
            200..300 => "2xx",
            300..400 => "3xx",
            400..500 => "4xx",
            500.. => "5xx",
        };
        let labels = RequestLabels { http_route: route, http_response_status_class };
        self.requests.get_or_create(&labels).observe(start.elapsed().as_secs_f64());
    }

    /// A request was answered with a problem.
    pub fn problem(&self, route: &'static str, kind: Kind) {
        self.problems.get_or_create(&ProblemLabels { http_route: route, problem: kind.entry().slug }).inc();
    }

    /// A request has a connection of the pool, or got none.
    pub fn waited_for_connection(&self, start: Instant) {
        self.pool_waits.observe(start.elapsed().as_secs_f64());
    }

    /// A statement that wrote `rows` orders has ended.
    pub fn insert(&self, rows: usize, outcome: &'static str, start: Instant) {
        let labels = StatementLabels { db_operation_name: "insert_orders", outcome };
        self.statements.get_or_create(&labels).observe(start.elapsed().as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "a statement has at most 10,000 rows")]
        self.rows.observe(rows as f64);
    }

    /// A valid order was not accepted.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&RefusedLabels { reason }).inc();
    }
}

impl AuthMetrics {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        for reason in Reason::ALL {
            let _ = metrics.refused.get_or_create(&RefusedLabels { reason: reason.name() });
        }
        registry.register(
            "api_auth_refused",
            "Requests that were refused for their credentials, by reason",
            metrics.refused.clone(),
        );
        registry.register(
            "api_rate_limited",
            "Requests that were refused because their caller has sent too many",
            metrics.rate_limited.clone(),
        );
        metrics
    }

    /// A request was refused for its credentials.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&RefusedLabels { reason }).inc();
    }

    #[cfg(test)]
    pub(crate) fn refused_so_far(&self, reason: &'static str) -> u64 {
        self.refused.get_or_create(&RefusedLabels { reason }).get()
    }
}

impl FeedMetrics {
    fn register(registry: &mut Registry) -> Self {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_shown_under_its_name() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.request("/orders", 201, Instant::now());
        metrics.insert(3, "ok", Instant::now());
        metrics.refused("queue_full");
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        for line in [
            "http_server_request_duration_seconds_count{http_route=\"/orders\",http_response_status_class=\"2xx\"} 1",
            "db_client_operation_duration_seconds_count{db_operation_name=\"insert_orders\",outcome=\"ok\"} 1",
            "api_statement_rows_sum 3.0",
            "api_queue_depth 0",
            "api_orders_replayed_total 0",
            "api_idempotency_partitions 0",
            "api_idempotency_partitions_dropped_total 0",
            "api_orders_refused_total{reason=\"queue_full\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
