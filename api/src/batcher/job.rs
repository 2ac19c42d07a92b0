//! One order that waits to be written.

use std::time::Instant;

use tokio::sync::oneshot;

use super::Refusal;
use crate::domain::NewOrder;
use crate::idempotency::Claim;
use crate::store::Written;

/// An order, and who waits for it.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) order: NewOrder,
    pub(super) headers: Option<String>,
    /// The request's idempotency key, which is its own until it is answered, whether anybody listens or not.
    pub(super) claim: Option<Claim>,
    pub(super) since: Instant,
    /// Whether it comes right after the one before it, in the same request.
    pub(super) follows: bool,
    answer: oneshot::Sender<Result<Written, Refusal>>,
}

impl Job {
    /// One that begins to wait now.
    pub(super) fn new(
        order: NewOrder,
        headers: Option<String>,
        claim: Option<Claim>,
        answer: oneshot::Sender<Result<Written, Refusal>>,
    ) -> Self {
        Self { order, headers, claim, since: Instant::now(), follows: false, answer }
    }

    /// The same, of the request of the one before it.
    pub(super) fn following(self) -> Self {
        Self { follows: true, ..self }
    }

    /// Answers it. A client that no longer listens is no failure.
    pub(super) fn answer(self, answer: Result<Written, Refusal>) {
        // First: whoever has the answer may use the key again.
        drop(self.claim);
        let _ = self.answer.send(answer);
    }
}
