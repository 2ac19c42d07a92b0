//! `outrider deny`: whether what we depend on is what `deny.toml` allows, as cargo-deny says.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Result, ensure};
use clap::Args;

use crate::signals::StopSignals;
use crate::stack::Reaper;
use crate::workspace::{Executables, Workspace};

/// For the command line.
pub const EXAMPLES: &str = "Examples:
  cargo dev deny
  cargo dev deny --advisories        where the database of advisories can be fetched";

/// What to look at.
#[derive(Debug, Args)]
pub struct DenyArgs {
    /// Look for known vulnerabilities as well; cargo-deny fetches their database from GitHub
    #[arg(long)]
    advisories: bool,
}

/// Runs cargo-deny. The exit code is 1 when something is not allowed.
pub async fn run(args: DenyArgs) -> Result<ExitCode> {
    let workspace = Workspace::required()?;
    ensure!(
        is_installed(),
        "cargo-deny is missing: `cargo install cargo-deny --locked` builds it, in about ten minutes"
    );
    let reaper = Reaper::start(Executables::own()?.outrider())?;
    let advisories: &[&str] = if args.advisories { &["advisories"] } else { &[] };
    let cargo = workspace.cargo().args(["deny", "check", "licenses", "bans", "sources"]).args(advisories);
    StopSignals::listen()?.interrupts(Box::pin(cargo.run(&reaper))).await?;
    Ok(ExitCode::SUCCESS)
}

fn is_installed() -> bool {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut look = Command::new(cargo);
    look.args(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    look.status().is_ok_and(|status| status.success())
}
