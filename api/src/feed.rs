//! The feed: one task that reads what becomes of orders and hands it to all who watch or wait, however many they are.
//!
//! It reads the outbox by snapshots ([`cursor`]), so that transactions that commit late are neither missed nor repeated, and only while
//! somebody listens. Readers ([`stream`]) come in at one of its looks and hear everything from there on; what they have missed before,
//! they read by themselves, up to that very look.

pub mod cursor;
pub mod ending;
pub mod event;
pub mod hub;
mod low;
mod reader;
pub mod settings;
pub mod signing;
pub mod snapshot;
pub mod stream;

use std::sync::Arc;
use std::time::Duration;

use shared::backoff::Backoff;
use shared::db::DatabaseConfig;
use shared::shutdown::Shutdown;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use self::cursor::Cursor;
use self::hub::{Hub, Settled};
use self::low::Low;
use self::settings::Watching;
use self::signing::CursorKeys;
use crate::config::Limits;
use crate::metrics::FeedMetrics;
use crate::store::feed::{Anchor, FeedConnection};
use crate::store::{Orders, StoreError};

/// Heartbeats are spread over so many moments, so that thousands of readers are not woken at once.
const TURNS: u64 = 60;

/// Readers that may read what they have missed at the same time: it must not take the pool from others.
const CATCHING_UP_MAX: usize = 3;

/// Whoever watches orders or waits for one begins here.
#[derive(Debug)]
pub struct Feed {
    hub: Hub,
    keys: Arc<CursorKeys>,
    orders: Orders,
    watching: Watching,
    catching_up: Semaphore,
    connect_timeout: Duration,
}

impl Feed {
    /// Starts the feed in `tasks`, which end with the shutdown.
    pub async fn start(
        (database, orders): (&DatabaseConfig, Orders),
        limits: &Limits,
        metrics: &FeedMetrics,
        shutdown: &Shutdown,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let keys = Arc::new(CursorKeys::empty());
        if let Err(error) = keys.refresh(&orders).await {
            tracing::warn!(error = %error, "there are no keys for positions in event streams yet, will try again");
        }
        tasks.spawn({
            let (keys, orders, shutdown) = (Arc::clone(&keys), orders.clone(), shutdown.clone());
            async move { keys.keep(&orders, &shutdown).await }
        });
        let hub = Hub::new(metrics.clone(), Arc::clone(&keys), limits.watching);
        let poller = Poller {
            hub: hub.clone(),
            connection: FeedConnection::new(database, limits),
            cursor: None,
            low: Low::new(1),
            quiet: false,
            metrics: metrics.clone(),
        };
        tasks.spawn(poller.run(limits.watching, shutdown.clone()));
        tasks.spawn(beat(
            hub.clone(),
            limits.watching.heartbeat() / u32::try_from(TURNS).unwrap_or(1),
            shutdown.clone(),
        ));
        tasks.spawn(end(hub.clone(), shutdown.clone()));
        let catching_up = Semaphore::new(CATCHING_UP_MAX);
        Self { hub, keys, orders, watching: limits.watching, catching_up, connect_timeout: limits.connect_timeout() }
    }

    /// Waits until an order that was just written is Pending no more, for `patience` at most, and returns what has become of it; none: it is
    /// as it was.
    ///
    /// The order may be processed before we listen, or while we begin to. So we first listen, and look at the order only when the feed
    /// says that it hands us every change from its cursor on: whatever was committed before that cursor was read, the look sees, and
    /// whatever was committed after it, the feed brings.
    pub async fn settled(&self, order_id: i64, patience: Duration) -> Option<Settled> {
        let deadline = Instant::now() + patience;
        let (_listening, settled, joined) = self.hub.wait_for(order_id).ok()?;
        let wait = async {
            joined.await.ok()?;
            match self.orders.settled(order_id).await {
                Ok(Some(settled)) => Some(settled),
                // The feed may say it all the same.
                Ok(None) | Err(_) => settled.await.ok(),
            }
        };
        timeout_at(deadline, wait).await.ok().flatten()
    }

    /// The longest that a request may wait for its order, in seconds.
    #[must_use]
    pub const fn wait_max_secs(&self) -> u64 {
        self.watching.wait_max_secs
    }
}

/// Ends all streams and all waiting when the shutdown is asked for, or their connections would hold it up.
async fn end(hub: Hub, shutdown: Shutdown) {
    shutdown.requested().await;
    hub.end(event::farewell);
}

async fn beat(hub: Hub, every: Duration, shutdown: Shutdown) {
    let mut turn = 0;
    loop {
        tokio::select! {
            () = hub.streaming() => {}
            () = shutdown.requested() => return,
        }
        if !shutdown.sleep(every).await {
            return;
        }
        turn = (turn + 1) % TURNS;
        hub.beat(turn, TURNS);
    }
}

struct Poller {
    hub: Hub,
    connection: FeedConnection,
    cursor: Option<Cursor>,
    low: Low,
    /// The last look found nothing.
    quiet: bool,
    metrics: FeedMetrics,
}

/// What a look at the outbox found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    Rows,
    /// Rows, and there are more.
    More,
}

impl Poller {
    async fn run(mut self, watching: Watching, shutdown: Shutdown) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let mut wait = watching.poll_min();
        while !shutdown.is_requested() {
            if self.hub.is_deserted() {
                self.rest(&shutdown).await;
                continue;
            }
            let looked = tokio::select! {
                looked = self.look() => looked,
                () = shutdown.requested() => return,
            };
            match looked {
                Ok(Found::More) => continue,
                Ok(Found::Rows) => wait = watching.poll_min(),
                Ok(Found::Nothing) => wait = (wait * 2).min(watching.poll_max()),
                Err(error) => {
                    if backoff.attempts() == 0 {
                        tracing::warn!(error = %error, "the outbox cannot be read for those who watch orders, will try again");
                    }
                    sleep_until(&shutdown, backoff.random_delay()).await;
                    continue;
                }
            }
            backoff.reset();
            // Whoever comes is let in at the next look, which is not sooner than after the shortest wait: looks cost the same for one and
            // for a thousand.
            sleep_until(&shutdown, watching.poll_min()).await;
            tokio::select! {
                () = sleep(wait.saturating_sub(watching.poll_min())) => {}
                () = self.hub.wanted() => {}
                () = shutdown.requested() => return,
            }
        }
    }

    /// Nobody listens: no look, and no connection, until somebody does.
    async fn rest(&mut self, shutdown: &Shutdown) {
        self.cursor = None;
        self.connection.close().await;
        tokio::select! {
            () = self.hub.wanted() => {}
            () = shutdown.requested() => {}
        }
    }

    async fn look(&mut self) -> Result<Found, StoreError> {
        let latest = self.hub.latest();
        self.metrics.reads.inc();
        let reopened = !self.connection.is_open();
        if let Some(cursor) = &self.cursor
            && reopened
        {
            // It may be another server now, or the outbox may have been dropped from meanwhile.
            let anchor = self.connection.anchor().await?;
            if gone(cursor, &anchor) {
                tracing::warn!(
                    "the outbox does not go on where it was read before; those who watch orders are cut off"
                );
                self.hub.cut_off_all(|| event::cut_off("the stream cannot be continued"));
                self.cursor = None;
            }
        }
        let Some(cursor) = &self.cursor else {
            let anchor = self.connection.anchor().await?;
            self.low = Low::new(anchor.first_id);
            let low = self.low.note(&anchor.snapshot, anchor.position);
            let Anchor { snapshot: seen, cluster, position, .. } = anchor;
            let cursor = Cursor { cluster, low, position, seen, part: None };
            self.hub.let_in(latest, &cursor);
            self.cursor = Some(cursor);
            return Ok(Found::Nothing);
        };
        // Nothing has committed: a look at the rows would find nothing.
        if self.quiet && cursor.part.is_none() && self.connection.snapshot().await? == cursor.seen {
            self.hub.let_in(latest, cursor);
            return Ok(Found::Nothing);
        }
        let mut page = self.connection.read(cursor).await?;
        let whole = page.cursor.part.is_none();
        if whole {
            page.cursor.low = self.low.note(&page.next, page.cursor.position).max(cursor.low);
        }
        self.hub.hand_out(cursor, &page);
        self.quiet = whole && page.rows.is_empty();
        if whole {
            self.hub.let_in(latest, &page.cursor);
        }
        self.cursor = Some(page.cursor);
        Ok(match (whole, self.quiet) {
            (false, _) => Found::More,
            (true, false) => Found::Rows,
            (true, true) => Found::Nothing,
        })
    }
}

/// Whether what comes after `cursor` is not, or not surely, there any more: the cursor is of another database or of a history that this one does
/// not have, or partitions were dropped with rows in them that it may not have handed out.
fn gone(cursor: &Cursor, anchor: &Anchor) -> bool {
    cursor.cluster != anchor.cluster
        || !anchor.snapshot.sees_all_of(cursor.latest())
        || anchor.first_id > cursor.low.saturating_add(1)
}

async fn sleep_until(shutdown: &Shutdown, wait: Duration) {
    let _ = shutdown.sleep(wait).await;
}

#[cfg(test)]
mod tests {
    use super::snapshot::Snapshot;
    use super::*;

    #[test]
    fn a_cursor_is_gone_when_rows_may_be_missing_behind_it() {
        let of = |text| Snapshot::parse(text).expect("a snapshot");
        let cursor = Cursor { cluster: 1, low: 99, position: 200, seen: of("10:20:10"), part: None };
        let anchor = Anchor { snapshot: of("30:30:"), cluster: 1, position: 300, first_id: 100 };
        assert!(!gone(&cursor, &anchor));
        assert!(gone(&cursor, &Anchor { first_id: 101, ..anchor.clone() }), "row 100 was dropped");
        assert!(gone(&cursor, &Anchor { cluster: 2, ..anchor.clone() }));
        assert!(gone(&cursor, &Anchor { snapshot: of("10:20:10,15"), ..anchor }), "15 had ended before");
    }
}
