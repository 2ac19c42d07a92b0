//! What a look at a server, a setting or a service finds: `outrider doctor` shows it, and services say what concerns them when they start.

use std::fmt;

use serde::Serialize;

/// How bad it is. The last is the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Fine,
    /// It works, and will hurt some day.
    Warning,
    /// It does not work, or a promise does not hold.
    Wrong,
}

/// What one check has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check: what is looked at, and which side of it, as in `database.encoding`.
    pub check: &'static str,
    /// How bad it is.
    pub verdict: Verdict,
    /// What was found, and what it leads to.
    pub found: String,
    /// What to do about it, unless `found` says so.
    pub advice: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn fine(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Fine, found: found.into(), advice: None }
    }

    /// It works, and will hurt some day.
    pub fn warning(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warning, found: found.into(), advice: Some(advice.into()) }
    }

    /// It does not work, or a promise does not hold.
    pub fn wrong(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Wrong, found: found.into(), advice: Some(advice.into()) }
    }

    /// An error, whose text says what to do.
    pub fn error(check: &'static str, error: impl fmt::Display) -> Self {
        Self { check, verdict: Verdict::Wrong, found: error.to_string(), advice: None }
    }

    /// Says it in the log, unless all is well.
    pub fn log(&self) {
        match self.verdict {
            Verdict::Fine => {}
            Verdict::Warning => tracing::warn!(check = self.check, "{self}"),
            Verdict::Wrong => tracing::error!(check = self.check, "{self}"),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.found)?;
        self.advice.iter().try_for_each(|advice| write!(formatter, ": {advice}"))
    }
}

/// The findings, or one that says that all is well.
#[must_use]
pub fn fine_if_none(check: &'static str, words: &str, findings: Vec<Finding>) -> Vec<Finding> {
    if findings.is_empty() { vec![Finding::fine(check, words)] } else { findings }
}
