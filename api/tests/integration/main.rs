//! The API on a real Postgres: each test has a database and a server of its own, on free ports, under the role `outrider_api`.

mod certificates;
mod changes;
mod cors;
mod edge;
mod grouping;
mod headers;
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
mod service;
mod shutdown;
mod slow;
mod tls;
mod watcher;
mod watching;
