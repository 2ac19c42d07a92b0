//! actix-server accepts the connections, hyper speaks HTTP on them, and an actix-web application answers.
//!
//! hyper, and not actix-http: that has no clock for the second head of a connection and none for an answer that is not taken, no limit on
//! HTTP/2's streams, sends `100 Continue` before a request is refused, `transfer-encoding: chunked` to HTTP/1.0, and takes any `Upgrade` for one
//! that it has to follow.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::marker::PhantomData;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use actix_http::{Request, Response};
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, Service, ServiceFactory, fn_factory, fn_service};
use futures_util::future::poll_fn;
use hyper::body::Incoming;
use hyper::http;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

pub use super::clocks::Deadlines;
use super::clocks::{Clocks, ConnectionGuard, Order, Protocol, ResponseClock};
use super::exchange::{self, PIECE_BYTES_MAX, ResponseBody};
use super::stream::ClockedStream;
use crate::shutdown::Shutdown;

/// The most that is kept of a request's head, and of answers that a client does not take, in bytes.
const BUFFER_BYTES_MAX: usize = 72 * 1024;
const HEADERS_MAX: usize = 100;

/// Requests of one HTTP/2 connection that are under way at once.
const STREAMS_MAX: u32 = 100;
/// What a client may send of one body, and of all bodies of a connection, before we have read it, in bytes.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;
/// All headers of one HTTP/2 request, as the protocol counts them: above what our own limit answers with a problem.
const HEADER_LIST_BYTES_MAX: u32 = 128 * 1024;

/// What connections may take.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// Threads that serve them.
    pub workers: usize,
    /// How many there may be.
    pub connections_max: usize,
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// The clocks of a conversation.
    pub deadlines: Deadlines,
    /// How long requests under way may take after the shutdown was asked for, in seconds.
    pub drain_secs: u64,
}

/// Serves `application` on `listener`, over TLS if there is a configuration for it, until the shutdown is asked for. `active` counts the requests
/// under way.
///
/// # Errors
/// When the port cannot be listened on.
pub fn serve<F, A, S, B>(
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    application: F,
    limits: ConnectionLimits,
    active: Gauge,
    shutdown: Shutdown,
) -> io::Result<actix_web::dev::Server>
where
    F: Fn() -> A + Clone + Send + 'static,
    A: actix_service::IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig, InitError = ()> + 'static,
    S::Error: Into<actix_web::Error>,
    S::Response: Into<Response<B>>,
    S::Service: 'static,
    B: MessageBody + 'static,
{
    let stopped = shutdown.clone();
    let factory = move || {
        let (application, tls) = (application.clone(), tls.clone());
        let (active, shutdown) = (active.clone(), shutdown.clone());
        fn_factory(move || {
            let application = application().into_factory();
            let acceptor = tls.clone().map(TlsAcceptor::from);
            let (active, shutdown) = (active.clone(), shutdown.clone());
            async move {
                let application = application.new_service(AppConfig::default()).await?;
                let clocks = Clocks::start(limits.deadlines, active, shutdown);
                let worker =
                    Rc::new(Worker { application, acceptor, handshake: limits.handshake, clocks, bodies: PhantomData });
                Ok::<_, ()>(fn_service(move |stream: TcpStream| {
                    let worker = Rc::clone(&worker);
                    async move {
                        worker.accept(stream).await;
                        Ok::<_, Infallible>(())
                    }
                }))
            }
        })
    };
    let server = actix_server::Server::build()
        .workers(limits.workers)
        .max_concurrent_connections(limits.connections_max.div_ceil(limits.workers))
        .shutdown_timeout(limits.drain_secs)
        .shutdown_signal(async move { stopped.requested().await });
    Ok(server.listen("http", listener, factory)?.run())
}

/// One thread's share of the connections.
struct Worker<S, B> {
    application: S,
    acceptor: Option<TlsAcceptor>,
    handshake: Duration,
    clocks: Rc<Clocks>,
    /// Of the application's answers.
    bodies: PhantomData<B>,
}

impl<S, B> Worker<S, B>
where
    S: Service<Request> + 'static,
    S::Error: Into<actix_web::Error>,
    S::Response: Into<Response<B>>,
    B: MessageBody + 'static,
{
    async fn accept(self: Rc<Self>, stream: TcpStream) {
        let peer = stream.peer_addr().ok();
        // If it cannot be set, answers are late and no less true.
        let _ = stream.set_nodelay(true);
        let Some(acceptor) = &self.acceptor else { return self.http1(stream, peer).await };
        // A handshake that fails or takes too long has nobody to be told.
        let Ok(Ok(stream)) = timeout(self.handshake, acceptor.accept(stream)).await else { return };
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            self.http2(stream, peer).await;
        } else {
            self.http1(stream, peer).await;
        }
    }

    async fn http1(self: Rc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin, peer: Option<SocketAddr>) {
        let ConnectionGuard { clock, .. } = &self.clocks.connection(Protocol::Http1);
        let serving = Rc::clone(clock);
        let service = service_fn(move |request| Rc::clone(&self).answer(request, peer, serving.request()));
        let stream = TokioIo::new(ClockedStream::new(stream, Rc::clone(clock)));
        let connection = http1::Builder::new()
            .max_buf_size(BUFFER_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            // Most answers are small: to copy them behind their head costs less than two pieces for the system.
            .writev(false)
            .serve_connection(stream, service);
        let mut connection = pin!(connection);
        poll_fn(|context| {
            match clock.order(context) {
                Some(Order::Close) => return Poll::Ready(()),
                Some(Order::Finish) => connection.as_mut().graceful_shutdown(),
                None => {}
            }
            // What a connection ends with is the client's to know.
            connection.as_mut().poll(context).map(|_| ())
        })
        .await;
    }

    async fn http2(self: Rc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin, peer: Option<SocketAddr>) {
        let ConnectionGuard { clock, .. } = &self.clocks.connection(Protocol::Http2);
        let serving = Rc::clone(clock);
        let streams = Streams::default();
        let newest = Rc::clone(&streams.newest);
        let service = service_fn(move |request| {
            let response = serving.request();
            newest.set(Some(Rc::clone(&response)));
            Rc::clone(&self).answer(request, peer, response)
        });
        let stream = TokioIo::new(ClockedStream::new(stream, Rc::clone(clock)));
        let connection = http2::Builder::new(streams)
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEADER_LIST_BYTES_MAX)
            .max_send_buf_size(PIECE_BYTES_MAX)
            .serve_connection(stream, service);
        let mut connection = pin!(connection);
        poll_fn(|context| {
            match clock.order(context) {
                Some(Order::Close) => return Poll::Ready(()),
                Some(Order::Finish) => connection.as_mut().graceful_shutdown(),
                None => {}
            }
            connection.as_mut().poll(context).map(|_| ())
        })
        .await;
    }

    async fn answer(
        self: Rc<Self>,
        request: http::Request<Incoming>,
        peer: Option<SocketAddr>,
        clock: Rc<ResponseClock>,
    ) -> Result<http::Response<ResponseBody>, Infallible> {
        let is_head = request.method() == http::Method::HEAD;
        let request = match exchange::request(request, peer).await {
            Ok(request) => request,
            Err(status) => return Ok(exchange::refusal(status, clock)),
        };
        let response = match self.application.call(request).await {
            Ok(response) => response.into().map_into_boxed_body(),
            Err(error) => Response::from(error.into()),
        };
        Ok(exchange::response(response, is_head, clock))
    }
}

/// Runs the streams of one HTTP/2 connection, and ends those whose client takes nothing: hyper has no clock for that.
#[derive(Clone, Default)]
struct Streams {
    /// Of the request that hyper has just handed to the service. Its stream comes next.
    newest: Rc<Cell<Option<Rc<ResponseClock>>>>,
}

impl<F: Future<Output: 'static> + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let clock = self.newest.take();
        tokio::task::spawn_local(async move {
            let mut stream = pin!(stream);
            poll_fn(|context| {
                if clock.as_ref().is_some_and(|clock| clock.is_overdue(context)) {
                    // hyper resets a stream that is dropped.
                    return Poll::Ready(());
                }
                stream.as_mut().poll(context).map(|_| ())
            })
            .await;
        });
    }
}
