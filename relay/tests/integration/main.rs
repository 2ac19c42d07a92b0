//! The relay on a real Postgres and a real Kafka; `cargo dev test` starts them.

mod faults;
mod late_rows;
mod parking;
mod publishing;
mod sharing;
mod support;
