//! Fetching through Maven what is not ours to ship: Kafka's jars, and Postgres where the system has none.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use prerequisites::Program;
use tokio::time;

use super::process::{Launch, Process};
use super::reaper::Reaper;
use crate::required::need;

/// Pinned, so that Maven does not look for the newest each time.
const DEPENDENCY_PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1";

/// Between two lines on how far it is.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

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
        need(Program::Maven)?;
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
        let process = Launch::new("mvn", "mvn")
            .args(["--batch-mode", "-Dstyle.color=never", "--file"])
            .arg(&project)
            .arg(format!("{DEPENDENCY_PLUGIN}:{}", wanted.goal))
            .arg("-DincludeScope=runtime")
            .arg(format!("-DoutputDirectory={}", fetched.display()))
            .current_dir(place.path())
            .log(&self.log)
            .spawn(self.reaper)?;
        self.watch(process, wanted.what)
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

impl Maven<'_> {
    /// Waits for the end of a run, and tells from time to time how many files it has.
    async fn watch(&self, mut process: Process, what: &str) -> Result<()> {
        let before = fetched_files(&self.log);
        let mut told = 0;
        let status = loop {
            if let Ok(status) = time::timeout(REPORT_INTERVAL, process.wait()).await {
                break status?;
            }
            let files = fetched_files(&self.log).saturating_sub(before);
            if files > told {
                told = files;
                (self.announce)(&format!("fetching {what}: {files} files"));
            }
        };
        if status.success() { Ok(()) } else { Err(process.death(status)) }
    }
}

/// How many files Maven says to have downloaded. The log is that of a few runs at most.
fn fetched_files(log: &Path) -> usize {
    fs::read_to_string(log).map_or(0, |text| text.matches("Downloaded from").count())
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
