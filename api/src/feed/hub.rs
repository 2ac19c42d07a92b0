//! Who listens, and handing what the feed reads to those whom it concerns.
//!
//! Readers are filed by what they want to hear of, so that an event costs those who wait for others nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actix_web::web::Bytes;
use tokio::sync::{Notify, oneshot};

use super::cursor::Cursor;
use super::event::{self, Change};
use super::reader::Reader;
use super::settings::Watching;
use super::signing::CursorKeys;
use crate::listing::Status;
use crate::metrics::FeedMetrics;
use crate::rate::Payer;
use crate::representation::OrderDocument;
use crate::shares::{Share, Shares};
use crate::store::feed::{Page, Row};

/// What a reader wants to hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// The orders of everybody, or of a user; every change, or those to a status.
    Orders(Filter),
    /// One order.
    Order(i64),
}

/// Which changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this user's orders.
    pub user_id: Option<i64>,
    /// To this status.
    pub status: Option<Status>,
}

impl Filter {
    /// Whether the change is one of them.
    #[must_use]
    pub fn takes(&self, change: &Change<'_>) -> bool {
        self.user_id.is_none_or(|user| user == change.user_id()) && self.takes_status(change)
    }

    fn takes_status(&self, change: &Change<'_>) -> bool {
        self.status.is_none_or(|status| status.name() == change.status())
    }
}

/// An order that is Pending no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The order's version.
    pub version: i64,
    /// The order.
    pub document: OrderDocument,
}

/// All who listen, and all who want to. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Hub {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    listeners: Mutex<Listeners>,
    /// Wakes the feed for whoever wants to listen.
    wanted: Notify,
    streams: Arc<Shares<Payer>>,
    keys: Arc<CursorKeys>,
    /// Wakes the heartbeats for the first stream.
    streaming: Notify,
    metrics: FeedMetrics,
    chunks_max: usize,
}

type Readers<K> = BTreeMap<(K, u64), (Filter, Arc<Reader>)>;

#[derive(Debug, Default)]
struct Listeners {
    all: Readers<()>,
    by_user: Readers<i64>,
    by_order: Readers<i64>,
    /// Those who wait for an order to be Pending no more.
    waiting: BTreeMap<(i64, u64), oneshot::Sender<Settled>>,
    /// Those who want to listen, from the next look at the outbox on.
    joining: Vec<Joining>,
    /// How far the feed is.
    cursor: Option<Cursor>,
    next_key: u64,
    ended: bool,
}

#[derive(Debug)]
struct Joining {
    place: Place,
    who: Who,
    joined: oneshot::Sender<Cursor>,
}

#[derive(Debug)]
enum Who {
    Reader(Filter, Arc<Reader>),
    Waiter(oneshot::Sender<Settled>),
}

/// Where somebody is filed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    All(u64),
    User(i64, u64),
    Order(i64, u64),
    Waiting(i64, u64),
}

impl Place {
    const fn key(self) -> u64 {
        match self {
            Self::All(key) | Self::User(_, key) | Self::Order(_, key) | Self::Waiting(_, key) => key,
        }
    }
}

/// Somebody who listens, until it is dropped.
#[derive(Debug)]
pub struct Listening {
    hub: Hub,
    place: Place,
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut listeners = self.hub.lock();
        match self.place {
            Place::All(key) => drop(listeners.all.remove(&((), key))),
            Place::User(user, key) => drop(listeners.by_user.remove(&(user, key))),
            Place::Order(order, key) => drop(listeners.by_order.remove(&(order, key))),
            Place::Waiting(order, key) => drop(listeners.waiting.remove(&(order, key))),
        }
        // It may not have been let in yet.
        listeners.joining.retain(|joining| joining.place != self.place);
    }
}

/// A stream that counts, until it is dropped.
#[derive(Debug)]
pub struct Stream {
    hub: Hub,
    _share: Share<Payer>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.hub.inner.metrics.readers.dec();
    }
}

/// The server is going down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended;

impl Hub {
    /// One without listeners, which signs positions with `keys`.
    #[must_use]
    pub fn new(metrics: FeedMetrics, keys: Arc<CursorKeys>, watching: Watching) -> Self {
        let inner = Inner {
            listeners: Mutex::default(),
            wanted: Notify::new(),
            streaming: Notify::new(),
            streams: Shares::new(watching.sse_readers_max),
            keys,
            metrics,
            chunks_max: watching.sse_buffer_events,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Counts one more stream, unless `payer` has its share of them.
    #[must_use]
    pub fn admit(&self, payer: Payer) -> Option<Stream> {
        let share = self.inner.streams.take(payer)?;
        self.inner.metrics.readers.inc();
        self.inner.streaming.notify_one();
        Some(Stream { hub: self.clone(), _share: share })
    }

    /// Lets a reader listen. What it resolves to is the cursor from which on `reader` is handed everything.
    pub fn listen(
        &self,
        interest: Interest,
        reader: Arc<Reader>,
    ) -> Result<(Listening, oneshot::Receiver<Cursor>), Ended> {
        let (filter, order_id) = match interest {
            Interest::Orders(filter) => (filter, None),
            Interest::Order(order_id) => (Filter::default(), Some(order_id)),
        };
        self.join(Who::Reader(filter, reader), |key| match (order_id, filter.user_id) {
            (Some(order_id), _) => Place::Order(order_id, key),
            (None, Some(user_id)) => Place::User(user_id, key),
            (None, None) => Place::All(key),
        })
    }

    /// Waits for an order to be Pending no more. Changes from the cursor on, to which the last resolves, are not missed.
    pub fn wait_for(
        &self,
        order_id: i64,
    ) -> Result<(Listening, oneshot::Receiver<Settled>, oneshot::Receiver<Cursor>), Ended> {
        let (sender, settled) = oneshot::channel();
        let (listening, joined) = self.join(Who::Waiter(sender), |key| Place::Waiting(order_id, key))?;
        Ok((listening, settled, joined))
    }

    fn join(
        &self,
        who: Who,
        place: impl FnOnce(u64) -> Place,
    ) -> Result<(Listening, oneshot::Receiver<Cursor>), Ended> {
        let (sender, joined) = oneshot::channel();
        let mut listeners = self.lock();
        if listeners.ended {
            return Err(Ended);
        }
        listeners.next_key += 1;
        let place = place(listeners.next_key);
        listeners.joining.push(Joining { place, who, joined: sender });
        drop(listeners);
        self.inner.wanted.notify_one();
        Ok((Listening { hub: self.clone(), place }, joined))
    }

    /// Resolves when somebody has wanted to listen since it last did.
    pub async fn wanted(&self) {
        self.inner.wanted.notified().await;
    }

    /// Resolves while there is a stream.
    pub async fn streaming(&self) {
        while self.inner.streams.taken() == 0 {
            self.inner.streaming.notified().await;
        }
    }

    /// Whether nobody listens or wants to.
    #[must_use]
    pub fn is_deserted(&self) -> bool {
        let listeners = self.lock();
        listeners.all.is_empty()
            && listeners.by_user.is_empty()
            && listeners.by_order.is_empty()
            && listeners.waiting.is_empty()
            && listeners.joining.is_empty()
    }

    /// The latest who has asked to listen by now: the next look at the outbox is for all up to it to begin at.
    #[must_use]
    pub fn latest(&self) -> u64 {
        self.lock().next_key
    }

    /// Hands rows out, which were read from the feed's cursor on, and moves it on.
    pub fn hand_out(&self, from: &Cursor, page: &Page) {
        let prefix = self.inner.keys.prefix(from, &page.next);
        let mut listeners = self.lock();
        for row in &page.rows {
            listeners.hand_out(row, &prefix, self.inner.chunks_max, &self.inner.metrics);
        }
        listeners.cursor = Some(page.cursor.clone());
    }

    /// Lets those in who asked to listen, up to `latest`. They begin at `cursor`, which is that of the feed, read after they asked: so it sees
    /// whatever they have seen, here or at another server.
    ///
    /// Until now they are only in `joining`, from which they take themselves when they go: nobody is filed who has gone.
    pub fn let_in(&self, latest: u64, cursor: &Cursor) {
        let mut listeners = self.lock();
        listeners.cursor = Some(cursor.clone());
        let (newcomers, later) =
            std::mem::take(&mut listeners.joining).into_iter().partition(|joining| joining.place.key() <= latest);
        listeners.joining = later;
        let newcomers: Vec<Joining> = newcomers;
        for Joining { place, who, joined } in newcomers {
            match (place, who) {
                (Place::All(key), Who::Reader(filter, reader)) => {
                    listeners.all.insert(((), key), (filter, reader));
                }
                (Place::User(user, key), Who::Reader(filter, reader)) => {
                    listeners.by_user.insert((user, key), (filter, reader));
                }
                (Place::Order(order, key), Who::Reader(filter, reader)) => {
                    listeners.by_order.insert((order, key), (filter, reader));
                }
                (Place::Waiting(order, key), Who::Waiter(sender)) => {
                    listeners.waiting.insert((order, key), sender);
                }
                // `join` makes no others.
                (Place::Waiting(..), Who::Reader(..)) | (_, Who::Waiter(_)) => {}
            }
            let _ = joined.send(cursor.clone());
        }
    }

    /// Sends heartbeats to those whose turn is `turn` of `turns`.
    pub fn beat(&self, turn: u64, turns: u64) {
        let listeners = self.lock();
        let cursor = listeners.cursor.as_ref().map(|cursor| self.inner.keys.sign(cursor));
        let (with_cursor, plain) = (event::heartbeat(cursor.as_deref()), event::heartbeat(None));
        let with_cursors = listeners.all.iter().map(|(((), key), reader)| (key, reader));
        let with_cursors = with_cursors.chain(listeners.by_user.iter().map(|((_, key), reader)| (key, reader)));
        for (_, (_, reader)) in with_cursors.filter(|(key, _)| *key % turns == turn) {
            reader.beat(&with_cursor);
        }
        for (_, (_, reader)) in listeners.by_order.iter().filter(|((_, key), _)| key % turns == turn) {
            reader.beat(&plain);
        }
    }

    /// Ends the streams of all who listen, with words for each. Waiters wait on, in vain.
    pub fn cut_off_all(&self, words: impl Fn() -> Bytes) {
        let mut listeners = self.lock();
        let listeners = &mut *listeners;
        let readers = listeners.all.values().chain(listeners.by_user.values()).chain(listeners.by_order.values());
        readers.for_each(|(_, reader)| reader.end(words()));
        for joining in &listeners.joining {
            if let Who::Reader(_, reader) = &joining.who {
                reader.end(words());
            }
        }
    }

    /// Lets nobody listen any more, ends all streams with words for each, and all waiting.
    pub fn end(&self, words: impl Fn() -> Bytes) {
        self.cut_off_all(words);
        let mut listeners = self.lock();
        listeners.ended = true;
        listeners.waiting.clear();
        listeners.joining.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Listeners> {
        // A panic in here would leave nobody filed twice or half.
        self.inner.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listeners {
    fn hand_out(&mut self, row: &Row, prefix: &str, chunks_max: usize, metrics: &FeedMetrics) {
        let order = (row.order_id, 0)..=(row.order_id, u64::MAX);
        let by_order = self.by_order.range(order.clone());
        let waiting = self.waiting.range(order.clone()).next().is_some();
        let any_user = !self.by_user.is_empty() || !self.all.is_empty();
        // Most orders concern nobody: then they are not even read.
        if !any_user && !waiting && by_order.clone().next().is_none() {
            return;
        }
        let Some(change) = Change::of(row) else { return };
        let user = change.user_id();
        let readers =
            self.all.values().chain(self.by_user.range((user, 0)..=(user, u64::MAX)).map(|(_, reader)| reader));
        // Made once, for the first who takes it.
        let mut chunk = None;
        for (_, reader) in readers.filter(|(filter, _)| filter.takes_status(&change)) {
            let chunk =
                chunk.get_or_insert_with(|| event::event(format_args!("{prefix}{:x}", row.id), &change.transition()));
            metrics.sent(reader.push(i64::MAX, chunk, chunks_max));
        }
        let mut chunk = None;
        for (_, (_, reader)) in by_order {
            let chunk = chunk.get_or_insert_with(|| event::event(row.version, &change.transition()));
            metrics.sent(reader.push(row.version, chunk, chunks_max));
            if change.status() == "Deleted" {
                reader.end(Bytes::new());
            }
        }
        if waiting && change.status() != "Pending" {
            let keys: Vec<_> = self.waiting.range(order).map(|(key, _)| *key).collect();
            for sender in keys.into_iter().filter_map(|key| self.waiting.remove(&key)) {
                let _ = sender.send(Settled { version: row.version, document: row.document.clone().into() });
            }
        }
    }
}
