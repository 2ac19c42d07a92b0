//! The `outrider` executable.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    tools::cli::Cli::parse().run()
}
