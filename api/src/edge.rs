//! The edge: what a connection, a request or an answer passes on its way in and out, whatever its route.
//!
//! A request gets its id and its body's deadline ([`frame`]), the headers for other origins if there are any ([`cors`]), and behind the
//! router its limits ([`limits`]). An answer leaves the same way, so that every one of them, refusals too, has its headers. What comes
//! before the request, connections, handshakes and heads, is in the hands of the HTTP server.

mod body;
pub mod context;
pub mod cors;
pub mod frame;
pub mod limits;
pub mod public_url;
pub mod request_id;
pub mod settings;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix_web::middleware::from_fn;
use actix_web::{App, web};
use shared::http::listener;
use shared::shutdown::Shutdown;

pub use self::body::was_too_slow;
use self::frame::Frame;
use self::public_url::PublicUrl;
use self::settings::Edge;
use crate::config::Limits;
use crate::server::State;
use crate::tls::Tls;

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
    let cors = edge.cors.clone();
    let body_timeout = Duration::from_millis(limits.body_timeout_ms.min(limits.request_timeout_ms));
    let base_path = edge.public_url.as_ref().and_then(PublicUrl::base_path);
    let frame = Frame { is_tls: edge.tls.is_some(), body_timeout, base_path };
    let active = state.metrics.active.clone();
    let application = move || {
        let frame = frame.clone();
        // What is wrapped last is passed first.
        App::new()
            .app_data(state.clone())
            .configure(routes.clone())
            .wrap(cors::headers(cors.as_ref()))
            .wrap(from_fn(move |request, next| frame::pass(frame.clone(), request, next)))
    };
    let tls = edge.tls.as_ref().map(Tls::server_config).transpose().map_err(std::io::Error::other)?;
    listener::serve(listener, tls.map(Arc::new), application, limits.connections(), active, shutdown)
}
