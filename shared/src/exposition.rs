//! Reads what the registries of the services write: OpenMetrics text. Pure.

use std::collections::BTreeMap;

/// A metric with all its samples.
#[derive(Debug, Default, PartialEq)]
pub struct Family<'a> {
    /// Without the unit, and without what samples have behind it.
    pub name: &'a str,
    /// `counter`, `gauge`, `histogram` or `info`.
    pub kind: &'a str,
    /// `seconds`, `bytes`, or nothing.
    pub unit: &'a str,
    /// What it means.
    pub help: &'a str,
    /// Its lines.
    pub samples: Vec<Sample<'a>>,
}

/// One line.
#[derive(Debug, PartialEq)]
pub struct Sample<'a> {
    /// What is behind the name: `_total`, `_bucket`, `_sum`, `_count`, or nothing.
    pub suffix: &'a str,
    /// Its labels, that of its bucket included.
    pub labels: BTreeMap<&'a str, String>,
    /// Its value.
    pub value: f64,
    /// One case among them.
    pub exemplar: Option<Exemplar<'a>>,
}

/// One case among those that a sample counts.
#[derive(Debug, PartialEq)]
pub struct Exemplar<'a> {
    /// What it tells of itself, as its trace.
    pub labels: BTreeMap<&'a str, String>,
    /// Its value.
    pub value: f64,
    /// In seconds since 1970.
    pub at: Option<f64>,
}

/// The families of a text. Lines that cannot be read are passed over: there are none in what our registry writes.
#[must_use]
pub fn parse(text: &str) -> Vec<Family<'_>> {
    let mut families: Vec<(&str, Family<'_>)> = Vec::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let Some((keyword, rest)) = comment.split_once(' ') else { continue };
            let (name, value) = rest.split_once(' ').unwrap_or((rest, ""));
            if families.last().is_none_or(|(last, _)| *last != name) {
                families.push((name, Family { name, ..Family::default() }));
            }
            let Some((_, family)) = families.last_mut() else { continue };
            match keyword {
                "HELP" => family.help = value.trim_end_matches('.'),
                "TYPE" => family.kind = value,
                "UNIT" => {
                    family.unit = value;
                    family.name = name.strip_suffix(value).map_or(name, |name| name.trim_end_matches('_'));
                }
                _ => {}
            }
        } else if let Some((whole, family)) = families.last_mut()
            && let Some(sample) = line.strip_prefix(*whole).and_then(sample)
        {
            family.samples.push(sample);
        }
    }
    families.into_iter().map(|(_, family)| family).collect()
}

/// `_bucket{le="1.0",stage="read"} 3 # {trace_id="..."} 0.5 1700000000.5`
fn sample(line: &str) -> Option<Sample<'_>> {
    let end = line.find(['{', ' '])?;
    let (suffix, rest) = line.split_at(end);
    let (labels, rest) = labels(rest)?;
    let (value, exemplar) = rest.split_once(" # ").map_or((rest, None), |(value, exemplar)| (value, Some(exemplar)));
    let exemplar = exemplar.and_then(|text| {
        let (labels, rest) = self::labels(text)?;
        let mut numbers = rest.split_whitespace().map(str::parse);
        Some(Exemplar { labels, value: numbers.next()?.ok()?, at: numbers.next().and_then(Result::ok) })
    });
    Some(Sample { suffix, labels, value: value.trim().parse().ok()?, exemplar })
}

/// `{name="value",name="value"}` if there is one, and what is behind it.
fn labels(text: &str) -> Option<(BTreeMap<&str, String>, &str)> {
    let mut labels = BTreeMap::new();
    let Some(mut rest) = text.strip_prefix('{') else { return Some((labels, text)) };
    loop {
        if let Some(behind) = rest.strip_prefix('}') {
            return Some((labels, behind));
        }
        let (name, quoted) = rest.trim_start_matches(',').split_once("=\"")?;
        let (value, behind) = quoted_value(quoted)?;
        labels.insert(name, value);
        rest = behind;
    }
}

/// Up to the quotation mark that no backslash is before.
fn quoted_value(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((place, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, text.get(place + 1..)?)),
            '\\' => match letters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_writes_is_read() {
        let text = "\
# HELP outbox_published Events.
# TYPE outbox_published counter
outbox_published_total 17
# HELP age How old.
# TYPE age_seconds histogram
# UNIT age_seconds seconds
age_seconds_sum{stage=\"read\"} 1.5
age_seconds_count{stage=\"read\"} 2
age_seconds_bucket{le=\"1.0\",stage=\"read\"} 1 # {trace_id=\"0af7\"} 0.5 1700000000.5
age_seconds_bucket{le=\"+Inf\",stage=\"read\"} 2
# HELP odd Odd.
# TYPE odd gauge
odd{a=\"x\\\"}\\\\\",b=\"\"} -3
# EOF
";
        let text = text.replace("# HELP age How", "# HELP age_seconds How");
        let families = parse(&text);
        let names: Vec<_> = families.iter().map(|family| (family.name, family.kind, family.unit)).collect();
        assert_eq!(
            names[..3],
            [("outbox_published", "counter", ""), ("age", "histogram", "seconds"), ("odd", "gauge", "")]
        );
        assert_eq!((families[0].samples[0].suffix, families[0].samples[0].value), ("_total", 17.0));
        let bucket = &families[1].samples[2];
        assert_eq!((bucket.suffix, bucket.labels["le"].as_str(), bucket.value), ("_bucket", "1.0", 1.0));
        let exemplar = bucket.exemplar.as_ref().expect("an exemplar");
        assert_eq!(
            (exemplar.labels["trace_id"].as_str(), exemplar.value, exemplar.at),
            ("0af7", 0.5, Some(1_700_000_000.5))
        );
        assert_eq!(families[2].samples[0].labels["a"], "x\"}\\");
        assert!(families[2].samples[0].value < -2.9);
    }
}
