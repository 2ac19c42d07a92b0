//! Connections that are no good any more, though they are open: of a host that vanished, which closes nothing and answers nothing, and to a
//! server that has become a standby.
//!
//! The kernel would notice the first after a quarter of an hour of resending, and sqlx gives no way to its sockets, so the limit is ours.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use sqlx::postgres::PgPoolOptions;
use sqlx::{PgConnection, Row};
use tokio::time::{Instant, Sleep, timeout};

use super::RESTED;

/// An error that may be one of Postgres.
pub trait MaybePostgres: From<sqlx::Error> {
    /// That, if it is.
    fn postgres(&self) -> Option<&sqlx::Error>;
}

impl MaybePostgres for sqlx::Error {
    fn postgres(&self) -> Option<&sqlx::Error> {
        Some(self)
    }
}

/// How long a server may take to answer when nothing was asked of it.
const PING_MAX: Duration = Duration::from_secs(2);

/// Whether the session would take a write. Not checked at build time: it reads no table.
pub const TAKES_WRITES: &str =
    "SELECT NOT pg_is_in_recovery() AND NOT current_setting('transaction_read_only')::boolean";

/// SQLSTATE of a write in a transaction that takes none.
pub const READ_ONLY: &str = "25006";

/// So long after that each connection that comes back to its pool is tried.
const SUSPICION: Duration = Duration::from_secs(5);

/// For how long the server may be silent, and when a connection was last found to be no good. Clones share that.
#[derive(Debug, Clone)]
pub struct ServerWatch {
    limit: Duration,
    noticed_at: Moment,
    /// Why a connection that was opened would not do, and when.
    pub(super) refused: Arc<Mutex<Option<(Instant, String)>>>,
}

impl Default for ServerWatch {
    /// That of a database whose settings say nothing of it.
    fn default() -> Self {
        Self::new(Duration::from_secs(10))
    }
}

impl ServerWatch {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, noticed_at: Moment::default(), refused: Arc::default() }
    }

    /// Does `work`, for as long as something of it is answered within the limit. However many statements it has, each has that long.
    /// After that it is dropped, and its connection with it.
    ///
    /// Work is woken when an answer comes, or anything else that it waits for: that is its sign of life.
    ///
    /// # Errors
    /// Those of `work`, and [`std::io::ErrorKind::TimedOut`] after a silence.
    pub async fn bound<T, E: MaybePostgres>(&self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let mut bound = Bound {
            work: Box::pin(work),
            limit: self.limit,
            end: Box::pin(tokio::time::sleep(self.limit)),
            sign: Arc::default(),
        };
        let Some(done) = (&mut bound).await else {
            // Before the work is dropped: its connection comes back to the pool then, which must know.
            return Err(self.silent().into());
        };
        if let Some(error) = done.as_ref().err().and_then(MaybePostgres::postgres) {
            self.heard(error);
        }
        done
    }

    /// Takes note of what a statement was answered with: after 25006 all connections are tried, as one that stays on a server which takes
    /// no writes would answer so for ever.
    pub fn heard(&self, error: &sqlx::Error) {
        if super::sql_state(error).is_some_and(|state| state == READ_ONLY) {
            self.notice();
        }
    }

    /// How long a connection may be on its way back to the pool. Short, since other work may wait for its place, and must not run into its own limit
    /// meanwhile. A connection whose statement was dropped in the middle and takes longer is closed, which ends the statement as well.
    pub(super) fn way_back_max(&self) -> Duration {
        PING_MAX.min(self.limit / 2)
    }

    pub(super) fn notice(&self) {
        self.noticed_at.set_now();
    }

    fn silent(&self) -> sqlx::Error {
        self.notice();
        let text = format!("no answer for {} s: the server, or the way to it, is gone", self.limit.as_secs_f32());
        std::io::Error::new(std::io::ErrorKind::TimedOut, text).into()
    }

    /// Takes note of why a connection of a pool will not do. The pool itself keeps that to itself, and tries again.
    pub(super) fn refuse(&self, why: &impl std::fmt::Display) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), why.to_string()));
    }

    /// Asks for a sign of life, of a session that takes writes. One round trip.
    async fn try_out(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let takes_writes = async { sqlx::raw_sql(TAKES_WRITES).fetch_one(connection).await?.try_get::<bool, _>(0) };
        match timeout(PING_MAX, takes_writes).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(std::io::Error::other("the connection takes no writes").into()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(self.silent()),
        }
    }

    /// Has a pool try a connection that has rested before it is used, and, after one was no good, each one that comes back. Of connections to a host
    /// that is gone only the first costs [`PING_MAX`]: those that were not used since go at once.
    pub(super) fn watch(&self, pool: PgPoolOptions) -> PgPoolOptions {
        let (ours, theirs) = (self.clone(), self.clone());
        pool.test_before_acquire(false)
            .before_acquire(move |connection, idle| {
                let watch = ours.clone();
                Box::pin(async move {
                    if Instant::now()
                        .checked_sub(idle.idle_for)
                        .is_some_and(|used_at| watch.noticed_at.is_since(used_at))
                    {
                        return Ok(false);
                    }
                    if idle.idle_for >= RESTED {
                        watch.try_out(connection).await?;
                    }
                    Ok(true)
                })
            })
            .after_release(move |connection, _| {
                let watch = theirs.clone();
                Box::pin(async move {
                    if watch.noticed_at.is_within(SUSPICION) {
                        watch.try_out(connection).await?;
                    }
                    Ok(true)
                })
            })
    }
}

/// When something last happened. Clones share it.
#[derive(Debug, Clone, Default)]
struct Moment(Arc<Mutex<Option<Instant>>>);

impl Moment {
    fn set_now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn is_since(&self, instant: Instant) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at >= instant)
    }

    fn is_within(&self, time: Duration) -> bool {
        Instant::now().checked_sub(time).is_some_and(|instant| self.is_since(instant))
    }
}

/// Work that ends with `None` when it was silent for too long.
struct Bound<W> {
    work: Pin<Box<W>>,
    limit: Duration,
    end: Pin<Box<Sleep>>,
    sign: Arc<SignOfLife>,
}

/// The waker of the work alone: its task may be woken for other things as well.
#[derive(Default)]
struct SignOfLife {
    was_woken: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Wake for SignOfLife {
    fn wake(self: Arc<Self>) {
        self.was_woken.store(true, Ordering::Release);
        if let Some(task) = &*self.task.lock().unwrap_or_else(PoisonError::into_inner) {
            task.wake_by_ref();
        }
    }
}

impl<W: Future> Future for Bound<W> {
    type Output = Option<W::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let task = self.sign.task.lock().unwrap_or_else(PoisonError::into_inner).replace(context.waker().clone());
        // The first poll wakes it.
        if task.is_none() || self.sign.was_woken.swap(false, Ordering::AcqRel) {
            let waker = Waker::from(Arc::clone(&self.sign));
            if let Poll::Ready(done) = self.work.as_mut().poll(&mut Context::from_waker(&waker)) {
                return Poll::Ready(Some(done));
            }
            let end = Instant::now() + self.limit;
            self.end.as_mut().reset(end);
        }
        self.end.as_mut().poll(context).map(|()| None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> ServerWatch {
        ServerWatch::new(Duration::from_millis(200))
    }

    #[tokio::test]
    async fn work_may_take_long_as_long_as_it_gives_a_sign() {
        let work = async {
            for _ in 0..6 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok::<_, sqlx::Error>(7)
        };
        assert_eq!(watch().bound(work).await.expect("done"), 7);
    }

    #[tokio::test]
    async fn work_without_a_sign_is_given_up_however_lively_its_task_is() {
        let watch = watch();
        let before = Instant::now();
        let silent = watch.bound(std::future::pending::<Result<(), sqlx::Error>>());
        let lively = async {
            loop {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let error = tokio::select! { done = silent => done.unwrap_err(), () = lively => unreachable!() };
        assert!(super::super::is_retryable(&error), "{error}");
        assert!(before.elapsed() < Duration::from_secs(2));
        assert!(watch.noticed_at.is_since(before));
    }
}
