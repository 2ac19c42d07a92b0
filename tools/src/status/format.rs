//! Counts, lengths of time and sizes for people.

/// A count in groups of three digits: `12,345,678`.
#[must_use]
pub fn count(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::from(if number < 0 { "-" } else { "" });
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count that may be an estimate: `~1,200,000`.
#[must_use]
pub fn about(number: i64, exact: bool) -> String {
    if exact { count(number) } else { format!("~{}", count(number)) }
}

/// A length of time: `0.4 s`, `42 s`, `3 min`, `5 h`, `2 d`.
#[must_use]
pub fn time(secs: f64) -> String {
    match secs {
        secs if secs < 10.0 => format!("{:.1} s", secs.max(0.0)),
        secs if secs < 120.0 => format!("{secs:.0} s"),
        secs if secs < 7_200.0 => format!("{:.0} min", secs / 60.0),
        secs if secs < 172_800.0 => format!("{:.0} h", secs / 3_600.0),
        secs => format!("{:.0} d", secs / 86_400.0),
    }
}

/// A length of time, or a dash.
#[must_use]
pub fn time_or_dash(secs: Option<f64>) -> String {
    secs.map_or_else(|| "-".to_owned(), time)
}

/// A size in units of 1024: `8 kB`, `2.1 GB`, as Postgres's `pg_size_pretty` names them.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
pub fn size(bytes: i64) -> String {
    let mut size = bytes as f64;
    let mut unit = "B";
    for larger in ["kB", "MB", "GB", "TB"] {
        if size < 1_024.0 {
            break;
        }
        size /= 1_024.0;
        unit = larger;
    }
    if size < 10.0 && unit != "B" { format!("{size:.1} {unit}") } else { format!("{size:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped() {
        assert_eq!(
            [0, 999, 1_000, 1_234_567, -1_000].map(count),
            ["0", "999", "1,000", "1,234,567", "-1,000"].map(str::to_owned)
        );
        assert_eq!(about(1_000, false), "~1,000");
    }

    #[test]
    fn times_and_sizes_have_the_unit_that_fits() {
        assert_eq!(
            [0.0, -0.1, 9.94, 42.4, 119.0, 180.0, 7_200.0, 172_800.0].map(time),
            ["0.0 s", "0.0 s", "9.9 s", "42 s", "119 s", "3 min", "2 h", "2 d"].map(str::to_owned)
        );
        assert_eq!(
            [0, 1_023, 8_192, 2_254_857_830].map(size),
            ["0 B", "1023 B", "8.0 kB", "2.1 GB"].map(str::to_owned)
        );
    }
}
