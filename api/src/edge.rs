//! The edge: what a connection, a request or an answer passes on its way in and out, whatever its route.
//!
//! A request gets its id and its body's deadline ([`frame`]), the headers for other origins if there are any ([`cors`]), and behind the
//! router its limits ([`limits`]). An answer leaves the same way, so that every one of them, refusals too, has its headers. What comes
//! before the request, connections, handshakes and heads, is in the hands of the HTTP server.

mod body;
pub mod cors;
pub mod frame;
pub mod limits;
pub mod request_id;
pub mod settings;

use std::net::TcpListener;
use std::time::Duration;

use actix_web::middleware::from_fn;
use actix_web::{App, HttpServer, web};
use shared::shutdown::Shutdown;

pub use self::body::was_too_slow;
use self::frame::Frame;
use self::settings::Edge;
use crate::config::Limits;
use crate::server::State;

/// Opens the API on `listener`, over TLS if there is a certificate, until the shutdown is asked for.
///
/// # Errors
/// When the port cannot be listened on.
pub fn serve(
    (listener, edge): (TcpListener, &Edge),
    state: web::Data<State>,
    routes: impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static,
    limits: &Limits,
    shutdown: Shutdown,
) -> std::io::Result<actix_web::dev::Server> {
    let workers = limits.worker_count();
    let connections_max = limits.connections_max.div_ceil(workers);
    let cors = edge.cors.clone();
    let body_timeout = Duration::from_millis(limits.body_timeout_ms.min(limits.request_timeout_ms));
    let frame = Frame { is_tls: edge.tls.is_some(), body_timeout };
    let server = HttpServer::new(move || {
        // What is wrapped last is passed first.
        App::new()
            .app_data(state.clone())
            .configure(routes.clone())
            .wrap(cors::headers(cors.as_ref()))
            .wrap(from_fn(move |request, next| frame::pass(frame, request, next)))
    })
    .workers(workers)
    .max_connections(connections_max)
    // Handshakes under way, of one worker. As many as connections: those of clients that take their time must not keep others out.
    .max_connection_rate(connections_max)
    .tls_handshake_timeout(Duration::from_millis(limits.tls_handshake_timeout_ms))
    .keep_alive(Duration::from_secs(limits.keep_alive_secs))
    .client_request_timeout(Duration::from_millis(limits.head_timeout_ms))
    .tcp_nodelay(true)
    // A reader that leaves is noticed when it does, and not at the next heartbeat that cannot be sent.
    .h1_allow_half_closed(false)
    .shutdown_timeout(limits.drain_secs)
    .shutdown_signal(async move { shutdown.requested().await });
    let server = match &edge.tls {
        Some(tls) => server.listen_rustls_0_23(listener, tls.server_config().map_err(std::io::Error::other)?)?,
        None => server.listen(listener)?,
    };
    Ok(server.run())
}
