//! Tests on real processes: the stack itself, and the command line as its users call it.

mod alerts;
mod api_keys;
mod clusters;
mod command_line;
mod dead_letters;
mod failover;
mod metrics;
mod odd_rows;
mod offsets;
mod outages;
mod parked;
mod pipeline;
mod processes;
mod producer_grants;
mod producers;
mod proxy;
mod replay;
mod servers;
mod settings;
mod status;
mod timeline;
mod top;
mod topic;
mod traces;
mod up;

use std::path::Path;

use anyhow::Result;
use tools::stack::Reaper;
use tools::stack::throwaway::Supply;
use tools::workspace::dev_folder;

/// The executable under test, built by cargo along with this one.
const OUTRIDER: &str = env!("CARGO_BIN_EXE_outrider");

/// A reaper of this process, for the children of one test.
fn reaper() -> Result<Reaper> {
    Reaper::start(Path::new(OUTRIDER))
}

/// Where servers come from: what `.dev` of this checkout holds already.
fn supply() -> Result<Supply> {
    Ok(Supply { cache: dev_folder()?, announce: |line| eprintln!("{line}"), reaper: reaper()? })
}
