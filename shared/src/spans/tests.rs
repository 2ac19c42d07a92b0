//! What is recorded, and under which ids.

use super::*;
use crate::testing::Collector;

const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

fn spans(sampler: HeadSampler, per_second_max: u32) -> (Spans, Collector) {
    let collector = Collector::default();
    let limits = SpanLimits { sampler, per_second_max, slow: Some(Duration::from_secs(1)) };
    (Spans::new(collector.clone(), limits), collector)
}

fn finished(name: &'static str, links: Vec<TraceContext>) -> Finished {
    let (start, end) = (now(), now());
    Finished { name: name.into(), kind: SpanKind::Internal, start, end, attributes: Vec::new(), links, error: None }
}

#[test]
fn without_a_collector_there_is_nothing() {
    let off = Spans::default();
    assert!(!off.is_on() && !off.is_slow(Duration::MAX));
    assert_eq!((off.enter(None), off.follow(Some(SAMPLED)), off.force(None), off.root()), (None, None, None, None));
}

#[test]
fn an_event_is_followed_as_its_context_says() {
    let (spans, _) = spans(HeadSampler::parent_based(0.0), 10);
    let begun = spans.follow(Some(SAMPLED)).expect("recorded");
    let parent = TraceContext::parse(SAMPLED).expect("a context");
    assert_eq!((begun.context.trace_id, begun.parent), (parent.trace_id, Some(parent)));
    assert_ne!(begun.context.span_id, parent.span_id);
    assert_eq!(spans.child(begun.context).map(|child| child.parent), Some(Some(begun.context)));
    assert_eq!(spans.follow(Some(UNSAMPLED)), None);
    assert_eq!(spans.follow(None), None, "a new trace is decided by the ratio, which is 0");
    assert_eq!(spans.follow(Some("nonsense")), None);
}

#[test]
fn a_request_has_ids_though_it_is_not_recorded_and_may_be_afterwards() {
    let (spans, collector) = spans(HeadSampler::parent_based(0.0), 10);
    let mut begun = spans.enter(None).expect("ids");
    assert!(!begun.context.sampled && spans.child(begun.context).is_none());
    spans.record(&begun, finished("not", Vec::new()));
    assert!(spans.force_begun(&mut begun));
    spans.record(&begun, finished("recorded", Vec::new()));
    assert_eq!(collector.names(), ["recorded"]);
}

#[test]
fn what_is_forced_keeps_its_trace_and_takes_what_follows_along() {
    let (spans, _) = spans(HeadSampler::parent_based(1.0), 10);
    let begun = spans.force(Some(UNSAMPLED)).expect("recorded");
    let parent = TraceContext::parse(UNSAMPLED).expect("a context");
    assert_eq!((begun.context.trace_id, begun.context.sampled), (parent.trace_id, true));
    assert!(spans.follow(Some(&begun.context.to_traceparent())).is_some());
}

#[test]
fn no_more_are_recorded_than_a_second_may_have_and_the_rest_is_counted() {
    let (spans, _) = spans(HeadSampler::parent_based(1.0), 3);
    let recorded = (0..10).filter(|_| spans.follow(Some(SAMPLED)).is_some()).count();
    // The test may see a second begin.
    assert!((3..=6).contains(&recorded), "{recorded}");
    let missed = spans.missed().expect("it is on").load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(missed, 10 - recorded as u64);
    assert!(spans.enter(None).is_some_and(|begun| !begun.context.sampled || recorded > 3), "and has ids");
}

#[test]
fn a_span_has_so_many_links_at_most() {
    let (spans, collector) = spans(HeadSampler::parent_based(1.0), 1_000);
    let links: Vec<TraceContext> = (0..200).filter_map(|_| Some(spans.root()?.context)).collect();
    let batch = spans.root().expect("recorded");
    spans.record(&batch, finished("batch", links));
    let recorded = collector.spans();
    assert_eq!((recorded[0].links.len(), recorded[0].links.dropped_count), (LINKS_MAX, 72));
}
