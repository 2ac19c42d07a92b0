//! Generators and what their clients need, fetched by the package managers of their languages into `.dev`, once.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use prerequisites::Program;
use tools::required::need;
use tools::stack::Launch;
use tools::stack::throwaway::Supply;

/// Where a generator comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kit {
    /// From pip: packages with their versions, as in `name==1.2.3`.
    Python(&'static [&'static str]),
    /// From npm: packages with their versions, as in `name@1.2.3`.
    Node(&'static [&'static str]),
    /// Go fetches the packages that its commands name, and keeps them itself.
    Go,
}

/// What kits have brought.
#[derive(Debug, Default)]
pub(crate) struct Provided {
    /// Folders of programs, for the path.
    programs: Vec<PathBuf>,
    /// Variables of the environment.
    env: Vec<(&'static str, OsString)>,
    /// What is to lie in the client's folder, under this name.
    links: Vec<(&'static str, PathBuf)>,
}

impl Kit {
    /// The packages with their versions.
    pub(crate) const fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Python(packages) | Self::Node(packages) => packages,
            Self::Go => &[],
        }
    }
}

impl Provided {
    /// Fetches what is not there yet.
    pub(crate) async fn by(kits: &[Kit], supply: &Supply) -> Result<Self> {
        let mut provided = Self::default();
        for kit in kits {
            provided.add(*kit, supply).await?;
        }
        Ok(provided)
    }

    async fn add(&mut self, kit: Kit, supply: &Supply) -> Result<()> {
        match kit {
            Kit::Python(packages) => {
                need(Program::Python)?;
                let folder = fetched(supply, packages, pip).await?;
                self.programs.push(folder.join("bin"));
                self.env.push(("PYTHONPATH", folder.into()));
            }
            Kit::Node(packages) => {
                need(Program::Node)?;
                let modules = fetched(supply, packages, npm).await?.join("node_modules");
                self.programs.push(modules.join(".bin"));
                self.links.push(("node_modules", modules));
            }
            Kit::Go => {
                need(Program::Go)?;
                // What this machine sets for other programs in Go is not for this one.
                self.env.push(("GOFLAGS", OsString::new()));
            }
        }
        Ok(())
    }

    /// Puts into a client's folder what has to be there.
    pub(crate) fn lay(&self, folder: &Path) -> Result<()> {
        for (name, target) in &self.links {
            symlink(target, folder.join(name)).with_context(|| format!("cannot make the link {name}"))?;
        }
        Ok(())
    }

    /// The environment of the client's commands.
    pub(crate) fn env(&self) -> Result<Vec<(&'static str, OsString)>> {
        let path = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths(self.programs.iter().cloned().chain(env::split_paths(&path)))?;
        Ok(self.env.iter().cloned().chain([("PATH", path)]).collect())
    }
}

/// A folder in `.dev` with these packages, which appears only when all of them are there.
async fn fetched(supply: &Supply, packages: &[&str], launch: fn(&Path, &[&str]) -> Launch) -> Result<PathBuf> {
    let name: Vec<String> =
        packages.iter().map(|package| package.replace(['@', '/'], "-").replace("==", "-")).collect();
    let target = supply.cache.join(format!("client-{}", name.join("+").trim_start_matches('-')));
    if target.exists() {
        return Ok(target);
    }
    (supply.announce)(&format!("fetching {}, once", packages.join(" ")));
    fs::create_dir_all(&supply.cache)?;
    let place = tempfile::Builder::new().prefix("fetching-").tempdir_in(&supply.cache)?;
    let folder = place.path().join("fetched");
    fs::create_dir(&folder)?;
    let log = place.path().join("log");
    launch(&folder, packages)
        .log(log)
        .run(&supply.reaper)
        .await
        .with_context(|| format!("can't fetch {}; is the network reachable?", packages.join(" ")))?;
    match fs::rename(&folder, &target) {
        // Another test was quicker; its folder is as good.
        Err(_) if target.exists() => {}
        renamed => renamed.with_context(|| format!("cannot create {}", target.display()))?,
    }
    Ok(target)
}

fn pip(folder: &Path, packages: &[&str]) -> Launch {
    Launch::new("pip", "python3")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--target"])
        .arg(folder)
        .args(packages)
}

fn npm(folder: &Path, packages: &[&str]) -> Launch {
    // Without a prefix, npm would look for a project in the folders above.
    Launch::new("npm", "npm")
        .args(["install", "--no-fund", "--no-audit", "--no-update-notifier", "--prefix"])
        .arg(folder)
        .args(packages)
}
