//! The relay's executable: see the crate `relay`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    shared::service::run("outrider-relay", relay::RelayConfig::from_env, relay::run)
}
