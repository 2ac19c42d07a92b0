//! The processor as a service, with the order handler.

use std::process::ExitCode;

use processor::Processor;
use processor::config::ProcessorConfig;
use processor::handlers::orders::{ORDER_CREATED, OrderCreated};

// Records are allocated by the consumer and freed by the partitions' workers: with glibc's malloc, whose arenas are made for neither,
// that was two fifths of the processor's CPU time.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    shared::service::run("outrider-processor", ProcessorConfig::from_env, async |config, shutdown| {
        Processor::builder(config).handler(ORDER_CREATED, OrderCreated).run(&shutdown).await?;
        Ok(())
    })
}
