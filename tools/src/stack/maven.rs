//! Fetching through Maven what is not ours to ship: Kafka's jars, and Postgres where the system has none.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::process::Launch;
use super::reaper::Reaper;
use crate::prerequisites;

/// Pinned, so that Maven does not look for the newest each time.
const DEPENDENCY_PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1";

/// How to run Maven here.
#[derive(Debug)]
pub struct Maven<'a> {
    /// The file for its output.
    pub log: PathBuf,
    /// Told to whoever waits, before the first byte is fetched.
    pub announce: fn(&str),
    /// Ends it when we vanish.
    pub reaper: &'a Reaper,
}

/// What to fetch.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// What it is called.
    pub what: &'a str,
    /// A project that depends on it.
    pub pom: &'a str,
    /// The goal of Maven's dependency plugin that puts it into a folder.
    pub goal: &'a str,
}

impl Maven<'_> {
    /// Fetches something into the folder `target`; `finish` does what is left to do there. The folder appears only when
    /// all of it has succeeded.
    pub async fn fetch(&self, wanted: &Wanted<'_>, target: &Path, finish: fn(&Path) -> Result<()>) -> Result<()> {
        prerequisites::maven()?;
        (self.announce)(&format!("fetching {} through Maven, once", wanted.what));
        let parent = target.parent().context("a folder has a parent")?;
        fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        // Beside the target, so that it can be renamed; gone when we are interrupted.
        let place = tempfile::Builder::new()
            .prefix("fetching-")
            .tempdir_in(parent)
            .with_context(|| format!("cannot create a folder in {}", parent.display()))?;
        let project = place.path().join("pom.xml");
        fs::write(&project, wanted.pom)?;
        let fetched = place.path().join("fetched");
        Launch::new("mvn", "mvn")
            .args(["--batch-mode", "--quiet", "-Dstyle.color=never", "--file"])
            .arg(&project)
            .arg(format!("{DEPENDENCY_PLUGIN}:{}", wanted.goal))
            .arg("-DincludeScope=runtime")
            .arg(format!("-DoutputDirectory={}", fetched.display()))
            .current_dir(place.path())
            .log(&self.log)
            .run(self.reaper)
            .await
            .with_context(|| format!("Maven can't fetch {}; is the network reachable?", wanted.what))?;
        let folder = fetched.clone();
        tokio::task::spawn_blocking(move || finish(&folder)).await??;
        match fs::rename(&fetched, target) {
            // Somebody else was quicker; theirs is as good.
            Err(_) if target.exists() => Ok(()),
            renamed => renamed.with_context(|| format!("cannot create {}", target.display())),
        }
    }
}

/// A project that depends on one artifact.
pub(super) fn pom(group: &str, artifact: &str, version: &str) -> String {
    format!(
        "<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>outrider</groupId>
  <artifactId>fetch</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>{group}</groupId>
      <artifactId>{artifact}</artifactId>
      <version>{version}</version>
    </dependency>
  </dependencies>
</project>
"
    )
}
