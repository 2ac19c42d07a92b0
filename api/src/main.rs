//! The API's process.

use std::process::ExitCode;

fn main() -> ExitCode {
    shared::service::run("outrider-api", api::Config::from_env, api::run)
}
