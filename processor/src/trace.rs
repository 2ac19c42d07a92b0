//! Spans after OpenTelemetry's semantic conventions for messaging: one for a batch, and one for each event in it whose parent is
//! the event's own context.

use shared::propagation::TraceHeaders;
use tracing::Span;

use crate::record::{Event, Partition};

/// The span of a batch. It has no single parent, since each event brings its own trace.
pub(crate) fn batch_span(group: &str, partition: &Partition, rows: usize) -> Span {
    tracing::info_span!(
        parent: None,
        "process_batch",
        otel.kind = "consumer",
        messaging.system = "kafka",
        messaging.operation.name = "process",
        messaging.operation.type = "process",
        messaging.destination.name = &*partition.topic,
        messaging.destination.partition.id = partition.number,
        messaging.consumer.group.name = group,
        messaging.batch.message_count = rows,
    )
}

/// The span of a look at the keys that wait.
pub(crate) fn key_span(group: &str, partition: &Partition) -> Span {
    tracing::debug_span!(
        parent: None,
        "process_keys",
        otel.kind = "internal",
        messaging.destination.name = &*partition.topic,
        messaging.destination.partition.id = partition.number,
        messaging.consumer.group.name = group,
    )
}

/// A span for each event of a batch, and its context for what the event causes. Open for as long as it is kept.
#[derive(Debug)]
pub(crate) struct ProcessSpans(Vec<(Span, TraceHeaders)>);

impl ProcessSpans {
    /// Opens them, if spans are exported: otherwise a thousand of them a batch would be made for nobody.
    pub(crate) fn open(events: &[Event<'_>], partition: &Partition) -> Self {
        let batch = Span::current();
        // Only an OpenTelemetry layer gives a span a context.
        if TraceHeaders::of_span(&batch).traceparent.is_none() {
            return Self(Vec::new());
        }
        let open = |event: &Event<'_>| {
            let span = tracing::info_span!(
                parent: None,
                "process_event",
                otel.name = format!("process {}", partition.topic),
                otel.kind = "consumer",
                messaging.system = "kafka",
                messaging.operation.name = "process",
                messaging.operation.type = "process",
                messaging.destination.name = &*partition.topic,
                messaging.destination.partition.id = partition.number,
                messaging.kafka.offset = event.offset(),
                messaging.message.id = %event.id(),
                event.type = event.event_type(),
            );
            event.trace().set_parent_of(&span);
            span.follows_from(&batch);
            let context = TraceHeaders::of_span(&span);
            (span, context)
        };
        Self(events.iter().map(open).collect())
    }

    /// Lets what the events cause continue from these spans; without them, from the events' own contexts.
    pub(crate) fn enter<'a>(&'a self, events: &mut [Event<'a>]) {
        for (event, (_, context)) in events.iter_mut().zip(&self.0) {
            event.trace = context;
        }
    }
}
