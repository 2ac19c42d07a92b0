//! Places where a test can have the process die, as a power cut would: without unwinding, flushing or goodbye.

use serde::Deserialize;

/// `PROCESSOR_FAILPOINT`: for tests only. The process aborts when it first comes to this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failpoint {
    /// The events of a batch, or of blocked keys, are in the inbox.
    AfterInbox,
    /// Their handlers have been called, as often as it takes.
    AfterHandlers,
    /// The keys of a batch that failed are blocked.
    AfterBlocking,
    /// What a batch could not apply is in the dead letters.
    AfterBurying,
    /// The effects of a batch are written, nothing is committed.
    BeforeDbCommit,
    /// A batch is committed in Postgres and not yet in Kafka.
    AfterDbCommit,
    /// Blocked keys are locked, to be tried again.
    KeysLocked,
    /// Those of their events that could be applied are, and are taken out of the dead letters.
    KeysApplied,
    /// What becomes of these keys is written.
    KeysChanged,
    /// So is the answer to an operator, and nothing is committed.
    KeysBeforeCommit,
    /// It is committed.
    KeysAfterCommit,
}

impl Failpoint {
    /// Aborts the process if `chosen` is this place.
    pub fn reached(self, chosen: Option<Self>) {
        if chosen == Some(self) {
            tracing::error!(failpoint = ?self, "aborting, as PROCESSOR_FAILPOINT says");
            std::process::abort();
        }
    }
}
