//! Rates and times from what the services' admin ports show, by the difference between two looks. Pure.

use std::collections::BTreeMap;

use shared::exposition;

/// The metric of events' ages, and that of requests.
const AGE: &str = "outrider_event_age";
const REQUESTS: &str = "http_server_request_duration";

/// What all services together show at one moment. Those of a kind are added up.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scrape {
    /// By the name of the row that it is for.
    histograms: BTreeMap<String, Histogram>,
}

/// How many have taken at most so long.
#[derive(Debug, Clone, Default, PartialEq)]
struct Histogram {
    /// By upper bound, in seconds; as in the text, each counts those below it too.
    buckets: Vec<(f64, f64)>,
    count: f64,
}

/// What is told of one stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// `requests`, or a stage of events.
    pub stage: &'static str,
    /// A second; none if nobody shows it.
    pub rate: Option<f64>,
    /// In seconds; none if there was nothing.
    pub median: Option<f64>,
    /// The same of the slowest hundredth.
    pub p99: Option<f64>,
}

/// The rows, from the first to the last stage.
pub const STAGES: [&str; 5] = ["requests", "read", "acknowledged", "received", "applied"];

impl Scrape {
    /// Adds what one service shows.
    pub fn add(&mut self, text: &str) {
        for family in exposition::parse(text) {
            for sample in &family.samples {
                let row = match family.name {
                    REQUESTS => "requests",
                    AGE => match sample.labels.get("stage") {
                        Some(stage) => stage,
                        None => continue,
                    },
                    _ => continue,
                };
                let histogram = self.histograms.entry(row.to_owned()).or_default();
                match sample.suffix {
                    "_count" => histogram.count += sample.value,
                    "_bucket" => {
                        let bound = sample.labels.get("le").and_then(|bound| bound.parse().ok());
                        histogram.add(bound.unwrap_or(f64::INFINITY), sample.value);
                    }
                    _ => {}
                }
            }
        }
    }

    /// What has happened since `before`, `seconds` ago.
    #[must_use]
    pub fn since(&self, before: &Self, seconds: f64) -> Vec<Row> {
        let row = |stage| {
            let now = self.histograms.get(stage);
            let Some(now) = now else { return Row { stage, rate: None, median: None, p99: None } };
            let happened = now.since(before.histograms.get(stage));
            Row {
                stage,
                rate: Some(happened.count / seconds.max(0.001)),
                median: happened.quantile(0.5),
                p99: happened.quantile(0.99),
            }
        };
        STAGES.map(row).to_vec()
    }
}

impl Histogram {
    fn add(&mut self, bound: f64, count: f64) {
        match self.buckets.iter_mut().find(|(known, _)| known.total_cmp(&bound).is_eq()) {
            Some((_, counted)) => *counted += count,
            None => self.buckets.push((bound, count)),
        }
    }

    /// The difference; all of it if there is less now: then the process has begun anew.
    fn since(&self, before: Option<&Self>) -> Self {
        let Some(before) = before.filter(|before| before.count <= self.count) else { return self.clone() };
        let counted = |bound: f64| {
            let known = before.buckets.iter().find(|(known, _)| known.total_cmp(&bound).is_eq());
            known.map_or(0.0, |(_, count)| *count)
        };
        let buckets = self.buckets.iter().map(|(bound, count)| (*bound, count - counted(*bound))).collect();
        Self { buckets, count: self.count - before.count }
    }

    /// The value that this share lies below, taken to be spread evenly within its bucket, as Prometheus does.
    fn quantile(&self, share: f64) -> Option<f64> {
        let mut buckets = self.buckets.clone();
        buckets.sort_by(|(left, _), (right, _)| left.total_cmp(right));
        let all = buckets.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
        let wanted = share * all;
        let (mut lower, mut below) = (0.0, 0.0);
        for (bound, count) in buckets {
            if count >= wanted {
                // Beyond the last bound nothing more is known.
                let width = if bound.is_finite() { bound - lower } else { 0.0 };
                let within = if count > below { (wanted - below) / (count - below) } else { 0.0 };
                return Some(lower + width * within);
            }
            (lower, below) = (bound, count);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(counts: [u32; 3]) -> Scrape {
        let [one, five, all] = counts;
        let mut scrape = Scrape::default();
        scrape.add(&format!(
            "# HELP outrider_event_age_seconds Age.\n\
             # TYPE outrider_event_age_seconds histogram\n\
             # UNIT outrider_event_age_seconds seconds\n\
             outrider_event_age_seconds_count{{stage=\"read\"}} {all}\n\
             outrider_event_age_seconds_bucket{{le=\"1.0\",stage=\"read\"}} {one}\n\
             outrider_event_age_seconds_bucket{{le=\"5.0\",stage=\"read\"}} {five}\n\
             outrider_event_age_seconds_bucket{{le=\"+Inf\",stage=\"read\"}} {all}\n"
        ));
        scrape
    }

    #[test]
    fn rates_and_times_are_those_since_the_look_before() {
        let rows = shown([60, 110, 110]).since(&shown([10, 10, 10]), 2.0);
        let read = rows.iter().find(|row| row.stage == "read").expect("a row");
        assert_eq!((read.rate, read.median), (Some(50.0), Some(1.0)));
        assert!(read.p99.is_some_and(|p99| (4.9..5.0).contains(&p99)), "{read:?}");
        assert_eq!(rows[0], Row { stage: "requests", rate: None, median: None, p99: None });
    }

    #[test]
    fn a_process_that_has_begun_anew_counts_from_nothing() {
        let rows = shown([4, 4, 4]).since(&shown([60, 110, 110]), 1.0);
        assert_eq!((rows[1].rate, rows[1].median), (Some(4.0), Some(0.5)));
    }

    #[test]
    fn beyond_the_last_bound_that_bound_is_told_and_of_nothing_nothing() {
        let rows = shown([0, 0, 9]).since(&Scrape::default(), 1.0);
        assert_eq!(rows[1].p99, Some(5.0));
        let rows = shown([7, 7, 7]).since(&shown([7, 7, 7]), 1.0);
        assert_eq!((rows[1].rate, rows[1].median), (Some(0.0), None));
    }

    #[test]
    fn services_of_a_kind_are_added_up() {
        let mut both = shown([1, 1, 1]);
        both.add(
            "# HELP outrider_event_age_seconds Age.\n# TYPE outrider_event_age_seconds histogram\n\
             # UNIT outrider_event_age_seconds seconds\noutrider_event_age_seconds_count{stage=\"read\"} 3\n\
             outrider_event_age_seconds_bucket{le=\"1.0\",stage=\"read\"} 3\n",
        );
        assert_eq!(both.since(&Scrape::default(), 1.0)[1].rate, Some(4.0));
    }
}
