//! Places where a test can have the process die, as a power cut would: without unwinding, flushing or goodbye.

use serde::Deserialize;

/// `PROCESSOR_FAILPOINT`: for tests only. The process aborts when it first comes to this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failpoint {
    /// The effects of a batch are written, nothing is committed.
    BeforeDbCommit,
    /// A batch is committed in Postgres and not yet in Kafka.
    AfterDbCommit,
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
