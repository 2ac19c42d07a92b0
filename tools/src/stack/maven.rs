//! Fetching through Maven what is not ours to ship: Kafka's jars, and Postgres where the system has none.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::postgres::remove_if_present;
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

impl Maven<'_> {
    /// Fetches the dependencies of the project `pom` into the folder `target`: `goal` of the dependency plugin puts
    /// them there, `finish` does the rest. The folder appears only when all of it has succeeded.
    pub async fn fetch<F>(&self, pom: &str, goal: &str, target: &Path, finish: F) -> Result<()>
    where
        F: FnOnce(&Path) -> Result<()> + Send + 'static,
    {
        prerequisites::maven()?;
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        (self.announce)(&format!("fetching {name} through Maven, once"));
        let parent = target.parent().context("a folder has a parent")?;
        fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        let project = tempfile::tempdir().context("no room for a temporary folder")?;
        let project_file = project.path().join("pom.xml");
        fs::write(&project_file, pom)?;

        let unfinished = parent.join(format!("{name}.{}.part", std::process::id()));
        remove_if_present(&unfinished)?;
        let fetched = Launch::new("mvn", "mvn")
            .args(["--batch-mode", "--quiet", "--file"])
            .arg(&project_file)
            .arg(format!("{DEPENDENCY_PLUGIN}:{goal}"))
            .arg("-DincludeScope=runtime")
            .arg(format!("-DoutputDirectory={}", unfinished.display()))
            .current_dir(project.path())
            .log(&self.log)
            .run(self.reaper)
            .await;
        let folder = unfinished.clone();
        let finished = match fetched {
            Ok(()) => tokio::task::spawn_blocking(move || finish(&folder)).await?,
            Err(error) => Err(error.context("Maven could not fetch it; is the network reachable?")),
        };
        if let Err(error) = finished {
            remove_if_present(&unfinished)?;
            return Err(error);
        }
        // Somebody else may have been quicker; theirs is as good.
        if fs::rename(&unfinished, target).is_err() && !target.exists() {
            remove_if_present(target)?;
            fs::rename(&unfinished, target).with_context(|| format!("cannot create {}", target.display()))?;
        }
        remove_if_present(&unfinished)
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
