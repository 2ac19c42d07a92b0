//! The processor on a real Postgres and a real Kafka: every test has a database, a topic and a group of its own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod dead_letters;
mod effects;
mod faults;
mod handlers;
mod positions;
mod support;
