//! Outrider's API: takes orders over HTTP and writes each one together with its event, in one statement.
//!
//! An order's way: [`auth`] says who asks, [`routes`] reads the request, [`domain`] validates it, [`batcher`] groups it with what arrives at the same time,
//! [`store`] writes the group, each order with its event and its key ([`idempotency`]), and each request is answered with the order that its event carries ([`representation`]). Whatever goes wrong leaves as a
//! [`problem`]. [`edge`] is what all of it passes on its way in and out.

pub mod auth;
pub mod batcher;
pub mod caller;
pub mod config;
pub mod description;
pub mod domain;
pub mod edge;
pub mod feed;
pub mod idempotency;
pub mod listing;
pub mod metrics;
pub mod observe;
pub mod problem;
pub mod rate;
pub mod representation;
pub mod routes;
pub mod server;
pub mod shares;
pub mod store;
pub mod tls;

use std::process::ExitCode;

use shared::db::ConnectError;
use shared::shutdown::Shutdown;

pub use config::Config;
pub use server::Server;

/// What the executable does.
pub fn main() -> ExitCode {
    shared::service::run("outrider-api", Config::from_env, run)
}

/// Runs the API until `shutdown` is asked for and every order taken by then is written and answered.
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    match Server::start(config, &shutdown).await {
        Err(error) if matches!(error.downcast_ref(), Some(ConnectError::ShutDown)) => Ok(()),
        started => started?.run().await,
    }
}
