//! Lengths of time as people write them: `30s`, `15m`, `24h`, `7d`.

use std::time::Duration;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// A hundred years: beyond that Postgres's dates end before long, and nobody means it.
const SECS_MAX: u64 = 100 * 365 * 86_400;

/// Reads a whole number and a unit: `s`, `m`, `h` or `d`. Without a unit it is refused, since nobody could tell which one was meant.
#[must_use]
pub fn parse(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.find(|letter: char| !letter.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let unit_secs = match unit.trim_start() {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    let secs = number.parse::<u64>().ok()?.checked_mul(unit_secs)?;
    (secs <= SECS_MAX).then(|| Duration::from_secs(secs))
}

/// For serde's `deserialize_with`.
///
/// # Errors
/// When it is no length of time.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).ok_or_else(|| D::Error::custom("is not a length of time such as 30s, 15m, 24h or 7d"))
}

/// For how long something is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// Nothing is ever dropped.
    Forever,
    /// So long.
    For(Duration),
}

impl<'de> Deserialize<'de> for Retention {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.trim() == "forever" {
            return Ok(Self::Forever);
        }
        let length = parse(&text).map(Self::For);
        length.ok_or_else(|| {
            D::Error::custom("is neither a length of time such as 30s, 15m, 24h or 7d, nor the word forever")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_a_unit_are_a_length_of_time() {
        for (text, secs) in [("0s", 0), ("30s", 30), ("15m", 900), ("24h", 86_400), ("7d", 604_800), (" 2 h ", 7_200)] {
            assert_eq!(parse(text), Some(Duration::from_secs(secs)), "{text}");
        }
    }

    #[test]
    fn what_could_be_misread_is_refused() {
        for text in ["", "24", "h", "1.5h", "-1h", "24H", "1h30m", "1w", "5ms", "99999999999999999999s", "36501d"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert!(parse("36500d").is_some());
        assert_eq!(parse(&format!("{}d", u64::MAX)), None, "the product does not overflow");
    }
}
