//! One reader's queue: bounded, and ended with a word when it is full.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use actix_web::web::Bytes;

use super::event;

/// Room that an empty queue may keep, in chunks.
const KEPT_MAX: usize = 16;

/// Where the feed puts what a reader is to be sent. Chunks are shared among readers.
#[derive(Debug, Default)]
pub struct Reader {
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Each with the order's version that it tells of, where the stream is of one order.
    chunks: VecDeque<(i64, Bytes)>,
    /// Nothing is added any more; what is there is still sent.
    ended: bool,
    waker: Option<Waker>,
}

impl Reader {
    /// Adds a chunk, of an order's version or of `i64::MAX`. If `chunks_max` wait already, the reader is cut off behind them. Returns whether that happened now.
    pub fn push(&self, version: i64, chunk: &Bytes, chunks_max: usize) -> bool {
        let mut queue = self.lock();
        if queue.ended {
            return false;
        }
        let full = queue.chunks.len() >= chunks_max;
        queue.ended = full;
        queue.chunks.push_back(if full {
            (i64::MAX, event::cut_off("the stream was not read fast enough"))
        } else {
            (version, chunk.clone())
        });
        wake(queue);
        full
    }

    /// Adds a heartbeat, unless something waits to be sent anyway.
    pub fn beat(&self, chunk: &Bytes) {
        let mut queue = self.lock();
        if !queue.ended && queue.chunks.is_empty() {
            queue.chunks.push_back((i64::MAX, chunk.clone()));
            wake(queue);
        }
    }

    /// Ends the stream after what waits, with last words, if there are any.
    pub fn end(&self, words: Bytes) {
        let mut queue = self.lock();
        if !queue.ended {
            queue.ended = true;
            if !words.is_empty() {
                queue.chunks.push_back((i64::MAX, words));
            }
            wake(queue);
        }
    }

    /// The next chunk that tells of a version above `after`; none after the last one.
    pub fn poll_next(&self, after: i64, context: &Context<'_>) -> Poll<Option<Bytes>> {
        let mut queue = self.lock();
        while let Some((version, chunk)) = queue.chunks.pop_front() {
            if version > after {
                return Poll::Ready(Some(chunk));
            }
        }
        if queue.ended {
            return Poll::Ready(None);
        }
        // The room of a burst is given back: readers are many, and mostly idle.
        if queue.chunks.capacity() > KEPT_MAX {
            queue.chunks = VecDeque::new();
        }
        queue.waker = Some(context.waker().clone());
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing in here panics between two changes that belong together.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake(mut queue: MutexGuard<'_, Queue>) {
    let waker = queue.waker.take();
    drop(queue);
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(reader: &Reader) -> (Vec<Bytes>, bool) {
        let context = Context::from_waker(Waker::noop());
        let mut chunks = Vec::new();
        loop {
            match reader.poll_next(1, &context) {
                Poll::Ready(Some(chunk)) => chunks.push(chunk),
                Poll::Ready(None) => return (chunks, true),
                Poll::Pending => return (chunks, false),
            }
        }
    }

    #[test]
    fn a_reader_that_is_too_slow_is_told_so_behind_what_it_still_gets() {
        let reader = Reader::default();
        let chunk = Bytes::from_static(b"x");
        assert_eq!([(); 4].map(|()| reader.push(2, &chunk, 2)), [false, false, true, false]);
        reader.end(event::farewell());
        let (chunks, ended) = all(&reader);
        assert!(ended);
        assert_eq!(chunks[..2], [chunk.clone(), chunk]);
        assert!(chunks.len() == 3 && chunks[2].starts_with(b"event: cut-off\n"));
    }

    #[test]
    fn a_heartbeat_is_for_a_stream_that_is_silent() {
        let reader = Reader::default();
        let (beat, chunk) = (event::heartbeat(None), Bytes::from_static(b"x"));
        reader.push(1, &Bytes::from_static(b"known"), 10);
        reader.push(2, &chunk, 10);
        reader.beat(&beat);
        assert_eq!(all(&reader), (vec![chunk], false));
        reader.beat(&beat);
        assert_eq!(all(&reader), (vec![beat], false));
    }
}
