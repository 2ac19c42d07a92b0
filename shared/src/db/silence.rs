//! Servers that vanish: a host that is gone closes no connection, and what was asked of it is never answered.
//!
//! The kernel would notice after a quarter of an hour of resending, and sqlx gives no way to its sockets, so the limit is ours.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, Sleep, timeout};

use super::RESTED;

/// How long a server may take to answer when nothing was asked of it.
const PING_MAX: Duration = Duration::from_secs(2);

/// So long after a silence each connection that comes back to its pool is tried.
const SUSPICION: Duration = Duration::from_secs(5);

/// For how long the server may be silent, and when it last was. Clones share that.
#[derive(Debug, Clone)]
pub struct Silence {
    limit: Duration,
    noticed_at: Arc<Mutex<Option<Instant>>>,
}

impl Default for Silence {
    /// That of a database whose settings say nothing of it.
    fn default() -> Self {
        Self::new(Duration::from_secs(10))
    }
}

impl Silence {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, noticed_at: Arc::default() }
    }

    /// Does `work`, for as long as something of it is answered within the limit. However many statements it has, each has that long.
    /// After that it is dropped, and its connection with it.
    ///
    /// Work is polled when an answer comes, or anything else that it waits for, so being polled is its sign of life. It must not share
    /// its task with anything else that is waited for.
    ///
    /// # Errors
    /// Those of `work`, and [`std::io::ErrorKind::TimedOut`] after a silence.
    pub async fn bound<T, E: From<sqlx::Error>>(&self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let mut bound =
            Bound { work: Box::pin(work), limit: self.limit, end: Box::pin(tokio::time::sleep(self.limit)) };
        if let Some(done) = (&mut bound).await {
            return done;
        }
        // Before the work is dropped: its connection comes back to the pool then, which must know.
        let error = self.noticed();
        drop(bound);
        Err(error.into())
    }

    fn noticed(&self) -> sqlx::Error {
        *self.noticed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let text = format!("no answer for {} s: the server, or the way to it, is gone", self.limit.as_secs_f32());
        std::io::Error::new(std::io::ErrorKind::TimedOut, text).into()
    }

    /// Whether the server was silent since `instant`.
    fn is_since(&self, instant: Instant) -> bool {
        self.noticed_at.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|noticed_at| noticed_at >= instant)
    }

    /// Asks for a sign of life.
    async fn ping(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        timeout(PING_MAX, connection.ping()).await.unwrap_or_else(|_| Err(self.noticed()))
    }

    /// Has a pool try a connection that has rested before it is used, and, after a silence, each one that comes back. Of connections to a host
    /// that is gone only the first costs [`PING_MAX`]: those that were not used since go at once.
    pub(super) fn watch(&self, pool: PgPoolOptions) -> PgPoolOptions {
        let (ours, theirs) = (self.clone(), self.clone());
        pool.test_before_acquire(false)
            .before_acquire(move |connection, idle| {
                let silence = ours.clone();
                Box::pin(async move {
                    if Instant::now().checked_sub(idle.idle_for).is_some_and(|used_at| silence.is_since(used_at)) {
                        return Ok(false);
                    }
                    if idle.idle_for >= RESTED {
                        silence.ping(connection).await?;
                    }
                    Ok(true)
                })
            })
            .after_release(move |connection, _| {
                let silence = theirs.clone();
                Box::pin(async move {
                    if Instant::now().checked_sub(SUSPICION).is_some_and(|instant| silence.is_since(instant)) {
                        silence.ping(connection).await?;
                    }
                    Ok(true)
                })
            })
    }
}

/// Work that ends with `None` when it was silent for too long.
struct Bound<W> {
    work: Pin<Box<W>>,
    limit: Duration,
    end: Pin<Box<Sleep>>,
}

impl<W: Future> Future for Bound<W> {
    type Output = Option<W::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let is_over = self.end.as_mut().poll(context).is_ready();
        if let Poll::Ready(done) = self.work.as_mut().poll(context) {
            return Poll::Ready(Some(done));
        }
        if is_over {
            return Poll::Ready(None);
        }
        let end = Instant::now() + self.limit;
        self.end.as_mut().reset(end);
        // Registers the waker, which a reset does not.
        let _ = self.end.as_mut().poll(context);
        Poll::Pending
    }
}
