//! What a user implements for their own events.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::FutureExt;
use sqlx::PgConnection;

use crate::record::Event;

pub(crate) mod failure;

pub use self::failure::{Failure, FailureKind, HandlerError};

/// Applies events of one type to the database.
///
/// The events of a key come in their order, each once; a call may be for events of several partitions of a topic. What the handler writes
/// through `connection` commits together with the partitions' positions, or not at all; so it must not commit or roll back by itself (savepoints are fine), and what it
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
    /// A [`HandlerError`] undoes this call. The events at fault, named or found by halving, wait with the later ones of their keys in
    /// the dead letters, to be tried again or until an operator looks at them; the other events come again at once.
    fn handle(
        &self,
        events: &[Event<'_>],
        connection: &mut PgConnection,
    ) -> impl Future<Output = Result<Handled, HandlerError>> + Send;

    /// Called when `event` is given up for now: the handler refused it for good, or too often, for `reason`. It and the later events
    /// of its key wait for an operator, who may have it applied later: then [`EventHandler::handle`] gets it again. What this writes
    /// through `connection` commits together with that.
    ///
    /// # Errors
    /// Undo what the call has written; the key is parked all the same. Only when the database is away is the batch rolled back.
    fn on_parked(
        &self,
        event: &Event<'_>,
        reason: &str,
        connection: &mut PgConnection,
    ) -> impl Future<Output = Result<(), HandlerError>> + Send {
        let _ = (event, reason, connection);
        std::future::ready(Ok(()))
    }
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

    /// As [`EventHandler::on_parked`].
    ///
    /// # Errors
    /// As there.
    fn on_parked(
        &self,
        event: &Event<'_>,
        reason: &str,
        connection: &mut PgConnection,
    ) -> impl Future<Output = Result<(), HandlerError>> + Send {
        let _ = (event, reason, connection);
        std::future::ready(Ok(()))
    }
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

    async fn on_parked(
        &self,
        event: &Event<'_>,
        reason: &str,
        connection: &mut PgConnection,
    ) -> Result<(), HandlerError> {
        self.0.on_parked(event, reason, connection).await
    }
}

/// What came of a slice of events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Handled {
    /// How many of them had no effect, because a later state had overtaken them. Only counted.
    pub superseded: usize,
}

type Outcome<'a, T> = Pin<Box<dyn Future<Output = Result<T, HandlerError>> + Send + 'a>>;

/// [`EventHandler`] with its future in a box, so that handlers of different types fit in one table.
trait ErasedHandler: Send + Sync {
    fn handle<'a>(&'a self, events: &'a [Event<'a>], connection: &'a mut PgConnection) -> Outcome<'a, Handled>;

    fn on_parked<'a>(
        &'a self,
        event: &'a Event<'a>,
        reason: &'a str,
        connection: &'a mut PgConnection,
    ) -> Outcome<'a, ()>;
}

impl<H: EventHandler> ErasedHandler for H {
    fn handle<'a>(&'a self, events: &'a [Event<'a>], connection: &'a mut PgConnection) -> Outcome<'a, Handled> {
        Box::pin(EventHandler::handle(self, events, connection))
    }

    fn on_parked<'a>(
        &'a self,
        event: &'a Event<'a>,
        reason: &'a str,
        connection: &'a mut PgConnection,
    ) -> Outcome<'a, ()> {
        Box::pin(EventHandler::on_parked(self, event, reason, connection))
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
        AssertUnwindSafe(handler.handle(events, connection))
            .catch_unwind()
            .await
            .unwrap_or_else(|panic| Err(panicked(&*panic)))
    }

    /// Lets the handler of `event`'s type know that it is parked.
    pub(crate) async fn on_parked(
        &self,
        event: &Event<'_>,
        reason: &str,
        connection: &mut PgConnection,
    ) -> Result<(), HandlerError> {
        let Some(handler) = self.0.get(event.event_type()) else { return Ok(()) };
        let told = AssertUnwindSafe(handler.on_parked(event, reason, connection)).catch_unwind().await;
        told.unwrap_or_else(|panic| Err(panicked(&*panic)))
    }
}

fn panicked(panic: &(dyn Any + Send)) -> HandlerError {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or_default();
    HandlerError::permanent(format_args!("the handler panicked: {text}"))
}
