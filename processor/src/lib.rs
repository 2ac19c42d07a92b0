//! The processor: applies each event of its topics once, in its own Postgres, whatever is killed, frozen or repeated.
//!
//! Delivery is at least once; effects are exactly once, because a partition's position, the ids of the events taken in and the
//! effects of their handlers commit in one transaction (`apply`). Positions in Postgres, not in Kafka, are what counts.
//!
//! A team brings its own events by implementing [`handler::EventHandler`] and registering it with [`Processor::builder`].

pub mod anchor;
mod apply;
mod batch;
pub mod broker;
mod census;
pub mod config;
mod consumer;
mod dead_letter;
pub mod failpoint;
mod fingerprint;
mod gaps;
pub mod handler;
pub mod handlers;
mod inbox;
mod isolation;
mod joint;
mod key_work;
mod lag;
mod looks;
pub mod membership;
pub mod metrics;
pub mod offsets;
mod partition;
mod passed;
mod processor;
mod queue;
pub mod record;
mod retry;
mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod trace;
mod work;

use std::process::ExitCode;

use config::ProcessorConfig;
use handlers::orders::{ORDER_CREATED, OrderCreated};

pub use consumer::ConsumerError;
pub use inbox::short_retentions;
pub use offsets::LostPositions;
pub use processor::{Processor, ProcessorError};
pub use store::status;

/// What the executable does: the processor as a service, with the handler for orders.
pub fn main() -> ExitCode {
    shared::service::run("outrider-processor", ProcessorConfig::from_env, async |config, shutdown| {
        Processor::builder(config).handler(ORDER_CREATED, OrderCreated).run(&shutdown).await?;
        Ok(())
    })
}
