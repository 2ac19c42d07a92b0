//! The processor: applies each event of its topics once, in its own Postgres, whatever is killed, frozen or repeated.
//!
//! Delivery is at least once; effects are exactly once, because a partition's position, the ids of the events taken in and the
//! effects of their handlers commit in one transaction (`apply`). Positions in Postgres, not in Kafka, are what counts.
//!
//! A team brings its own events by implementing [`handler::EventHandler`] and registering it with [`Processor::builder`].

mod apply;
mod batch;
pub mod config;
mod consumer;
mod dead_letter;
pub mod failpoint;
mod fingerprint;
pub mod handler;
pub mod handlers;
pub mod membership;
pub mod metrics;
mod partition;
mod processor;
mod queue;
pub mod record;
mod store;
mod trace;

pub use consumer::ConsumerError;
pub use consumer::positions::LostPositions;
pub use processor::{Processor, ProcessorError};
pub use store::status;
