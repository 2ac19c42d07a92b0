//! What a user implements for their own events.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::FutureExt;
use sqlx::PgConnection;

use crate::record::{Event, PayloadError};

/// Applies events of one type to the database.
///
/// The events come in the order of their partition, each once. What the handler writes through `connection` commits together
/// with the partition's position, or not at all; so it must not commit or roll back by itself (savepoints are fine), and what it
/// does elsewhere (an HTTP call) may happen more than once. It may be called again with the same events after a failure.
///
/// ```
/// # use processor::handler::{EventHandler, Handled, HandlerError};
/// # use processor::record::Event;
/// struct CountVisits;
///
/// impl EventHandler for CountVisits {
///     async fn handle(&self, events: &[Event<'_>], connection: &mut sqlx::PgConnection) -> Result<Handled, HandlerError> {
///         let pages: Vec<String> = events.iter().map(|event| event.aggregate_id().to_owned()).collect();
///         sqlx::query("UPDATE pages SET visits = visits + v.n FROM (SELECT id, count(*) AS n FROM UNNEST($1::text[]) AS p (id) GROUP BY id) AS v WHERE pages.id = v.id")
///             .bind(pages)
///             .execute(connection)
///             .await?;
///         Ok(Handled::default())
///     }
/// }
/// ```
pub trait EventHandler: Send + Sync + 'static {
    /// Applies `events`, as a set where that can be.
    ///
    /// # Errors
    /// [`HandlerError::Retryable`] rolls the whole batch back, to be tried again later. [`HandlerError::Permanent`] undoes this
    /// call; the offending events go to the dead letters and the others come again.
    fn handle(
        &self,
        events: &[Event<'_>],
        connection: &mut PgConnection,
    ) -> impl Future<Output = Result<Handled, HandlerError>> + Send;
}

/// Like [`EventHandler`] for who would rather see one event at a time; see [`OneByOne`].
pub trait SingleEventHandler: Send + Sync + 'static {
    /// Applies one event.
    ///
    /// # Errors
    /// As for [`EventHandler::handle`].
    fn handle_one(
        &self,
        event: Event<'_>,
        connection: &mut PgConnection,
    ) -> impl Future<Output = Result<(), HandlerError>> + Send;
}

/// Makes an [`EventHandler`] of a [`SingleEventHandler`]. It costs the round trips of each event instead of those of a batch.
#[derive(Debug)]
pub struct OneByOne<H>(pub H);

impl<H: SingleEventHandler> EventHandler for OneByOne<H> {
    async fn handle(&self, events: &[Event<'_>], connection: &mut PgConnection) -> Result<Handled, HandlerError> {
        for (index, event) in events.iter().enumerate() {
            self.0.handle_one(*event, &mut *connection).await.map_err(|error| error.at(index))?;
        }
        Ok(Handled::default())
    }
}

/// What came of a slice of events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Handled {
    /// How many of them had no effect, because a later state had overtaken them. Only counted.
    pub superseded: usize,
}

/// Why a handler did not apply a slice of events.
#[derive(Debug)]
pub enum HandlerError {
    /// Something that may be better next time.
    Retryable(Box<dyn Error + Send + Sync>),
    /// Something that will be the same next time: which events of the slice are refused, and why. An empty list is one event
    /// that the handler cannot name; it is found by halving the slice.
    Permanent {
        /// Index in the slice and reason of each event that is refused.
        refused: Vec<(usize, String)>,
        /// Why, if no event is named.
        reason: String,
    },
}

impl HandlerError {
    /// The slice may be applied later.
    pub fn retryable(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Retryable(error.into())
    }

    /// Some event of the slice will never be applied.
    pub fn permanent(reason: impl fmt::Display) -> Self {
        Self::Permanent { refused: Vec::new(), reason: reason.to_string() }
    }

    /// The event at `index` of the slice will never be applied.
    pub fn permanent_at(index: usize, reason: impl fmt::Display) -> Self {
        Self::refused(vec![(index, reason.to_string())])
    }

    /// These events of the slice will never be applied: index and reason of each.
    #[must_use]
    pub const fn refused(refused: Vec<(usize, String)>) -> Self {
        Self::Permanent { refused, reason: String::new() }
    }

    /// Names the event at `index`, if the error is permanent and names none.
    fn at(self, index: usize) -> Self {
        match self {
            Self::Permanent { refused, reason } if refused.is_empty() => Self::permanent_at(index, reason),
            other => other,
        }
    }
}

impl From<PayloadError> for HandlerError {
    fn from(error: PayloadError) -> Self {
        Self::permanent(error)
    }
}

impl From<sqlx::Error> for HandlerError {
    /// What the data are to blame for is permanent: data exceptions (22), violated constraints (23), a function of the user's
    /// that raised (P0001), and statements after such a failure (25P02). Anything else is worth another try, a missing grant or
    /// table too: to give up every event over them would be worse than to wait for the operator.
    fn from(error: sqlx::Error) -> Self {
        let state = shared::db::sql_state(&error);
        let blames_data = state.is_some_and(|state| {
            ["22", "23"].iter().any(|class| state.starts_with(class)) || state == "P0001" || state == "25P02"
        });
        let blames_data = blames_data
            || matches!(error, sqlx::Error::RowNotFound | sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_));
        if blames_data { Self::permanent(error) } else { Self::retryable(error) }
    }
}

type Outcome<'a> = Pin<Box<dyn Future<Output = Result<Handled, HandlerError>> + Send + 'a>>;

/// [`EventHandler`] with its future in a box, so that handlers of different types fit in one table.
trait ErasedHandler: Send + Sync {
    fn handle<'a>(&'a self, events: &'a [Event<'a>], connection: &'a mut PgConnection) -> Outcome<'a>;
}

impl<H: EventHandler> ErasedHandler for H {
    fn handle<'a>(&'a self, events: &'a [Event<'a>], connection: &'a mut PgConnection) -> Outcome<'a> {
        Box::pin(EventHandler::handle(self, events, connection))
    }
}

/// The handlers by event type.
#[derive(Clone, Default)]
pub struct Handlers(HashMap<String, Arc<dyn ErasedHandler>>);

impl fmt::Debug for Handlers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.0.keys()).finish()
    }
}

impl Handlers {
    /// Gives events of `event_type` to `handler`, instead of to an earlier one.
    pub fn insert(&mut self, event_type: impl Into<String>, handler: impl EventHandler) {
        self.0.insert(event_type.into(), Arc::new(handler));
    }

    /// Whether events of this type have a handler.
    #[must_use]
    pub fn has(&self, event_type: &str) -> bool {
        self.0.contains_key(event_type)
    }

    /// Lets the handler of `event_type` apply `events`. One that panics refuses an event of the slice for good: it would panic
    /// over it again, and the partition with it.
    pub(crate) async fn handle(
        &self,
        event_type: &str,
        events: &[Event<'_>],
        connection: &mut PgConnection,
    ) -> Result<Handled, HandlerError> {
        let Some(handler) = self.0.get(event_type) else { return Ok(Handled::default()) };
        match AssertUnwindSafe(handler.handle(events, connection)).catch_unwind().await {
            Ok(outcome) => outcome,
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
                Err(HandlerError::permanent(format_args!("the handler panicked: {text}")))
            }
        }
    }
}
