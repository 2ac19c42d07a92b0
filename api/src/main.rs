//! The API's process.

use std::process::ExitCode;

// Thousands of readers are thousands of small things each: they lie closer together than with malloc.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    shared::service::run("outrider-api", api::Config::from_env, api::run)
}
