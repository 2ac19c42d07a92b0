//! How far other machines' clocks are from ours.

use chrono::{DateTime, TimeDelta, Utc};

use crate::findings::Finding;

/// How far a clock may be from ours.
const NEAR: TimeDelta = TimeDelta::seconds(1);

/// From here on, tokens that are good are refused, and brokers may refuse events.
const FAR: TimeDelta = TimeDelta::minutes(5);

/// How far a clock is from ours that told `theirs` at some moment between `before` and `after`: by so much at least. Negative: behind.
#[must_use]
pub fn distance(theirs: DateTime<Utc>, before: DateTime<Utc>, after: DateTime<Utc>) -> TimeDelta {
    if theirs < before { theirs - before } else { (theirs - after).max(TimeDelta::zero()) }
}

/// Whether a clock is as far from ours as `off`, and too far.
#[must_use]
pub fn judge(check: &'static str, whose: &str, off: TimeDelta) -> Finding {
    let far = off.abs();
    let side = if off < TimeDelta::zero() { "behind" } else { "ahead of" };
    let seconds = far.as_seconds_f64();
    let found = format!("the clock of {whose} is {seconds:.1} s {side} ours");
    let advice = "have both machines keep their clocks by NTP";
    if far <= NEAR {
        Finding::fine(check, format!("the clock of {whose} is within {} s of ours", NEAR.num_seconds()))
    } else if far < FAR {
        Finding::warning(check, format!("{found}: ages of events are wrong by as much"), advice)
    } else {
        Finding::wrong(check, format!("{found}: tokens that are good may be refused, and events by brokers"), advice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::findings::Verdict;

    #[test]
    fn a_clock_may_be_a_little_off() {
        for (millis, verdict) in [
            (0, Verdict::Fine),
            (-1_000, Verdict::Fine),
            (1_001, Verdict::Warning),
            (-299_000, Verdict::Warning),
            (300_000, Verdict::Wrong),
        ] {
            let finding = judge("database.clock", "the server", TimeDelta::milliseconds(millis));
            assert_eq!(finding.verdict, verdict, "{finding}");
        }
        let finding = judge("database.clock", "the server", TimeDelta::milliseconds(-2_500));
        assert!(finding.found.starts_with("the clock of the server is 2.5 s behind ours"), "{finding}");
    }
}
