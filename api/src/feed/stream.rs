//! The body of an event stream: what a reader has missed, and then what the feed brings.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, MessageBody};
use actix_web::web::Bytes;
use futures_util::stream::{LocalBoxStream, StreamExt as _, unfold};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::cursor::{Cursor, Part};
use super::event::{self, Change};
use super::hub::{Ended, Filter, Interest, Listening, Stream};
use super::reader::Reader;
use super::signing::Unreadable;
use super::{Feed, gone};
use crate::rate::Payer;
use crate::store::StoreError;
use crate::store::feed::Page;
use crate::store::timeline::Watched;

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum NoStream {
    /// There are as many as may be, or the caller has its share of them.
    #[error("too many streams")]
    TooMany,
    /// The server is going down.
    #[error("shutting down")]
    ShuttingDown,
    /// What comes after the reader's last event is not there any more.
    #[error("the events after the last one are gone")]
    Gone,
    /// The reader's last event is not one that we have sent.
    #[error("not the id of an event")]
    Malformed,
    /// The feed lets nobody in, since it does not get at the outbox.
    #[error("the feed does not answer")]
    Unavailable,
    /// There is no such order.
    #[error("no such order")]
    NotFound,
    /// Postgres does not say.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Unreadable> for NoStream {
    fn from(reason: Unreadable) -> Self {
        match reason {
            Unreadable::Malformed => Self::Malformed,
            Unreadable::Unsigned => Self::Gone,
        }
    }
}

impl From<Ended> for NoStream {
    fn from(_: Ended) -> Self {
        Self::ShuttingDown
    }
}

/// The body of an event stream. It is small, since there may be many of them.
pub struct EventStream {
    /// What comes before all else.
    first: Bytes,
    /// What the reader has missed; gone when that is read.
    backlog: Option<LocalBoxStream<'static, Step>>,
    reader: Arc<Reader>,
    /// Of one order: versions up to this one are known already.
    after: i64,
    listening: Option<Listening>,
    _stream: Stream,
}

/// A step of catching up.
enum Step {
    Chunk(Bytes),
    /// From the feed's cursor on, the feed brings everything.
    Joined(Listening),
    /// It cannot be done now: the reader may come again.
    Failed,
}

impl MessageBody for EventStream {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Infallible>>> {
        if !self.first.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.first))));
        }
        while let Some(backlog) = &mut self.backlog {
            match std::task::ready!(backlog.as_mut().poll_next(context)) {
                Some(Step::Chunk(chunk)) => return Poll::Ready(Some(Ok(chunk))),
                Some(Step::Joined(listening)) => self.listening = Some(listening),
                Some(Step::Failed) => return Poll::Ready(None),
                None => self.backlog = None,
            }
        }
        self.reader.poll_next(self.after, context).map(|chunk| chunk.map(Ok))
    }
}

impl Feed {
    /// A stream of the changes of all orders that `filter` takes: from the signed `position` on, or from now on.
    ///
    /// # Errors
    /// When there is none.
    pub async fn watch(
        self: &Arc<Self>,
        payer: Payer,
        filter: Filter,
        position: Option<&str>,
    ) -> Result<EventStream, NoStream> {
        let stream = self.hub.admit(payer).ok_or(NoStream::TooMany)?;
        let cursor = match position {
            None => None,
            Some(text) => Some(self.keys.read(text, &self.orders).await?),
        };
        if self.keys.is_empty() {
            return Err(NoStream::Unavailable);
        }
        let reader = Arc::new(Reader::default());
        let Some(cursor) = cursor else {
            let (listening, joined) = self.hub.listen(Interest::Orders(filter), Arc::clone(&reader))?;
            let cursor = self.joined(joined).await?;
            let first = event::opening(Some(&self.keys.sign(&cursor)));
            return Ok(EventStream {
                first,
                backlog: None,
                reader,
                after: 0,
                listening: Some(listening),
                _stream: stream,
            });
        };
        if gone(&cursor, &self.orders.feed_anchor().await?) {
            return Err(NoStream::Gone);
        }
        let first = event::opening(Some(&self.keys.sign(&cursor)));
        let (feed, whose) = (Arc::clone(self), Arc::clone(&reader));
        let backlog = Backlog { feed, filter, reader: whose, cursor, place: Place::Behind };
        let backlog = Some(unfold(backlog, Backlog::step).boxed_local());
        Ok(EventStream { first, backlog, reader, after: 0, listening: None, _stream: stream })
    }

    /// A stream of all changes of one order after the version `after`: those so far, then those to come. With `user_id`, only if it is that user's.
    ///
    /// # Errors
    /// When there is none.
    pub async fn watch_order(
        &self,
        payer: Payer,
        order_id: i64,
        user_id: Option<i64>,
        after: i64,
    ) -> Result<EventStream, NoStream> {
        let stream = self.hub.admit(payer).ok_or(NoStream::TooMany)?;
        // Asked before anything is kept for it: whoever asks after what is not there costs a look at an index.
        self.orders.watched(order_id, user_id).await?.ok_or(NoStream::NotFound)?;
        let reader = Arc::new(Reader::default());
        let (listening, joined) = self.hub.listen(Interest::Order(order_id), Arc::clone(&reader))?;
        self.joined(joined).await?;
        // Read after the feed has let us in, so that nothing comes between; what both bring is known by its version.
        let Watched { user_id, transitions } =
            self.orders.watched(order_id, user_id).await?.ok_or(NoStream::NotFound)?;
        let mut first = event::opening(None).to_vec();
        let mut known = after;
        for transition in transitions.iter().filter(|transition| transition.version > after) {
            first.extend_from_slice(&event::event(transition.version, &transition.of(order_id, user_id)));
            known = transition.version;
        }
        let first = first.into();
        Ok(EventStream { first, backlog: None, reader, after: known, listening: Some(listening), _stream: stream })
    }

    /// Waits until the feed has let a reader in, which takes one look at the outbox.
    async fn joined(&self, joined: oneshot::Receiver<Cursor>) -> Result<Cursor, NoStream> {
        match timeout(self.connect_timeout + self.watching.poll_max(), joined).await {
            Ok(Ok(cursor)) => Ok(cursor),
            Ok(Err(_)) => Err(NoStream::ShuttingDown),
            Err(_) => Err(NoStream::Unavailable),
        }
    }
}

/// A reader that reads what it has missed, page by page, each when the one before has been sent.
struct Backlog {
    feed: Arc<Feed>,
    filter: Filter,
    reader: Arc<Reader>,
    cursor: Cursor,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Anything may be missing.
    Behind,
    /// All was read that there was at the last read: time to listen, before the queue has to hold much.
    Near,
    /// The feed brings everything after the snapshot of the cursor's part; up to there it is still to be read.
    Joined,
    Done,
}

impl Backlog {
    async fn step(mut self) -> Option<(Step, Self)> {
        let step = match self.place {
            Place::Done => return None,
            Place::Near => self.join().await,
            Place::Behind | Place::Joined => self.read().await,
        };
        let step = step.unwrap_or_else(|error| {
            tracing::debug!(error = %error, "a reader could not catch up");
            self.place = Place::Done;
            Step::Failed
        });
        Some((step, self))
    }

    async fn join(&mut self) -> Result<Step, NoStream> {
        let (listening, joined) = self.feed.hub.listen(Interest::Orders(self.filter), Arc::clone(&self.reader))?;
        let next = self.feed.joined(joined).await?.seen;
        if !next.sees_all_of(&self.cursor.seen) {
            return Err(NoStream::Gone);
        }
        self.cursor.part = Some(Part { next, after: 0 });
        self.place = Place::Joined;
        Ok(Step::Joined(listening))
    }

    async fn read(&mut self) -> Result<Step, NoStream> {
        let page = {
            // Never closed.
            let _permit = self.feed.catching_up.acquire().await.ok();
            self.feed.orders.read_feed(&self.cursor).await?
        };
        let chunk = self.render(&page);
        let bounded = self.cursor.part.is_some();
        self.cursor = page.cursor;
        if self.cursor.part.is_none() {
            self.place = match (self.place, bounded) {
                (Place::Joined, _) => Place::Done,
                // What was left over of an earlier read may be long ago.
                (_, true) => Place::Behind,
                (_, false) => Place::Near,
            };
        }
        Ok(Step::Chunk(chunk))
    }

    /// The events of a page that the reader wants, and how far it is: also when it wants none.
    fn render(&self, page: &Page) -> Bytes {
        let prefix = self.feed.keys.prefix(&self.cursor, &page.next);
        let mut chunk = Vec::new();
        for row in &page.rows {
            if let Some(change) = Change::of(row).filter(|change| self.filter.takes(change)) {
                chunk.extend_from_slice(&event::event(format_args!("{prefix}{:x}", row.id), &change.transition()));
            }
        }
        chunk.extend_from_slice(&event::heartbeat(Some(&self.feed.keys.sign(&page.cursor))));
        chunk.into()
    }
}
