//! The relay's executable: see the crate `relay`.

use std::process::ExitCode;

fn main() -> ExitCode {
    shared::service::run("outrider-relay", relay::RelayConfig::from_env, relay::run)
}
