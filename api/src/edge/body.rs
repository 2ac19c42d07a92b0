//! The body of a request: how long it may take.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::HttpMessage as _;
use actix_web::dev::{Payload, ServiceRequest};
use actix_web::error::PayloadError;
use actix_web::web::Bytes;
use futures_util::Stream;
use tokio::time::{Sleep, sleep};

/// A body that ends with an error when it has been waited for too long.
struct Timed {
    payload: Payload,
    timeout: Duration,
    /// From the first time that there was nothing to read.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Stream for Timed {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Poll::Ready(chunk) = Pin::new(&mut self.payload).poll_next(context) else {
            let timeout = self.timeout;
            let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(timeout)));
            return deadline.as_mut().poll(context).map(|()| Some(Err(PayloadError::Io(too_slow()))));
        };
        Poll::Ready(chunk)
    }
}

fn too_slow() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the body took too long")
}

/// Whether a body was given up because it took too long.
#[must_use]
pub fn was_too_slow(error: &PayloadError) -> bool {
    matches!(error, PayloadError::Io(error) if error.kind() == io::ErrorKind::TimedOut)
}

/// Sets a time for the body of `request`, if it has one.
pub fn limit(request: &mut ServiceRequest, timeout: Duration) {
    let payload = request.take_payload();
    if !matches!(payload, Payload::None) {
        let timed = Timed { payload, timeout, deadline: None };
        request.set_payload(Payload::Stream { payload: Box::pin(timed) });
    }
}
