//! The running service: opening the ports, waiting for Postgres, serving, and ending in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::web;
use actix_web::web::Bytes;
use anyhow::Context as _;
use prometheus_client::registry::Registry;
use shared::health::{self, Readiness};
use shared::shutdown::Shutdown;
use shared::spans::Spans;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use crate::auth::Guard;
use crate::batcher::{Batcher, Outage};
use crate::config::Config;
use crate::description::{self, Callers, Deployment};
use crate::edge::{self, limits::RequestLimits};
use crate::feed::Feed;
use crate::idempotency::keeper::Keeper;
use crate::metrics::Metrics;
use crate::rate::Payer;
use crate::shares::Shares;
use crate::store::{self, Orders};
use crate::{routes, tls};

/// Connections that the kernel may hold until a worker takes them.
const BACKLOG: u32 = 1_024;
/// How often readiness asks Postgres.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// So long after an order was refused for Postgres' sake, this service is not ready.
const REFUSED_FOR: Duration = Duration::from_secs(5);
/// Lists that are being read, or wait to be, of all callers.
const LISTS_MAX: usize = 64;
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
    /// Says who may do what.
    pub guard: Guard,
    /// Takes note of requests.
    pub metrics: Metrics,
    /// How much one request may take.
    pub requests: RequestLimits,
    /// Lists that are being read, or wait to be.
    pub lists: Arc<Shares<Payer>>,
    /// Whether the API is reached over TLS.
    pub is_tls: bool,
    /// Makes spans, if anybody collects them.
    pub spans: Spans,
    /// Whether requests can be served.
    pub readiness: Readiness,
    /// The description of the API, as JSON.
    pub description: Bytes,
    /// The same as `OpenAPI` 3.0.
    pub older_description: Bytes,
}

/// An API whose ports are open.
#[must_use = "it serves only while `run` is awaited"]
pub struct Server {
    address: SocketAddr,
    admin_address: SocketAddr,
    http: actix_web::dev::Server,
    writers: JoinSet<()>,
    tasks: JoinSet<()>,
}

impl Server {
    /// Takes the ports, waits for Postgres, checks its schema and opens the API. While it waits, the admin port answers that it is
    /// not ready, and the API port is taken but refuses connections, as if nobody were there yet.
    pub async fn start(config: Config, shutdown: &Shutdown) -> anyhow::Result<Self> {
        let Config { bind, admin_bind, database, edge, limits, auth } = config;
        let socket = reserve(bind).map_err(|error| port_error("API_BIND", bind, &error))?;
        let readiness = Readiness::waiting_for(&[POSTGRES]);
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        // What is done beside the requests; all of it ends with the shutdown.
        let mut tasks = JoinSet::new();
        tls::watch(edge.tls.as_ref(), &metrics.certificate_expiry, shutdown, &mut tasks);
        let admin_address = health::serve(admin_bind, readiness.clone(), registry, shutdown)
            .map_err(|error| port_error("ADMIN_BIND", admin_bind, &error))?;

        let database = store::configure(database, &limits);
        let opened = database.connect(shutdown).await?;

        let mut writers = JoinSet::new();
        let batcher = Batcher::start(&database, &limits, &metrics, &mut writers);
        let batcher = batcher.await.context("no thread for the writers")?;
        Keeper::start(opened.clone(), limits.idempotency_retention, metrics.clone(), shutdown, &mut tasks).await;
        let orders = Orders::new(opened, &limits, metrics.clone());
        let (checked, shown) = ((orders.clone(), batcher.outage()), readiness.clone());
        let feed = Feed::start((&database, orders.clone()), &limits, &metrics.feed, shutdown, &mut tasks).await;
        let guard = Guard::start((&auth, &limits), &orders, metrics.auth.clone(), (&readiness, shutdown), &mut tasks)?;
        let callers = if guard.lets_anybody_in() { Callers::Anybody } else { Callers::Known };
        let described = description::document(&match &edge.public_url {
            None => Deployment::of(callers),
            Some(url) => Deployment { callers, server_url: url.as_str().to_owned(), base_path: url.base_path() },
        });
        let state = web::Data::new(State {
            batcher,
            orders,
            feed: Arc::new(feed),
            guard,
            metrics,
            requests: RequestLimits::new(&limits),
            lists: Shares::new(LISTS_MAX),
            is_tls: edge.tls.is_some(),
            spans: shared::telemetry::spans(),
            readiness,
            description: described.to_string().into(),
            older_description: description::older(described).to_string().into(),
        });

        let listener = socket.listen(BACKLOG).map_err(|error| port_error("API_BIND", bind, &error))?.into_std()?;
        let address = listener.local_addr()?;
        let http = edge::serve((listener, &edge), state, routes::configure, &limits, shutdown.clone())
            .map_err(|error| port_error("API_BIND", bind, &error))?;
        tracing::info!(server.address = %address, tls = edge.tls.is_some(), "API port is open");
        // Not before: whoever is told that this service is ready connects at once.
        shown.met(POSTGRES);
        tasks.spawn(keep_checking(checked, shown, shutdown.clone()));
        Ok(Self { address, admin_address, http, writers, tasks })
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
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a task beside the requests failed")?;
        }
        Ok(())
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

/// Keeps readiness true to what Postgres says, and to what came of the last orders, until the shutdown.
///
/// Where orders are refused though Postgres answers (its disk is full, say), this service is not ready for a while, so that others are asked.
/// Then it is again, as only an order can show whether orders are taken.
async fn keep_checking((orders, outage): (Orders, Arc<Outage>), readiness: Readiness, shutdown: Shutdown) {
    while shutdown.sleep(CHECK_EVERY).await {
        match orders.check().await {
            Ok(true) => match outage.within(REFUSED_FOR) {
                None => readiness.met(POSTGRES),
                Some(why) => readiness.missing(POSTGRES, why),
            },
            Ok(false) => readiness.missing(POSTGRES, "takes no writes: it is a standby, or read-only"),
            Err(_) => readiness.missing(POSTGRES, "does not answer"),
        }
    }
}
