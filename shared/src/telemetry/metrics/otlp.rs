//! Figures as OTLP has them, in its JSON encoding. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use opentelemetry_sdk::Resource;
use serde_json::{Map, Value, json};

use crate::exposition::{Exemplar, Family, Sample};

/// Sums since the process began.
const CUMULATIVE: u8 = 2;

/// Labels of a sample without its bucket.
type Labels<'a> = BTreeMap<&'a str, &'a str>;

/// An `ExportMetricsServiceRequest`.
pub(super) fn request(families: &[Family<'_>], resource: &Resource, times: (SystemTime, SystemTime)) -> Value {
    let metrics: Vec<Value> = families.iter().filter_map(|family| metric(family, times)).collect();
    let resource: Vec<Value> = resource.iter().map(|(key, value)| attribute(key.as_str(), &value.as_str())).collect();
    json!({"resourceMetrics": [{
        "resource": {"attributes": resource},
        "scopeMetrics": [{"scope": {"name": "outrider", "version": env!("CARGO_PKG_VERSION")}, "metrics": metrics}],
    }]})
}

/// None for what has no sample, and for what the resource says.
fn metric(family: &Family<'_>, times: (SystemTime, SystemTime)) -> Option<Value> {
    if family.samples.is_empty() {
        return None;
    }
    let unit = match family.unit {
        "seconds" => "s",
        "bytes" => "By",
        _ => "1",
    };
    let mut metric = json!({"name": family.name, "description": family.help, "unit": unit});
    let number = |sample: &Sample<'_>| {
        let mut point = point(&without_bucket(sample), times);
        point["asDouble"] = json!(sample.value);
        point
    };
    match family.kind {
        "counter" => {
            let points: Vec<Value> =
                family.samples.iter().filter(|sample| sample.suffix == "_total").map(number).collect();
            metric["sum"] = json!({"aggregationTemporality": CUMULATIVE, "isMonotonic": true, "dataPoints": points});
        }
        "gauge" => metric["gauge"] = json!({"dataPoints": family.samples.iter().map(number).collect::<Vec<_>>()}),
        "histogram" => {
            metric["histogram"] =
                json!({"aggregationTemporality": CUMULATIVE, "dataPoints": histograms(&family.samples, times)});
        }
        _ => return None,
    }
    Some(metric)
}

fn histograms(samples: &[Sample<'_>], times: (SystemTime, SystemTime)) -> Vec<Value> {
    let mut by_labels: BTreeMap<Labels<'_>, Vec<&Sample<'_>>> = BTreeMap::new();
    for sample in samples {
        by_labels.entry(without_bucket(sample)).or_default().push(sample);
    }
    by_labels.into_iter().map(|(labels, samples)| histogram(&labels, &samples, times)).collect()
}

fn histogram(labels: &Labels<'_>, samples: &[&Sample<'_>], times: (SystemTime, SystemTime)) -> Value {
    let (mut bounds, mut counts, mut exemplars) = (Vec::new(), Vec::new(), Vec::new());
    let (mut sum, mut count, mut below) = (0.0, 0.0, 0.0);
    for sample in samples {
        match sample.suffix {
            "_sum" => sum = sample.value,
            "_count" => count = sample.value,
            // In the text, each bucket counts those below it too.
            "_bucket" => {
                if let Some(bound) = sample.labels.get("le").filter(|bound| *bound != "+Inf") {
                    bounds.push(bound.parse::<f64>().unwrap_or(f64::MAX));
                }
                counts.push(whole(sample.value - below));
                below = sample.value;
                exemplars.extend(sample.exemplar.as_ref().map(exemplar));
            }
            _ => {}
        }
    }
    let mut point = point(labels, times);
    point["count"] = whole(count);
    point["sum"] = json!(sum);
    point["bucketCounts"] = counts.into();
    point["explicitBounds"] = bounds.into();
    point["exemplars"] = exemplars.into();
    point
}

fn exemplar(exemplar: &Exemplar<'_>) -> Value {
    let at = Duration::try_from_secs_f64(exemplar.at.unwrap_or_default()).unwrap_or_default();
    let mut value = Map::from_iter([
        ("timeUnixNano".to_owned(), at.as_nanos().to_string().into()),
        ("asDouble".to_owned(), exemplar.value.into()),
    ]);
    if let Some(trace_id) = exemplar.labels.get("trace_id") {
        value.insert("traceId".to_owned(), trace_id.as_str().into());
    }
    value.into()
}

fn point(labels: &Labels<'_>, (began, now): (SystemTime, SystemTime)) -> Value {
    let attributes: Vec<Value> = labels.iter().map(|(key, value)| attribute(key, value)).collect();
    json!({"attributes": attributes, "startTimeUnixNano": nanos(began), "timeUnixNano": nanos(now)})
}

fn without_bucket<'a>(sample: &'a Sample<'_>) -> Labels<'a> {
    sample.labels.iter().filter(|(name, _)| **name != "le").map(|(name, value)| (*name, value.as_str())).collect()
}

fn attribute(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

/// 64 bits are text in this encoding.
fn nanos(time: SystemTime) -> String {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}

fn whole(count: f64) -> Value {
    format!("{count:.0}").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::parse;

    #[test]
    fn counters_gauges_and_histograms_are_told_as_otlp_has_them() {
        let text = "\
# HELP events Events.
# TYPE events counter
events_total{outcome=\"applied\"} 17
# HELP age_seconds How old.
# TYPE age_seconds histogram
# UNIT age_seconds seconds
age_seconds_sum{stage=\"read\"} 2.5
age_seconds_count{stage=\"read\"} 3
age_seconds_bucket{le=\"1.0\",stage=\"read\"} 1
age_seconds_bucket{le=\"5.0\",stage=\"read\"} 3 # {trace_id=\"0af7651916cd43dd8448eb211c80319c\"} 1.5 1700000000.5
age_seconds_bucket{le=\"+Inf\",stage=\"read\"} 3
# HELP build The version.
# TYPE build info
build_info{version=\"1\"} 1
# HELP none Nothing yet.
# TYPE none gauge
";
        let at = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        let resource = Resource::builder_empty().with_service_name("outrider-relay").build();
        let request = request(&parse(text), &resource, (at(1), at(2)));
        let attribute = &request["resourceMetrics"][0]["resource"]["attributes"][0];
        assert_eq!(attribute, &json!({"key": "service.name", "value": {"stringValue": "outrider-relay"}}));
        let times = json!({"startTimeUnixNano": "1000000000", "timeUnixNano": "2000000000"});
        let with = |more: Value| {
            let mut whole = times.as_object().expect("an object").clone();
            whole.extend(more.as_object().expect("an object").clone());
            Value::from(whole)
        };
        let key = |key, value| json!([{"key": key, "value": {"stringValue": value}}]);
        assert_eq!(
            request["resourceMetrics"][0]["scopeMetrics"][0]["metrics"],
            json!([
                {"name": "events", "description": "Events", "unit": "1", "sum": {
                    "aggregationTemporality": 2, "isMonotonic": true,
                    "dataPoints": [with(json!({"attributes": key("outcome", "applied"), "asDouble": 17.0}))],
                }},
                {"name": "age", "description": "How old", "unit": "s", "histogram": {
                    "aggregationTemporality": 2,
                    "dataPoints": [with(json!({
                        "attributes": key("stage", "read"), "count": "3", "sum": 2.5,
                        "bucketCounts": ["1", "2", "0"], "explicitBounds": [1.0, 5.0],
                        "exemplars": [{
                            "timeUnixNano": "1700000000500000000", "asDouble": 1.5,
                            "traceId": "0af7651916cd43dd8448eb211c80319c",
                        }],
                    }))],
                }},
            ])
        );
    }
}
