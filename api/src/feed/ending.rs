//! An event stream that ends at a set time: its reader's credentials are to be looked at again, when it comes back for what it has not had.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, MessageBody};
use actix_web::web::Bytes;
use tokio::time::{Instant, Sleep, sleep_until};

use super::stream::EventStream;

/// An event stream, up to its end.
pub struct EndingStream {
    stream: EventStream,
    end: Pin<Box<Sleep>>,
}

impl EndingStream {
    /// Ends `stream` at `end`, if it has not ended before.
    #[must_use]
    pub fn new(stream: EventStream, end: Instant) -> Self {
        Self { stream, end: Box::pin(sleep_until(end)) }
    }
}

impl MessageBody for EndingStream {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Infallible>>> {
        // Between two chunks: what was handed over whole is sent whole.
        if self.end.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.stream).poll_next(context)
    }
}
