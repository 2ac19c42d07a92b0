//! The body of a request: how long it may take, and what becomes of the rest of one that was not read.

use std::cell::RefCell;
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::HttpMessage as _;
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest};
use actix_web::error::PayloadError;
use actix_web::web::Bytes;
use futures_util::Stream;
use tokio::time::{Sleep, sleep};

/// A body that ends with an error when it has been waited for too long.
pub struct Timed {
    payload: Payload,
    timeout: Duration,
    /// From the first time that there was nothing to read.
    deadline: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl Timed {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, PayloadError>>> {
        let Poll::Ready(chunk) = Pin::new(&mut self.payload).poll_next(context) else {
            let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(self.timeout)));
            return deadline.as_mut().poll(context).map(|()| Some(Err(PayloadError::Io(too_slow()))));
        };
        self.ended |= chunk.is_none();
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

/// The body of a request, shared with whoever sees to its rest.
#[derive(Clone)]
pub struct Body {
    timed: Rc<RefCell<Timed>>,
    /// Whether the connection waits until this body is over. Over HTTP/2 there are others beside it.
    is_in_the_way: bool,
}

impl Body {
    /// Sets a time for the body of `request`, if it has one.
    pub fn limit(request: &mut ServiceRequest, timeout: Duration) -> Option<Self> {
        let payload = request.take_payload();
        if matches!(payload, Payload::None) {
            return None;
        }
        let is_in_the_way = matches!(payload, Payload::H1 { .. });
        let timed = Rc::new(RefCell::new(Timed { payload, timeout, deadline: None, ended: false }));
        let body = Self { timed, is_in_the_way };
        request.set_payload(Payload::Stream { payload: Box::pin(body.clone()) });
        Some(body)
    }

    /// Whether there is more of it than was read, with the connection waiting for that.
    pub fn is_unread(&self) -> bool {
        self.is_in_the_way && !self.timed.borrow().ended
    }
}

impl Stream for Body {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.timed.borrow_mut().poll_next(context)
    }
}

/// An answer that came before the request's body was read. It holds on to that: for a chunked body that nobody holds, actix reads on,
/// for as long as its client cares to send, while one that is still held ends the connection, a second after the answer.
pub struct Early {
    answer: BoxBody,
    _unread: Body,
}

impl Early {
    pub fn holding(answer: BoxBody, unread: Body) -> BoxBody {
        BoxBody::new(Self { answer, _unread: unread })
    }
}

impl MessageBody for Early {
    type Error = Box<dyn Error>;

    fn size(&self) -> BodySize {
        self.answer.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.answer).poll_next(context)
    }
}
