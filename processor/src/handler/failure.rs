//! Why events were not applied, and what is to become of them. Pure.

use std::error::Error;
use std::fmt;

use shared::db::words;

use crate::dead_letter::storable;
use crate::record::PayloadError;

/// What is kept of a reason: a handler may put anything into it.
const REASON_BYTES_MAX: usize = 4_000;

/// What may help an event that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// Time: it is tried again, later and later, for as long as the settings say. Its key waits meanwhile.
    Retryable,
    /// An elder event of its key that has not been applied yet. Its key waits for that one, for a limited time.
    TooEarly,
    /// Nothing but a person: its key is parked.
    Permanent,
}

/// Why one event was not applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What may help it.
    pub kind: FailureKind,
    /// For whoever looks at the dead letters.
    pub reason: String,
}

impl Failure {
    /// Fails with `reason`, as `kind`.
    pub fn new(kind: FailureKind, reason: impl fmt::Display) -> Self {
        Self { kind, reason: reason.to_string() }
    }
}

/// Why a handler did not apply a slice of events.
#[derive(Debug)]
pub enum HandlerError {
    /// Something that may be better next time, with some event that the handler cannot name: it is found by halving the slice. If
    /// it is an error of sqlx that says that the database is away or that the transaction lost to another one, no event is
    /// at fault: then the whole batch is rolled back and tried again.
    Retryable(Box<dyn Error + Send + Sync>),
    /// Something that will be the same next time, with some event that the handler cannot name: it is found by halving.
    Permanent(String),
    /// Events that failed, by their index in the slice. The others come again, without what follows these in their keys.
    Events(Vec<(usize, Failure)>),
}

/// The failures that name their events, and what is to be said of an event that is found without being named.
pub(crate) type Parts = (Vec<(usize, Failure)>, Failure);

impl HandlerError {
    /// Some event of the slice may be applied later.
    pub fn retryable(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Retryable(error.into())
    }

    /// The event at `index` of the slice may be applied later.
    pub fn retryable_at(index: usize, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::retryable(error).at(index)
    }

    /// The event at `index` of the slice came before an elder one of its key, which is to be applied first.
    pub fn too_early_at(index: usize, reason: impl fmt::Display) -> Self {
        Self::Events(vec![(index, Failure::new(FailureKind::TooEarly, reason))])
    }

    /// Some event of the slice will never be applied.
    pub fn permanent(reason: impl fmt::Display) -> Self {
        Self::Permanent(reason.to_string())
    }

    /// The event at `index` of the slice will never be applied.
    pub fn permanent_at(index: usize, reason: impl fmt::Display) -> Self {
        Self::permanent(reason).at(index)
    }

    /// These events of the slice will never be applied: index and reason of each.
    #[must_use]
    pub fn refused(refused: Vec<(usize, String)>) -> Self {
        let failure = |(index, reason)| (index, Failure { kind: FailureKind::Permanent, reason });
        Self::Events(refused.into_iter().map(failure).collect())
    }

    /// These events of the slice failed: index and failure of each.
    #[must_use]
    pub const fn events(failed: Vec<(usize, Failure)>) -> Self {
        Self::Events(failed)
    }

    /// Names the event at `index`, if the error names none and is about one.
    pub(crate) fn at(self, index: usize) -> Self {
        match self {
            Self::Retryable(error) if !is_of_the_database(&*error) => {
                Self::Events(vec![(index, Failure::new(FailureKind::Retryable, words(&*error)))])
            }
            Self::Permanent(reason) => Self::Events(vec![(index, Failure { kind: FailureKind::Permanent, reason })]),
            other => other,
        }
    }

    /// Takes the error apart: what is known of which event, with reasons that can be stored. `Err`: no event is at fault.
    pub(crate) fn into_parts(self) -> Result<Parts, Box<dyn Error + Send + Sync>> {
        let (mut events, mut unnamed) = match self {
            Self::Retryable(error) if is_of_the_database(&*error) => return Err(error),
            Self::Retryable(error) => (Vec::new(), Failure::new(FailureKind::Retryable, words(&*error))),
            Self::Permanent(reason) => (Vec::new(), Failure { kind: FailureKind::Permanent, reason }),
            Self::Events(events) => {
                let unnamed =
                    Failure::new(FailureKind::Permanent, "the handler failed without saying over which event");
                (events, unnamed)
            }
        };
        for failure in events.iter_mut().map(|(_, failure)| failure).chain([&mut unnamed]) {
            failure.reason = storable(&failure.reason, REASON_BYTES_MAX);
        }
        Ok((events, unnamed))
    }
}

/// What a handler's statement asks for is missing in the database.
#[derive(Debug, thiserror::Error)]
#[error(
    "the partition waits, because the handler of {event_type} misses a table, a column, a function or a grant: {}",
    words(&**missing)
)]
struct Unprepared {
    event_type: String,
    missing: Box<dyn Error + Send + Sync>,
}

/// Says of which handler `error` is, if an operator has to know: it is over what is missing in the database, and ends by no other doing.
pub(crate) fn named(event_type: &str, error: Box<dyn Error + Send + Sync>) -> Box<dyn Error + Send + Sync> {
    let state = error.downcast_ref::<sqlx::Error>().and_then(shared::db::sql_state);
    if state.is_some_and(|state| state.starts_with("42")) {
        Box::new(Unprepared { event_type: event_type.to_owned(), missing: error })
    } else {
        error
    }
}

/// Whether an error says something of the database or the transaction, and nothing of any event: the connection is gone (08, or not
/// even an answer), the transaction lost to another one (40), resources are short (53), the server is shutting down or coming up
/// (57P0x), it is broken (58), it became a replica (25006). Also a table, a column, a function or a grant that is missing
/// (42): that hits every event alike, and to give all of them up would be worse than to wait for the operator.
fn is_of_the_database(error: &(dyn Error + Send + Sync + 'static)) -> bool {
    match error.downcast_ref::<sqlx::Error>() {
        Some(sqlx::Error::Database(error)) => error.code().is_some_and(|code| {
            ["08", "40", "42", "53", "57P0", "58", "25006"].iter().any(|class| code.starts_with(class))
        }),
        Some(
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed,
        ) => true,
        _ => false,
    }
}

impl From<PayloadError> for HandlerError {
    fn from(error: PayloadError) -> Self {
        Self::permanent(error)
    }
}

impl From<sqlx::Error> for HandlerError {
    /// What the data are to blame for is permanent: data exceptions (22), violated constraints (23), a function of the user's
    /// that raised (P0001), and statements after such a failure (25P02). Anything else is worth another try.
    fn from(error: sqlx::Error) -> Self {
        let state = shared::db::sql_state(&error);
        let blames_data = state.is_some_and(|state| {
            ["22", "23"].iter().any(|class| state.starts_with(class)) || state == "P0001" || state == "25P02"
        });
        let blames_data = blames_data
            || matches!(error, sqlx::Error::RowNotFound | sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_));
        if blames_data { Self::permanent(words(&error)) } else { Self::retryable(error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_named_once_and_the_databases_own_never() {
        let kinds = |error: HandlerError| match error.at(3) {
            HandlerError::Events(events) => events.into_iter().map(|(index, failure)| (index, failure.kind)).collect(),
            _ => Vec::new(),
        };
        assert_eq!(kinds(HandlerError::retryable("later")), [(3, FailureKind::Retryable)]);
        assert_eq!(kinds(HandlerError::permanent("never")), [(3, FailureKind::Permanent)]);
        assert_eq!(kinds(HandlerError::too_early_at(1, "not yet")), [(1, FailureKind::TooEarly)]);
        assert_eq!(kinds(HandlerError::retryable(sqlx::Error::WorkerCrashed)), []);
        assert!(HandlerError::retryable_at(3, sqlx::Error::PoolTimedOut).into_parts().is_err());
    }
}
