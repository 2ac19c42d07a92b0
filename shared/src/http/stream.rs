//! A connection's stream, as its clock sees it: when bytes come, and whether those that are sent are taken.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::clocks::ConnectionClock;

/// What is said to a client whose head does not end.
const HEAD_TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// How much of what a client still sends after our last word is read and forgotten, in bytes. A socket that is closed with unread bytes in it
/// resets the connection, and the client may lose our answer.
const UNREAD_BYTES_MAX: usize = 256 * 1024;

/// A stream with a clock.
pub struct ClockedStream<T> {
    stream: T,
    clock: Rc<ConnectionClock>,
    /// Of the answer to a head that took too long: how much of it was sent.
    refusal_sent: usize,
    is_shut: bool,
    /// How much came after our last word.
    unread_bytes: usize,
    /// The client has said that it sends no more.
    has_ended: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> ClockedStream<T> {
    /// Puts `stream` under its clock.
    pub const fn new(stream: T, clock: Rc<ConnectionClock>) -> Self {
        Self { stream, clock, refusal_sent: 0, is_shut: false, unread_bytes: 0, has_ended: false }
    }

    /// Takes note of what was sent of `length` bytes.
    fn took(&self, sent: &Poll<io::Result<usize>>, length: usize) {
        match sent {
            Poll::Ready(Ok(count)) if *count >= length => self.clock.sent(),
            Poll::Ready(Ok(_)) | Poll::Pending => self.clock.blocked(),
            Poll::Ready(Err(_)) => {}
        }
    }

    /// Answers 408, and waits until the client has heard it.
    fn poll_refuse_head(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(left) = HEAD_TIMEOUT.get(self.refusal_sent..).filter(|left| !left.is_empty()) {
            self.refusal_sent += ready!(Pin::new(&mut self.stream).poll_write(context, left))?;
        }
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.poll_farewell(context)
    }

    /// Says that we send no more, and reads on until the client says the same, or the clock ends it.
    fn poll_farewell(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_shut {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            self.is_shut = true;
            self.clock.said_farewell();
        }
        while !self.has_ended && self.unread_bytes < UNREAD_BYTES_MAX {
            let mut scrap = [MaybeUninit::uninit(); 4 * 1024];
            let mut scrap = ReadBuf::uninit(&mut scrap);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut scrap))?;
            self.unread_bytes += scrap.filled().len();
            self.has_ended = scrap.filled().is_empty();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for ClockedStream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.clock.is_head_refused() {
            ready!(self.poll_refuse_head(context))?;
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() == before {
            self.has_ended = true;
        } else {
            self.clock.received();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ClockedStream<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.took(&sent, bytes.len());
        sent
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.took(&sent, slices.iter().map(|slice| slice.len()).sum());
        sent
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        if flushed.is_pending() {
            self.clock.blocked();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_farewell(context)
    }
}
