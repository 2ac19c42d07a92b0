//! The API on a real Postgres: each test has a database and a server of its own, on free ports, under the role `outrider_api`.

mod auth;
mod changes;
mod grouping;
mod http;
mod idempotency;
mod listing;
mod midnight;
mod ordering;
mod orders;
mod outages;
mod overload;
mod owners;
mod process;
mod proxy;
mod rates;
mod refusals;
mod resuming;
mod service;
mod shutdown;
mod tokens;
mod watcher;
mod watching;
