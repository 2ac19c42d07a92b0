//! Spans of requests and events: whether one is recorded is decided before anything is built, and it is built when it is over.
//!
//! They go to the exporter's queue as OpenTelemetry has them, and not by way of `tracing`: a span of `tracing` costs as much when it is
//! not sampled as when it is, and it knows nothing of an event whose beginning and end are heard of by different threads. What is not
//! recorded costs a look at one byte here; what is recorded costs its attributes.

mod limits;
mod sampler;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{FutureExt as _, Link, SpanId, Status, TraceContextExt as _};
use opentelemetry::{Context, InstrumentationScope};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData, SpanEvents, SpanLinks, SpanProcessor};

use crate::propagation::{TraceContext, is_sampled};

pub use limits::{Budget, SpanLimits};
pub use opentelemetry::trace::SpanKind;
pub use opentelemetry::{Array, KeyValue, Value};
pub use sampler::HeadSampler;

/// Most links of one span: the default of `OTEL_SPAN_LINK_COUNT_LIMIT`.
pub const LINKS_MAX: usize = 128;

/// Requests and events of a second that are recorded only because of how they went. A pipeline that falls behind is slow with all of
/// its events, and one whose database is away fails all of its requests: a hundred of them tell as much.
pub const TAIL_PER_SECOND_MAX: u32 = 100;

/// Makes spans, or nothing if none are exported. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Spans(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    processor: Box<dyn SpanProcessor>,
    limits: SpanLimits,
    head: Budget,
    tail: Budget,
    ids: RandomIdGenerator,
    scope: InstrumentationScope,
}

/// A span that has its ids and is not over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// Its own context, for what it causes. Only if that is sampled is it recorded.
    pub context: TraceContext,
    /// That of the span which caused it.
    pub parent: Option<TraceContext>,
}

/// What there is to tell of a span when it is over.
#[derive(Debug)]
pub struct Finished {
    /// What was done, for example `publish orders`.
    pub name: Cow<'static, str>,
    /// Its role towards other spans.
    pub kind: SpanKind,
    /// When it began.
    pub start: SystemTime,
    /// When it was over.
    pub end: SystemTime,
    /// After OpenTelemetry's semantic conventions where they know of it.
    pub attributes: Vec<KeyValue>,
    /// Spans that it has to do with and is not caused by.
    pub links: Vec<TraceContext>,
    /// What went wrong.
    pub error: Option<String>,
}

impl Spans {
    /// Hands spans to `processor`.
    #[must_use]
    pub fn new(processor: impl SpanProcessor + 'static, limits: SpanLimits) -> Self {
        Self(Some(Arc::new(Inner {
            processor: Box::new(processor),
            head: Budget::new(limits.per_second_max),
            tail: Budget::new(limits.per_second_max.min(TAIL_PER_SECOND_MAX)),
            limits,
            ids: RandomIdGenerator::default(),
            scope: InstrumentationScope::builder("outrider").with_version(env!("CARGO_PKG_VERSION")).build(),
        })))
    }

    /// Whether anybody collects spans.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Whether something that took so long is recorded for that alone.
    #[must_use]
    pub fn is_slow(&self, took: Duration) -> bool {
        self.0.as_ref().and_then(|inner| inner.limits.slow).is_some_and(|slow| took >= slow)
    }

    /// Begins a span that gets its ids in any case, since others will refer to it: whether it is recorded, its context tells. None if
    /// nobody collects spans.
    #[must_use]
    pub fn enter(&self, parent: Option<TraceContext>) -> Option<Begun> {
        let inner = self.0.as_ref()?;
        let mut begun = inner.begin(parent);
        begun.context.sampled =
            inner.limits.sampler.samples(parent.as_ref(), begun.context.trace_id) && inner.head.take();
        Some(begun)
    }

    /// Begins a span under the context with this `traceparent`, if it is to be recorded.
    #[must_use]
    pub fn follow(&self, traceparent: Option<&str>) -> Option<Begun> {
        let inner = self.0.as_ref()?;
        let sampler = inner.limits.sampler;
        // What most events come to: their writer has decided against it.
        if traceparent.is_some_and(|traceparent| sampler.goes_by_parent() && !is_sampled(traceparent)) {
            return None;
        }
        if !inner.head.has_some() {
            inner.head.miss();
            return None;
        }
        self.enter(traceparent.and_then(TraceContext::parse)).filter(|begun| begun.context.sampled)
    }

    /// Begins a span that is recorded because of how it goes, whatever was decided when its trace began; none if there were too many
    /// such in this second. What follows from its context is recorded too.
    #[must_use]
    pub fn force(&self, traceparent: Option<&str>) -> Option<Begun> {
        let inner = self.0.as_ref()?;
        if !inner.tail.take() {
            return None;
        }
        let mut begun = inner.begin(traceparent.and_then(TraceContext::parse));
        begun.context.sampled = true;
        Some(begun)
    }

    /// Has a span recorded after all that was begun without. False if there were too many such in this second.
    #[must_use]
    pub fn force_begun(&self, begun: &mut Begun) -> bool {
        begun.context.sampled |= self.0.as_ref().is_some_and(|inner| inner.tail.take());
        begun.context.sampled
    }

    /// Begins a span that is recorded as its parent is.
    #[must_use]
    pub fn child(&self, parent: TraceContext) -> Option<Begun> {
        self.0.as_ref().filter(|_| parent.sampled).map(|inner| inner.begin(Some(parent)))
    }

    /// Begins a span of a trace of its own that is recorded because of those it has links to.
    #[must_use]
    pub fn root(&self) -> Option<Begun> {
        let mut begun = self.0.as_ref()?.begin(None);
        begun.context.sampled = true;
        Some(begun)
    }

    /// Hands a span that is over to the exporter's queue; if that is full, it is lost, and counted.
    pub fn record(&self, begun: &Begun, finished: Finished) {
        let Some(inner) = self.0.as_ref().filter(|_| begun.context.sampled) else { return };
        let Finished { name, kind, start, end, attributes, links, error } = finished;
        inner.processor.on_end(SpanData {
            span_context: begun.context.to_span_context(),
            parent_span_id: begun.parent.map_or(SpanId::INVALID, |parent| parent.span_id),
            parent_span_is_remote: false,
            span_kind: kind,
            name,
            start_time: start,
            end_time: end.max(start),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: to_links(links),
            status: error.map_or(Status::Unset, Status::error),
            instrumentation_scope: inner.scope.clone(),
        });
    }

    /// Counts those that were passed over because there were too many in a second.
    #[must_use]
    pub fn missed(&self) -> Option<Arc<AtomicU64>> {
        self.0.as_ref().map(|inner| inner.head.missed())
    }
}

impl Inner {
    fn begin(&self, parent: Option<TraceContext>) -> Begun {
        let trace_id = parent.map_or_else(|| self.ids.new_trace_id(), |parent| parent.trace_id);
        let context = TraceContext {
            trace_id,
            span_id: self.ids.new_span_id(),
            sampled: parent.is_some_and(|parent| parent.sampled),
        };
        Begun { context, parent }
    }
}

fn to_links(contexts: Vec<TraceContext>) -> SpanLinks {
    let mut links = SpanLinks::default();
    links.dropped_count = u32::try_from(contexts.len().saturating_sub(LINKS_MAX)).unwrap_or(u32::MAX);
    links.links =
        contexts.into_iter().take(LINKS_MAX).map(|context| Link::with_context(context.to_span_context())).collect();
    links
}

/// Does `work` with this span as OpenTelemetry's current one: what is made by its means, or by `tracing`, is part of it.
pub async fn within<T>(context: TraceContext, work: impl Future<Output = T>) -> T {
    work.with_context(Context::current().with_remote_span_context(context.to_span_context())).await
}

/// The time of day, which spans are dated by and nothing is decided by.
#[must_use]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// Seconds from one time to another; 0 if clocks say that it was the other way round.
#[must_use]
pub fn seconds_between(from: SystemTime, to: SystemTime) -> f64 {
    to.duration_since(from).unwrap_or_default().as_secs_f64()
}
