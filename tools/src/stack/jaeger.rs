//! A private Jaeger, which keeps its traces in memory: built once from its Go module, since it comes in no package.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::process::{Launch, Process};
use super::reaper::Reaper;
use super::throwaway::Supply;
use super::{free_port, go, is_free};
use crate::http;

// Jaeger's own `go.mod` has a `replace`, which is good only for the main module; so ours requires it, with the versions and hashes of
// all that it needs.
const GO_MOD: &str = include_str!("jaeger/go.mod");
const GO_SUM: &str = include_str!("jaeger/go.sum");
const CONFIG: &str = include_str!("jaeger/config.yaml");

const PACKAGE: &str = "github.com/jaegertracing/jaeger/cmd/jaeger";

/// How long a start may take.
const START_PATIENCE: Duration = Duration::from_mins(1);

/// Where Jaeger listens when it is asked nothing else: queries, OTLP over gRPC, OTLP over HTTP.
const USUAL_PORTS: [u16; 3] = [16_686, 4_317, 4_318];

/// A running Jaeger.
#[derive(Debug)]
pub struct Jaeger {
    process: Process,
    query: u16,
    otlp_grpc: u16,
    otlp_http: u16,
}

impl Jaeger {
    /// The version in `jaeger/go.mod`.
    pub const VERSION: &str = "1.76.0";

    /// What its process is called.
    pub const NAME: &str = "jaeger";

    /// Whether it is built already, so that no Go is needed.
    #[must_use]
    pub fn is_built(cache: &Path) -> bool {
        program_in(cache).exists()
    }

    /// Builds it unless that was done before, which takes some minutes, starts it, and waits until it answers. Its files are in `folder`;
    /// on its usual ports, if they are wanted and free.
    pub async fn start(supply: &Supply, folder: &Path, log: &Path, usual_ports: bool) -> Result<Self> {
        build(supply, log).await?;
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let is_free = |port: &u16| usual_ports && is_free(*port);
        let [query, otlp_grpc, otlp_http] =
            USUAL_PORTS.map(|port| Some(port).filter(is_free).map_or_else(free_port, Ok));
        let (query, otlp_grpc, otlp_http) = (query?, otlp_grpc?, otlp_http?);
        let ports =
            [("query", query), ("query_grpc", free_port()?), ("otlp_grpc", otlp_grpc), ("otlp_http", otlp_http)];
        let config = ports
            .into_iter()
            .fold(CONFIG.to_owned(), |config, (name, port)| config.replace(&format!("{{{name}}}"), &port.to_string()));
        let file = folder.join("config.yaml");
        fs::write(&file, config).with_context(|| format!("cannot write {}", file.display()))?;
        let process = Launch::new(Self::NAME, program_in(&supply.cache))
            .arg("--config")
            .arg(&file)
            .log(log)
            .spawn(&supply.reaper)?;
        let mut jaeger = Self { process, query, otlp_grpc, otlp_http };
        let (url, client) = (format!("{}/api/services", jaeger.url()), http::client()?);
        let probe = async || client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success());
        jaeger.process.wait_ready(START_PATIENCE, probe).await?;
        Ok(jaeger)
    }

    /// Where it answers queries, as in `OUTRIDER_JAEGER_URL`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.query)
    }

    /// Where it takes spans over HTTP, as in `OTEL_EXPORTER_OTLP_ENDPOINT`.
    #[must_use]
    pub fn otlp_http(&self) -> String {
        format!("http://127.0.0.1:{}", self.otlp_http)
    }

    /// Where it takes spans over gRPC.
    #[must_use]
    pub fn otlp_grpc(&self) -> String {
        format!("http://127.0.0.1:{}", self.otlp_grpc)
    }

    /// Its process, to wait for or to be cruel to.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

fn program_in(cache: &Path) -> PathBuf {
    cache.join(format!("jaeger-{}", Jaeger::VERSION)).join("jaeger")
}

/// Builds it, unless that was done before; if somebody else is at it, waits for them, since two builds take twice as long.
async fn build(supply: &Supply, log: &Path) -> Result<()> {
    if Jaeger::is_built(&supply.cache) {
        return Ok(());
    }
    let go = go::program().await?;
    fs::create_dir_all(&supply.cache).with_context(|| format!("cannot create {}", supply.cache.display()))?;
    let lock = File::create(supply.cache.join("jaeger.lock")).context("cannot write in the folder for what is kept")?;
    // Until this function ends, or we do.
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
    if Jaeger::is_built(&supply.cache) {
        return Ok(());
    }
    (supply.announce)(&format!("building Jaeger {} from its Go module, once; it takes some minutes", Jaeger::VERSION));
    let program = program_in(&supply.cache);
    let target = program.parent().context("a folder")?;
    // Beside the target, so that it can be renamed; gone when we are interrupted.
    let place = tempfile::Builder::new().prefix("building-").tempdir_in(&supply.cache)?;
    fs::write(place.path().join("go.mod"), GO_MOD)?;
    fs::write(place.path().join("go.sum"), GO_SUM)?;
    let built = place.path().join("built");
    build_in(&go, place.path(), &built.join("jaeger"), log, &supply.reaper)
        .await
        .context("Go can't build Jaeger; is the network reachable?")?;
    fs::rename(&built, target).with_context(|| format!("cannot create {}", target.display()))?;
    drop(lock);
    Ok(())
}

async fn build_in(go: &Path, folder: &Path, program: &Path, log: &Path, reaper: &Reaper) -> Result<()> {
    Launch::new("go build", go)
        .args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o"])
        .arg(program)
        .arg(PACKAGE)
        .env("GOWORK", "off")
        .env("CGO_ENABLED", "0")
        .current_dir(folder)
        .log(log)
        .run(reaper)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_the_folder_is_that_of_the_module() {
        assert!(GO_MOD.contains(&format!("require github.com/jaegertracing/jaeger v{}\n", Jaeger::VERSION)));
    }
}
