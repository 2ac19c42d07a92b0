//! Where the programs of Postgres are: on the system, or fetched once through Maven.

use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use prerequisites::program::postgres_folders;

use super::super::maven::{self, Maven, Wanted};
use super::super::{make_passable, reachable, unprivileged_user};

/// The oldest major version that the migrations and the services are tried with.
const MAJOR_MIN: u32 = 15;

/// The version that is fetched.
const ARCHIVE_VERSION: &str = "17.6.0";

/// Which Postgres to use; the variable `OUTRIDER_POSTGRES` chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The system's, and the fetched one when there is none.
    Auto,
    /// The system's only.
    System,
    /// The fetched one only.
    Archive,
}

impl Source {
    /// Reads `OUTRIDER_POSTGRES`: `auto` (also when it is not set), `system` or `archive`.
    pub fn from_env() -> Result<Self> {
        match std::env::var("OUTRIDER_POSTGRES").as_deref() {
            Err(_) | Ok("" | "auto") => Ok(Self::Auto),
            Ok("system") => Ok(Self::System),
            Ok("archive") => Ok(Self::Archive),
            Ok(other) => bail!("OUTRIDER_POSTGRES is {other:?}; it can be auto, system or archive"),
        }
    }
}

/// A folder with `postgres` and `initdb`, and their version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    folder: PathBuf,
    version: String,
}

impl Binaries {
    /// Finds the programs, and fetches them with `maven` into `cache` when they are not on the system.
    ///
    /// `existing` is a folder that holds a server's data already, or may come to do so: programs of the version that
    /// wrote it are preferred, since no other can read it.
    pub async fn find(source: Source, cache: &Path, existing: &Path, maven: &Maven<'_>) -> Result<Self> {
        let wanted_major = data_major(&existing.join("data"));
        if source != Source::Archive {
            let mut found = postgres_folders().filter_map(|folder| Self::at(&folder));
            let chosen = match wanted_major {
                None => found.find(|binaries| binaries.major() >= MAJOR_MIN),
                Some(major) => found.find(|binaries| binaries.major() == major),
            };
            if let Some(binaries) = chosen {
                return Ok(binaries);
            }
            if source == Source::System {
                bail!(
                    "no Postgres {MAJOR_MIN} or newer on this machine; Debian: apt install postgresql, macOS: brew install postgresql@17"
                );
            }
        }
        fetch(cache, maven).await
    }

    /// The folder that holds them.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Their version, such as `15.13`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    fn major(&self) -> u32 {
        major(&self.version).unwrap_or(0)
    }

    fn at(folder: &Path) -> Option<Self> {
        // A link to the programs is followed: they look for each other beside themselves.
        let postgres = folder.join("postgres").canonicalize().ok()?;
        let folder = postgres.parent()?.to_owned();
        if !folder.join("initdb").exists() {
            return None;
        }
        let output = Command::new(&postgres).arg("--version").output().ok()?;
        let version = parse_version(&String::from_utf8_lossy(&output.stdout))?;
        Some(Self { folder, version })
    }

    /// Fails when the data was written by another major version, which these programs can't read.
    pub(super) fn check_matches(&self, data: &Path) -> Result<()> {
        match data_major(data) {
            Some(written) if written != self.major() => bail!(
                "{} was written by Postgres {written}, and only Postgres {} is here; start afresh with --fresh, or choose another folder with --data",
                data.display(),
                self.version
            ),
            _ => Ok(()),
        }
    }
}

fn data_major(data: &Path) -> Option<u32> {
    let text = fs::read_to_string(data.join("PG_VERSION")).ok()?;
    text.trim().parse().ok()
}

/// The version in what `postgres --version` prints: `postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)`.
fn parse_version(text: &str) -> Option<String> {
    let version = text.split_once("(PostgreSQL) ")?.1.split_whitespace().next()?;
    major(version).map(|_| version.to_owned())
}

/// The major version of `15.13`, `17.6` or `18beta1`.
fn major(version: &str) -> Option<u32> {
    let digits = version.find(|character: char| !character.is_ascii_digit());
    version[..digits.unwrap_or(version.len())].parse().ok()
}

/// Fetches the archive that fits this machine and unpacks it, unless that was done before.
async fn fetch(cache: &Path, maven: &Maven<'_>) -> Result<Binaries> {
    // Root runs the programs as another user, who has to get at them.
    let home = reachable(&cache.join(format!("postgres-{ARCHIVE_VERSION}")), unprivileged_user()?)?;
    if let Some(binaries) = Binaries::at(&home.join("bin")) {
        return Ok(binaries);
    }
    let artifact = format!("embedded-postgres-binaries-{}", platform()?);
    let wanted = Wanted {
        what: &format!("Postgres {ARCHIVE_VERSION}"),
        pom: &maven::pom("io.zonky.test.postgres", &artifact, ARCHIVE_VERSION),
        goal: "unpack-dependencies",
    };
    maven.fetch(&wanted, &home, unpack).await?;
    make_passable(&home)?;
    Binaries::at(&home.join("bin"))
        .with_context(|| format!("the fetched Postgres in {} does not run here", home.display()))
}

/// This machine, as the archives name it.
fn platform() -> Result<String> {
    let system = match std::env::consts::OS {
        "macos" => "darwin",
        other => other,
    };
    let machine = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" if system == "darwin" => "arm64v8",
        "aarch64" => "arm64v8",
        other => bail!("there is no ready-made Postgres for {system} on {other}; install one"),
    };
    let alpine = if Path::new("/etc/alpine-release").exists() { "-alpine" } else { "" };
    Ok(format!("{system}-{machine}{alpine}"))
}

/// Unpacks the `.txz` that Maven has taken out of the jar, in place.
fn unpack(folder: &Path) -> Result<()> {
    let archive = fs::read_dir(folder)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "txz"))
        .with_context(|| format!("no archive of Postgres in {}", folder.display()))?;
    let mut packed = BufReader::new(fs::File::open(&archive)?);
    let mut plain = tempfile::tempfile().context("no room for a temporary file")?;
    lzma_rs::xz_decompress(&mut packed, &mut plain)
        .map_err(|error| anyhow::anyhow!("cannot decompress {}: {error:?}", archive.display()))?;
    std::io::Seek::rewind(&mut plain)?;
    tar::Archive::new(BufReader::new(plain))
        .unpack(folder)
        .with_context(|| format!("cannot unpack {}", archive.display()))?;
    fs::remove_file(&archive)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_what_postgres_prints() {
        let version = |text| parse_version(text);
        let debian = "postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)\n";
        assert_eq!(version(debian).as_deref(), Some("15.13"));
        assert_eq!(version("postgres (PostgreSQL) 18beta1").as_deref(), Some("18beta1"));
        assert_eq!(version("bash: postgres: command not found"), None);
        assert_eq!(major("18beta1"), Some(18));
        assert_eq!(major("9.6"), Some(9));
        assert_eq!(major("common"), None);
    }
}
