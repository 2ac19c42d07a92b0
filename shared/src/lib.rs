//! What two or more of Outrider's services need: configuration, the database pool, the event envelope, appending to the
//! outbox, Kafka client settings, telemetry, health and shutdown. No business rule lives here.

pub mod ages;
pub mod backoff;
pub mod clock;
pub mod config;
pub mod crypto;
pub mod db;
pub mod duration;
pub mod event;
pub mod exposition;
pub mod findings;
pub mod health;
pub mod http;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod outbox;
pub mod panics;
pub mod propagation;
pub mod service;
pub mod shutdown;
pub mod spans;
pub mod telemetry;
#[cfg(any(feature = "testing", test))]
pub mod testing;
pub mod throttle;
