//! The relay on a real Postgres and a real Kafka; `cargo dev test` starts them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod appending;
mod chaos;
mod clock;
mod clusters;
mod debezium;
mod door;
mod faults;
mod histories;
mod holders;
mod late_bulks;
mod late_rows;
mod odd_databases;
mod odd_rows_read;
mod parking;
mod producers;
mod publishing;
mod refusals;
mod replay;
mod retention;
mod retries;
mod routes;
mod sequence;
mod sharing;
mod support;
mod writing;
