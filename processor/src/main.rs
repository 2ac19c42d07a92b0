//! The processor as a service, with the order handler.

use std::process::ExitCode;

use processor::Processor;
use processor::config::ProcessorConfig;
use processor::handlers::orders::{ORDER_CREATED, OrderCreated};

fn main() -> ExitCode {
    shared::service::run("outrider-processor", ProcessorConfig::from_env, async |config, shutdown| {
        Processor::builder(config).handler(ORDER_CREATED, OrderCreated).run(&shutdown).await?;
        Ok(())
    })
}
