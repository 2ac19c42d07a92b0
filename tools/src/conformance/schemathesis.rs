//! Schemathesis, a Python program: where it comes from, and how it is run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use prerequisites::Program;

use crate::required::need;
use crate::stack::throwaway::Supply;
use crate::stack::{Launch, Reaper};

/// Pinned, with what decides over the requests that it makes up: another version makes up others from the same seed.
const PACKAGES: [&str; 3] = ["schemathesis==4.32.5", "hypothesis==6.170.17", "hypothesis-graphql==0.13.5"];

/// What is tried, and what is not, with the reasons.
const CONFIG: &str = include_str!("schemathesis.toml");

/// What it is to look at besides.
const CHECKS: &str = include_str!("checks.py");

/// An installed schemathesis.
#[derive(Debug)]
pub struct Schemathesis {
    packages: PathBuf,
}

impl Schemathesis {
    /// The one in `.dev`, which pip fetches once.
    pub async fn find(supply: &Supply) -> Result<(Self, String)> {
        let [version, ..] = PACKAGES;
        need(Program::Python)?;
        let packages = supply.cache.join(version.replace("==", "-"));
        if !packages.exists() {
            install(supply, &packages).await?;
        }
        Ok((Self { packages }, version.replace("==", " ")))
    }

    /// Tries the API at `url`, and says whether it found nothing. What it finds it prints, with a command that repeats the request.
    pub async fn run(&self, url: &str, examples: u32, seed: u32, folder: &Path, reaper: &Reaper) -> Result<bool> {
        let config = folder.join("schemathesis.toml");
        fs::write(&config, CONFIG)?;
        fs::write(folder.join("checks.py"), CHECKS)?;
        let mut process = Launch::new("schemathesis", "python3")
            .args(["-m", "schemathesis.cli", "--config-file"])
            .arg(&config)
            .args(["run", &format!("{url}/openapi.json"), "--max-examples", &examples.to_string()])
            .args(["--seed", &seed.to_string()])
            .env("PYTHONPATH", &self.packages)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("SCHEMATHESIS_HOOKS", "checks")
            // Where it would keep what it has found, for the next run: each run stands for itself.
            .current_dir(folder)
            .spawn(reaper)?;
        let status = process.wait().await?;
        match status.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            _ => Err(process.death(status)),
        }
    }
}

/// Installs it into a folder of its own, which appears only when all of it is there.
async fn install(supply: &Supply, target: &Path) -> Result<()> {
    (supply.announce)("fetching schemathesis through pip, once");
    fs::create_dir_all(&supply.cache).with_context(|| format!("cannot create {}", supply.cache.display()))?;
    let place = tempfile::Builder::new().prefix("fetching-").tempdir_in(&supply.cache)?;
    let packages = place.path().join("packages");
    Launch::new("pip", "python3")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--target"])
        .arg(&packages)
        .args(PACKAGES)
        .log(place.path().join("pip.log"))
        .run(&supply.reaper)
        .await
        .context("pip can't fetch schemathesis; is the network reachable?")?;
    match fs::rename(&packages, target) {
        // Somebody else was quicker; theirs is as good.
        Err(_) if target.exists() => Ok(()),
        renamed => renamed.with_context(|| format!("cannot create {}", target.display())),
    }
}
