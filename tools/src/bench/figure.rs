//! A measured figure, its bound, and the table of all of them.

use std::fmt::Write;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

/// What a figure is held to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// It should not be below this.
    AtLeast(f64),
    /// It should not be above this.
    AtMost(f64),
    /// It is shown for comparison.
    Shown,
}

/// One measured figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// How much it was.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// What it is held to.
    pub bound: Bound,
}

impl Figure {
    /// A figure.
    #[must_use]
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str, bound: Bound) -> Self {
        Self { name: name.into(), value, unit, bound }
    }

    /// Whether it is within its bound.
    #[must_use]
    pub fn holds(&self) -> bool {
        match self.bound {
            Bound::AtLeast(least) => self.value >= least,
            Bound::AtMost(most) => self.value <= most,
            Bound::Shown => true,
        }
    }
}

impl Serialize for Figure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Figure", 5)?;
        fields.serialize_field("name", &self.name)?;
        fields.serialize_field("value", &self.value)?;
        fields.serialize_field("unit", self.unit)?;
        match self.bound {
            Bound::AtLeast(least) => fields.serialize_field("at_least", &least)?,
            Bound::AtMost(most) => fields.serialize_field("at_most", &most)?,
            Bound::Shown => fields.skip_field("at_least")?,
        }
        fields.serialize_field("holds", &self.holds())?;
        fields.end()
    }
}

/// The figures as a table.
#[must_use]
pub fn table(figures: &[Figure]) -> String {
    let width = figures.iter().map(|figure| figure.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for figure in figures {
        let bound = match figure.bound {
            Bound::AtLeast(least) => format!("at least {}", number(least)),
            Bound::AtMost(most) => format!("at most {}", number(most)),
            Bound::Shown => String::new(),
        };
        let verdict = match (figure.bound, figure.holds()) {
            (Bound::Shown, _) => "",
            (_, true) => "holds",
            (_, false) => "DOES NOT HOLD",
        };
        // Writing into a string cannot fail.
        let _ = writeln!(
            text,
            "{:<width$}  {:>12} {:<9} {bound:<18} {verdict}",
            figure.name,
            number(figure.value),
            figure.unit
        );
    }
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n") + "\n"
}

/// A number as people read it: thousands apart, and three digits at least.
fn number(value: f64) -> String {
    if value.abs() < 100.0 {
        return format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let digits = format!("{value:.0}");
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |digits| ("-", digits));
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}")
}

/// The one in the middle; of an even number, the lower one of the two. 0 for none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(
            [0.0, 1.5, 12.345, 999.6, 250_000.0, -1_234.0].map(number),
            ["0", "1.5", "12.35", "1,000", "250,000", "-1,234"]
        );
    }

    #[test]
    fn a_figure_is_held_to_its_bound() {
        let figure = |value, bound| Figure::new("a", value, "b", bound);
        assert!(figure(2.0, Bound::AtLeast(2.0)).holds() && figure(2.0, Bound::AtMost(2.0)).holds());
        assert!(!figure(1.9, Bound::AtLeast(2.0)).holds() && !figure(2.1, Bound::AtMost(2.0)).holds());
        let json = serde_json::to_string(&figure(1.0, Bound::AtLeast(2.0))).expect("plain");
        assert_eq!(json, r#"{"name":"a","value":1.0,"unit":"b","at_least":2.0,"holds":false}"#);
        let table = table(&[figure(1.0, Bound::AtLeast(2.0)), figure(1.0, Bound::Shown)]);
        assert!(table.lines().next().is_some_and(|line| line.ends_with("DOES NOT HOLD")), "{table}");
    }

    #[test]
    fn the_median_is_the_one_in_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!(median(&[]).abs() < f64::EPSILON);
    }
}
