//! The running service: opening the ports, waiting for Postgres, serving, and ending in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::{App, HttpServer, web};
use anyhow::Context as _;
use prometheus_client::registry::Registry;
use shared::health::{self, Readiness};
use shared::shutdown::Shutdown;
use shared::spans::Spans;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use crate::batcher::Batcher;
use crate::config::{Config, Limits};
use crate::feed::Feed;
use crate::idempotency::keeper::Keeper;
use crate::metrics::Metrics;
use crate::routes;
use crate::store::{self, Orders};

/// Connections that the kernel may hold until a worker takes them.
const BACKLOG: u32 = 1_024;
/// How often readiness asks Postgres.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// The condition in `/readyz`.
const POSTGRES: &str = "postgres";

/// What every request may use.
#[derive(Debug)]
pub struct State {
    /// Writes orders.
    pub batcher: Batcher,
    /// Reads orders, and changes single ones.
    pub orders: Orders,
    /// Tells what becomes of orders, as it happens.
    pub feed: Arc<Feed>,
    /// Takes note of requests.
    pub metrics: Metrics,
    /// Makes spans, if anybody collects them.
    pub spans: Spans,
}

/// An API whose ports are open.
#[must_use = "it serves only while `run` is awaited"]
pub struct Server {
    address: SocketAddr,
    admin_address: SocketAddr,
    http: actix_web::dev::Server,
    writers: JoinSet<()>,
    feed: JoinSet<()>,
    check: tokio::task::JoinHandle<()>,
    keeper: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Takes the ports, waits for Postgres, checks its schema and opens the API. While it waits, the admin port answers that it is
    /// not ready, and the API port is taken but refuses connections, as if nobody were there yet.
    pub async fn start(config: Config, shutdown: &Shutdown) -> anyhow::Result<Self> {
        let Config { bind, admin_bind, database, limits } = config;
        let socket = reserve(bind).map_err(|error| port_error("API_BIND", bind, &error))?;
        let readiness = Readiness::waiting_for(&[POSTGRES]);
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let admin_address = health::serve(admin_bind, readiness.clone(), registry, shutdown)
            .map_err(|error| port_error("ADMIN_BIND", admin_bind, &error))?;

        let database = store::configure(database, &limits);
        let pool = database.connect(shutdown).await?;
        readiness.met(POSTGRES);

        let mut writers = JoinSet::new();
        let batcher = Batcher::start(&database, &limits, &metrics, &mut writers);
        let keeper = Keeper::start(pool.clone(), limits.idempotency_retention, metrics.clone(), shutdown).await;
        let orders = Orders::new(pool, &limits);
        let check = tokio::spawn(keep_checking(orders.clone(), readiness.clone(), shutdown.clone()));
        let mut feed_tasks = JoinSet::new();
        let feed = Feed::start((&database, orders.clone()), &limits, &metrics.feed, shutdown, &mut feed_tasks);
        let spans = shared::telemetry::spans();
        let state = web::Data::new(State { batcher, orders, feed: Arc::new(feed), metrics, spans });

        let listener = socket.listen(BACKLOG).map_err(|error| port_error("API_BIND", bind, &error))?.into_std()?;
        let address = listener.local_addr()?;
        let http = serve(listener, state, readiness, &limits, shutdown.clone())
            .map_err(|error| port_error("API_BIND", bind, &error))?;
        tracing::info!(server.address = %address, "API port is open");
        Ok(Self { address, admin_address, http, writers, feed: feed_tasks, check, keeper })
    }

    /// Where orders are taken.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where health and metrics are answered.
    #[must_use]
    pub const fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Serves until the shutdown is asked for; then takes no more connections, finishes what is under way, and ends.
    pub async fn run(mut self) -> anyhow::Result<()> {
        tokio::select! {
            served = self.http => served.context("the API port failed")?,
            Some(ended) = self.writers.join_next() => {
                ended.context("a writer failed")?;
                anyhow::bail!("a writer ended before the service");
            }
        }
        tracing::info!("no more requests; finishing queued orders");
        // The workers are gone and with them every handle to the queue: the writers end when it is empty.
        while let Some(ended) = self.writers.join_next().await {
            ended.context("a writer failed")?;
        }
        while let Some(ended) = self.feed.join_next().await {
            ended.context("the feed failed")?;
        }
        self.check.await.context("the readiness check failed")?;
        self.keeper.await.context("the upkeep of idempotency keys failed")
    }
}

/// Takes a port without opening it.
fn reserve(bind: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = if bind.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart need not wait until the connections of the last run are forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(bind)?;
    Ok(socket)
}

fn port_error(variable: &str, bind: SocketAddr, error: &std::io::Error) -> anyhow::Error {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "{variable}: {bind} is in use by another program; stop it, or set {variable} to another port (0 takes a free one)"
        ),
        _ => anyhow::anyhow!("{variable}: cannot listen on {bind}: {error}"),
    }
}

fn serve(
    listener: std::net::TcpListener,
    state: web::Data<State>,
    readiness: Readiness,
    limits: &Limits,
    shutdown: Shutdown,
) -> std::io::Result<actix_web::dev::Server> {
    let workers = limits.worker_count();
    let server = HttpServer::new(move || {
        App::new().app_data(state.clone()).configure(|config| routes::configure(config, readiness.clone()))
    })
    .workers(workers)
    .max_connections(limits.connections_max.div_ceil(workers))
    .keep_alive(Duration::from_secs(limits.keep_alive_secs))
    .client_request_timeout(Duration::from_millis(limits.head_timeout_ms))
    .tcp_nodelay(true)
    // A reader that leaves is noticed when it does, and not at the next heartbeat that cannot be sent.
    .h1_allow_half_closed(false)
    .shutdown_timeout(limits.drain_secs)
    .shutdown_signal(async move { shutdown.requested().await })
    .listen(listener)?;
    Ok(server.run())
}

/// Keeps readiness true to what Postgres says, until the shutdown.
async fn keep_checking(orders: Orders, readiness: Readiness, shutdown: Shutdown) {
    while shutdown.sleep(CHECK_EVERY).await {
        match orders.check().await {
            Ok(()) => readiness.met(POSTGRES),
            Err(_) => readiness.missing(POSTGRES, "does not answer"),
        }
    }
}
