//! One request and its answer: from hyper's types to those of actix-web, and back.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use actix_http::{Payload, Request, Response};
use actix_web::body::{BodySize, BoxBody, MessageBody as _};
use actix_web::error::PayloadError;
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode, Uri, Version};
use actix_web::web::Bytes;
use futures_util::Stream;
use futures_util::future::poll_fn;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::http;

use super::clocks::ResponseClock;

/// The most that is handed to HTTP/2 at a time: it keeps that in memory until the client has room for it.
pub const PIECE_BYTES_MAX: usize = 16 * 1024;

/// A request as actix-web wants it.
///
/// # Errors
/// The status of the answer, when it is no request that HTTP allows though hyper does.
pub async fn request(request: http::Request<Incoming>, peer: Option<SocketAddr>) -> Result<Request, StatusCode> {
    let (parts, mut body) = request.into_parts();
    // RFC 9112, 3.2: a server must answer 400 to a request of HTTP/1.1 without exactly one Host.
    let hosts = parts.headers.get_all(http::header::HOST).iter().count();
    if hosts > 1 || (hosts == 0 && parts.version == http::Version::HTTP_11) {
        return Err(StatusCode::BAD_REQUEST);
    }
    let payload = if body.is_end_stream() {
        Payload::None
    } else {
        let comes_at_once = parts.version != http::Version::HTTP_2 && !parts.headers.contains_key(http::header::EXPECT);
        let first = if comes_at_once { first_piece(&mut body).await } else { None };
        Payload::Stream { payload: Box::pin(RequestBody { first, rest: body }) as _ }
    };
    let mut request = Request::with_payload(payload);
    let head = request.head_mut();
    head.method = Method::from_bytes(parts.method.as_str().as_bytes()).map_err(|_| StatusCode::BAD_REQUEST)?;
    head.uri = uri(&parts.uri).ok_or(StatusCode::BAD_REQUEST)?;
    head.version = match parts.version {
        http::Version::HTTP_10 => Version::HTTP_10,
        http::Version::HTTP_2 => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    let mut values = joined(|| parts.headers.values().map(http::HeaderValue::as_bytes));
    for (name, value) in &parts.headers {
        // What is a header for one version of the crate is one for the other.
        let value = HeaderValue::from_maybe_shared(values.split_to(value.len()));
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_str().as_bytes()), value) else {
            return Err(StatusCode::BAD_REQUEST);
        };
        head.headers.append(name, value);
    }
    head.peer_addr = peer;
    Ok(request)
}

fn uri(uri: &http::Uri) -> Option<Uri> {
    match (uri.scheme(), uri.authority(), uri.path_and_query()) {
        (None, None, Some(path)) => path.as_str().parse().ok(),
        _ => uri.to_string().parse().ok(),
    }
}

/// The values of all headers in one allocation.
fn joined<'a, I: Iterator<Item = &'a [u8]>>(values: impl Fn() -> I) -> Bytes {
    let mut all = Vec::with_capacity(values().map(<[u8]>::len).sum());
    values().for_each(|value| all.extend_from_slice(value));
    all.into()
}

/// The first piece of a body that has come together with its head.
///
/// hyper reads a body only when it is asked for, and then wakes the task that has asked. That is done here once, and not by the whole
/// application, which finds the body there at its first call. A body that comes later is the application's to wait for.
async fn first_piece(body: &mut Incoming) -> Option<Result<Frame<Bytes>, hyper::Error>> {
    let mut has_asked = false;
    poll_fn(|context| match Pin::new(&mut *body).poll_frame(context) {
        Poll::Pending if !has_asked => {
            has_asked = true;
            context.waker().wake_by_ref();
            Poll::Pending
        }
        Poll::Pending => Poll::Ready(None),
        Poll::Ready(piece) => Poll::Ready(piece),
    })
    .await
}

/// The body of a request.
struct RequestBody {
    first: Option<Result<Frame<Bytes>, hyper::Error>>,
    rest: Incoming,
}

impl Stream for RequestBody {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let piece = match self.first.take() {
                Some(first) => Some(first),
                None => ready!(Pin::new(&mut self.rest).poll_frame(context)),
            };
            return Poll::Ready(match piece {
                None => None,
                Some(Err(error)) => Some(Err(PayloadError::Incomplete(Some(io::Error::other(error))))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => Some(Ok(data)),
                    // Trailers: none that we know.
                    Err(_) => continue,
                },
            });
        }
    }
}

/// An answer as hyper wants it. `is_head`: to a request without interest in the body.
pub fn response(response: Response<BoxBody>, is_head: bool, clock: Rc<ResponseClock>) -> http::Response<ResponseBody> {
    let (head, body) = response.into_parts();
    let left = match body.size() {
        BodySize::None => Some(0),
        BodySize::Sized(bytes) => Some(bytes),
        BodySize::Stream => None,
    };
    let mut headers = http::HeaderMap::new();
    copy_headers(head.headers(), &mut headers);
    if let (true, Some(bytes)) = (is_head, left) {
        headers.insert(http::header::CONTENT_LENGTH, bytes.into());
    }
    let status = http::StatusCode::from_u16(head.status().as_u16());
    let mut answer = http::Response::new(ResponseBody {
        body: if is_head { BoxBody::new(()) } else { body },
        piece: Bytes::new(),
        left: if is_head { Some(0) } else { left },
        clock,
        _head: head,
    });
    *answer.status_mut() = status.unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    *answer.headers_mut() = headers;
    answer
}

fn copy_headers(from: &HeaderMap, to: &mut http::HeaderMap) {
    to.reserve(from.len() + 2);
    let mut values = joined(|| from.iter().map(|(_, value)| value.as_bytes()));
    for (name, value) in from {
        let name = http::HeaderName::from_bytes(name.as_str().as_bytes());
        if let (Ok(name), Ok(value)) = (name, http::HeaderValue::from_maybe_shared(values.split_to(value.len()))) {
            to.append(name, value);
        }
    }
}

/// An answer without a body, to what did not reach the application.
pub fn refusal(status: StatusCode, clock: Rc<ResponseClock>) -> http::Response<ResponseBody> {
    let mut answer = response(Response::new(status).map_into_boxed_body(), false, clock);
    answer.headers_mut().insert(http::header::CONNECTION, http::HeaderValue::from_static("close"));
    answer
}

/// The body of an answer. Its request is under way until this is dropped.
pub struct ResponseBody {
    body: BoxBody,
    /// What is left of the last piece that the application gave.
    piece: Bytes,
    /// How many bytes are to come, if that is known.
    left: Option<u64>,
    clock: Rc<ResponseClock>,
    /// Its extensions may hold what is to be kept until the answer is sent.
    _head: Response<()>,
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.clock.asked();
        while self.piece.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_next(context)) {
                None => return Poll::Ready(None),
                Some(Ok(piece)) => self.piece = piece,
                // The application's errors need not be sent to another thread; hyper's must be ready for it.
                Some(Err(error)) => return Poll::Ready(Some(Err(error.to_string().into()))),
            }
        }
        let length = self.piece.len().min(PIECE_BYTES_MAX);
        let piece = self.piece.split_to(length);
        self.left = self.left.map(|left| left.saturating_sub(length as u64));
        self.clock.handed_out();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
