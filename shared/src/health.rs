//! The admin port of each service: `/livez`, `/readyz`, `/metrics` and `/log-filter`.

mod log_filter;
mod metrics;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix_web::http::header::ContentType;
use actix_web::{App, FromRequest, Handler, HttpRequest, HttpResponse, Resource, Responder, web};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::http::listener::{self, ConnectionLimits, Deadlines};
use crate::panics;
use crate::shutdown::Shutdown;
use crate::telemetry;

/// What connections to the admin port may take.
const LIMITS: ConnectionLimits = ConnectionLimits {
    workers: 1,
    connections_max: 256,
    handshake: Duration::from_secs(5),
    deadlines: Deadlines {
        head: Duration::from_secs(5),
        // Longer than scrapers and probes wait between two requests.
        keep_alive: Duration::from_secs(75),
        send: Duration::from_secs(30),
    },
    drain_secs: 1,
};

/// What a service needs before it can work, and what of it is missing right now. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, Option<String>>>>);

impl Readiness {
    /// A service that needs `conditions`, none of which is met yet.
    #[must_use]
    pub fn waiting_for(conditions: &[&'static str]) -> Self {
        let missing = conditions.iter().map(|name| (*name, Some("starting".to_owned()))).collect();
        Self(Arc::new(Mutex::new(missing)))
    }

    /// `condition` is met.
    pub fn met(&self, condition: &'static str) {
        self.lock().insert(condition, None);
    }

    /// `condition` is not met, because of `reason`.
    pub fn missing(&self, condition: &'static str, reason: impl Into<String>) {
        self.lock().insert(condition, Some(reason.into()));
    }

    /// Whether all is met; else a line for each condition that is not.
    ///
    /// # Errors
    /// The lines.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let missing: Vec<String> =
            self.lock().iter().filter_map(|(name, reason)| Some(format!("{name}: {}", reason.as_ref()?))).collect();
        if missing.is_empty() { Ok(()) } else { Err(missing) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, Option<String>>> {
        // A panic elsewhere leaves the map whole: every change is one insert.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds `/livez` and `/readyz`.
fn routes(config: &mut web::ServiceConfig, readiness: Readiness) {
    config.service(readable("/livez", || async { live() })).service(readable("/readyz", move || {
        let answer = ready(&readiness);
        async move { answer }
    }));
}

/// What answers GET, and HEAD like it.
fn readable<F, A>(path: &str, handler: F) -> Resource
where
    F: Handler<A> + Clone,
    A: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    web::resource(path).route(web::get().to(handler.clone())).route(web::head().to(handler))
}

/// The answer of `/livez`.
#[must_use]
pub fn live() -> HttpResponse {
    HttpResponse::Ok().content_type(ContentType::plaintext()).body("alive\n")
}

/// The answer of `/readyz`.
#[must_use]
pub fn ready(readiness: &Readiness) -> HttpResponse {
    let (mut response, body) = match readiness.check() {
        Ok(()) => (HttpResponse::Ok(), "ready\n".to_owned()),
        Err(missing) => (HttpResponse::ServiceUnavailable(), format!("not ready\n{}\n", missing.join("\n"))),
    };
    response.content_type(ContentType::plaintext()).body(body)
}

/// Serves the admin port until the process ends: liveness must be answered during the shutdown too. Returns the real address.
///
/// # Errors
/// When the address cannot be bound.
pub fn serve(
    bind: SocketAddr,
    readiness: Readiness,
    mut registry: Registry,
    shutdown: &Shutdown,
) -> std::io::Result<SocketAddr> {
    show_process(&mut registry);
    let listener = TcpListener::bind(bind)?;
    let address = listener.local_addr()?;
    let registry = Arc::new(registry);
    telemetry::metrics::push(&registry, shutdown);
    let application =
        {
            let readiness = readiness.clone();
            move || {
                let registry = Arc::clone(&registry);
                let metrics = move |request: HttpRequest| {
                    let answer = metrics::answer(&registry, request.headers());
                    async move { answer }
                };
                App::new()
                    .configure(|config| routes(config, readiness.clone()))
                    .service(readable("/metrics", metrics))
                    .service(readable("/log-filter", || async { log_filter::read() }).route(
                        web::put().to(|request: HttpRequest, body: String| async move {
                            log_filter::change(&request, &body)
                        }),
                    ))
            }
        };
    // It goes on during the shutdown, and ends with the process.
    let server = listener::serve(listener, None, application, LIMITS, Gauge::default(), Shutdown::new())?;
    tokio::spawn(server);
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        shutdown.announced().await;
        readiness.missing("service", "shutting down");
    });
    tracing::info!(admin.address = %address, "health and metrics port is open");
    Ok(address)
}

/// What all services show.
pub fn show_process(registry: &mut Registry) {
    let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("outrider_build", "The version that runs", version);
    panics::show_in(registry);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_must_be_met() {
        let readiness = Readiness::waiting_for(&["kafka", "postgres"]);
        assert_eq!(readiness.check(), Err(vec!["kafka: starting".into(), "postgres: starting".into()]));
        readiness.met("postgres");
        readiness.missing("kafka", "no broker answers");
        assert_eq!(readiness.check(), Err(vec!["kafka: no broker answers".into()]));
        readiness.met("kafka");
        assert_eq!(readiness.check(), Ok(()));
    }
}
