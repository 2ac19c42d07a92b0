//! What becomes of blocked keys, and its form for the database.

use std::time::Duration;

use crate::dead_letter::Reason;

/// Why a key waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// Its first event is tried again.
    Retrying,
    /// Its first event waits for its elder.
    Waiting,
    /// Its first event waits for an operator.
    Parked,
}

impl State {
    /// As it is written in the database.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Retrying => "retrying",
            Self::Waiting => "waiting",
            Self::Parked => "parked",
        }
    }
}

/// What becomes of a key whose first event has failed, or of which there is more than one transaction may apply.
#[derive(Debug, Clone)]
pub(crate) struct Change<'a> {
    /// The key.
    pub(crate) key: &'a [u8],
    /// Why it waits now.
    pub(crate) state: State,
    /// Why its first event failed; none: it did not.
    pub(crate) reason: Option<Reason>,
    /// How often its first event was tried.
    pub(crate) attempts: i32,
    /// When it is tried again; none when parked.
    pub(crate) wait: Option<Duration>,
    /// Whether its first event is another one than before, whose age begins now.
    pub(crate) is_new: bool,
}

/// Changes as columns.
pub(super) struct Columns<'a> {
    pub(super) keys: Vec<&'a [u8]>,
    pub(super) states: Vec<&'static str>,
    pub(super) texts: Vec<Option<&'a str>>,
    pub(super) fingerprints: Vec<Option<&'a str>>,
    pub(super) attempts: Vec<i32>,
    pub(super) waits: Vec<Option<f64>>,
}

impl<'a> Columns<'a> {
    pub(super) fn of(changes: &'a [Change<'a>]) -> Self {
        let reasons = || changes.iter().map(|change| change.reason.as_ref());
        Self {
            keys: changes.iter().map(|change| change.key).collect(),
            states: changes.iter().map(|change| change.state.name()).collect(),
            texts: reasons().map(|reason| reason.map(|reason| reason.text.as_str())).collect(),
            fingerprints: reasons().map(|reason| reason.map(|reason| reason.fingerprint.as_str())).collect(),
            attempts: changes.iter().map(|change| change.attempts).collect(),
            waits: changes.iter().map(|change| change.wait.map(|wait| wait.as_secs_f64())).collect(),
        }
    }
}
