//! What the end-to-end and the slow tests share: where children come from, brokers in trouble, a writer, a reader, and what came out.

pub(crate) mod broker;
pub(crate) mod clients;
pub(crate) mod kafka_frames;
pub(crate) mod kafka_proxy;
pub(crate) mod pooler;
pub(crate) mod quota;
pub(crate) mod reader;
pub(crate) mod scene;
pub(crate) mod second_broker;
pub(crate) mod start;
pub(crate) mod trouble;
pub(crate) mod writer;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tools::stack::Reaper;
use tools::stack::service::Surroundings;
use tools::stack::throwaway::Supply;
use tools::workspace::{Executables, dev_folder};

/// The executable under test, built by cargo along with this one.
pub(crate) const OUTRIDER: &str = env!("CARGO_BIN_EXE_outrider");

/// A reaper of this process, for the children of one test.
pub(crate) fn reaper() -> Result<Reaper> {
    Reaper::start(Path::new(OUTRIDER))
}

/// Where servers come from: what `.dev` of this checkout holds already.
pub(crate) fn supply() -> Result<Supply> {
    Ok(Supply { cache: dev_folder()?, announce: |line| eprintln!("{line}"), reaper: reaper()? })
}

/// What services need that use this database and these brokers.
pub(crate) fn surroundings(database_url: &str, kafka_brokers: String, logs: PathBuf) -> Result<Surroundings> {
    let outrider = Executables::own()?.outrider().to_owned();
    // This executable lies in `deps`, one below those of the services.
    let binaries = outrider.parent().and_then(Path::parent).context("a folder")?.to_owned();
    let database_url = database_url.to_owned();
    Ok(Surroundings { binaries, logs, database_url, kafka_brokers, takes_role: true, env: Vec::new() })
}
