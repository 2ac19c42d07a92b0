//! The pool's connections, each of which comes back to it in time or not at all.
//!
//! sqlx asks each connection that is dropped for a sign of life before the pool has it back, and awaits the answer without a limit. From a server
//! that has vanished no answer comes until the kernel gives up, a quarter of an hour later. Until then the pool lacked the connection's place,
//! and could not be closed.

use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;

use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, PgPool, Postgres};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};

use super::{MaybePostgres, ServerWatch};

/// A pool, and the watch over its server. Clones share both.
#[derive(Debug, Clone)]
pub struct Database {
    pub(super) pool: PgPool,
    watch: ServerWatch,
}

impl Database {
    /// With connections of `pool`, which may be silent for as long as `watch` allows.
    #[must_use]
    pub const fn new(pool: PgPool, watch: ServerWatch) -> Self {
        Self { pool, watch }
    }

    /// For how long what is done with the connections may go without an answer.
    #[must_use]
    pub const fn watch(&self) -> &ServerWatch {
        &self.watch
    }

    /// How many connections there may be.
    #[must_use]
    pub fn connections_max(&self) -> u32 {
        self.pool.options().get_max_connections()
    }

    /// A connection of the pool. Where those that are opened will not do, the error says why.
    ///
    /// # Errors
    /// When none is to be had in time.
    pub async fn acquire(&self) -> Result<PooledConnection, sqlx::Error> {
        let begun = Instant::now();
        let acquired = self.pool.acquire().await;
        if matches!(acquired, Err(sqlx::Error::PoolTimedOut))
            && let Some((at, why)) = self.watch.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
            && at >= begun
        {
            return Err(std::io::Error::other(why).into());
        }
        Ok(PooledConnection { connection: acquired?, closes: false, watch: self.watch.clone() })
    }

    /// Does `work` on a connection of the pool, for as long as its server is not silent for too long.
    ///
    /// # Errors
    /// Those of `work`, of [`Self::acquire`], and of [`ServerWatch::bound`].
    pub async fn with<T, E: MaybePostgres>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, E> {
        self.watch.bound(async { work(&mut *self.acquire().await?).await }).await
    }

    /// Closes the pool, once all its connections have come back.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// A connection of a pool. Dropped, it comes back to the pool, or is closed if the server does not answer in time.
#[derive(Debug)]
pub struct PooledConnection {
    connection: PoolConnection<Postgres>,
    closes: bool,
    watch: ServerWatch,
}

impl PooledConnection {
    /// Has it closed when it is dropped, without asking the server.
    pub fn close_on_drop(&mut self) {
        self.closes = true;
    }
}

impl Deref for PooledConnection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for PooledConnection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        if self.closes {
            // sqlx has a limit for this way.
            self.connection.close_on_drop();
            return;
        }
        // `self.connection` is empty from here on. Dropping this future closes the connection and frees its place.
        let back = self.connection.return_to_pool();
        let Ok(runtime) = Handle::try_current() else { return };
        let watch = self.watch.clone();
        runtime.spawn(async move {
            if timeout(watch.way_back_max(), back).await.is_err() {
                watch.notice();
            }
        });
    }
}
