//! The API on a real Postgres: each test has a database and a server of its own, on free ports, under the role `outrider_api`.

mod changes;
mod contract;
mod description;
mod grouping;
mod http;
mod idempotency;
mod listing;
mod midnight;
mod ordering;
mod orders;
mod outages;
mod overload;
mod process;
mod proxy;
mod refusals;
mod resuming;
mod schema;
mod service;
mod shutdown;
mod watcher;
mod watching;
