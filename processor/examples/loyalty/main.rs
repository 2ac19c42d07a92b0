//! A processor with a handler of its own: points for orders. Runs beside `cargo dev up`; the README's section "Your own handler" has
//! the commands.

use std::process::ExitCode;

use processor::Processor;
use processor::config::ProcessorConfig;

use points::{ORDER_PROCESSED, Points, create_tables};

mod points;

fn main() -> ExitCode {
    shared::service::run("loyalty", ProcessorConfig::from_env, async |mut config: ProcessorConfig, shutdown| {
        // A group of its own: it gets every event, whatever the order processor's group has had.
        if config.settings.group == "outrider-processor" {
            "loyalty".clone_into(&mut config.settings.group);
        }
        let database = config.database.connect(&shutdown).await?;
        create_tables(&mut *database.acquire().await?).await?;
        database.close().await;
        Processor::builder(config).handler(ORDER_PROCESSED, Points).run(&shutdown).await?;
        Ok(())
    })
}
