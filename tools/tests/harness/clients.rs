//! Clients of the API that others' generators make of its description: made, built and run as `docs/guides/clients.md` says. All of them do
//! the same and print the same.

mod kit;
mod newer;
mod table;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use shared::testing::TestDatabase;
use tokio::process::Command;
use tokio::time::timeout;
use tools::stack::{Kind, Service};

use super::{reaper, supply, surroundings};
use kit::{Kit, Provided};
use newer::NewerApi;
pub(crate) use table::*;

/// How long one command may take; most fetch something at the first time.
const PATIENCE: Duration = Duration::from_mins(10);

/// What every client prints: an order; a problem; a conflict; a batch; a timeline whose events no relay has published; and an order of an API
/// that knows a status more.
const EXPECTED: &str = "\
201 Pending version 1, deleted: never
422 /problems/invalid-order: quantity must be from 1 to 10000. (quantity)
409 /problems/order-not-pending: The order is Cancelled; only a Pending one can be cancelled.
batch: 201 Pending
batch: 422 /problems/invalid-order
timeline: order.created Pending, offset: none
timeline: order.cancelled Cancelled, offset: none
newer: Shipped
";

/// A generator, and a program with the client that it makes.
#[derive(Debug)]
pub(crate) struct Client {
    /// As people call the generator.
    pub(crate) generator: &'static str,
    /// Where the generator and what its client needs come from.
    pub(crate) kits: &'static [Kit],
    /// The program's file, in a folder in which nothing else of ours is.
    file: &'static str,
    /// The program, which the guide shows a part of.
    pub(crate) text: &'static str,
    /// What makes the client, builds the program and runs it, one after the other. `{url}` is where the API is, and `{newer}` a newer one.
    commands: &'static [&'static str],
}

impl Client {
    /// The command that makes the client of the API at `url`.
    pub(crate) fn generate(&self, url: &str) -> Result<String> {
        let command = self.commands.iter().find(|command| command.contains("{url}")).context(self.generator)?;
        Ok(command.replace("{url}", url))
    }

    /// The commands that bring what the client needs at run time.
    pub(crate) fn go_dependencies(&self) -> impl Iterator<Item = &'static str> {
        self.commands.iter().copied().filter(|command| command.starts_with("go get "))
    }

    /// The part of the program that the guide shows, without its indentation, if it shows any.
    pub(crate) fn example(&self) -> Option<String> {
        let lines = self.text.lines().skip_while(|line| !line.ends_with("guide: from here")).skip(1);
        let lines: Vec<&str> = lines.take_while(|line| !line.ends_with("guide: to here")).collect();
        let indentation = |line: &&str| line.len() - line.trim_start().len();
        let margin = lines.iter().filter(|line| !line.is_empty()).map(indentation).min()?;
        Some(lines.iter().flat_map(|line| [line.get(margin..).unwrap_or_default(), "\n"]).collect())
    }

    /// Makes the client of a real API, and has its program talk to it.
    ///
    /// # Errors
    /// When the client cannot be made or built, or does not read all that it is to read.
    pub(crate) async fn works(&self) -> Result<()> {
        let supply = supply()?;
        let provided = Provided::by(self.kits, &supply).await?;
        let database = TestDatabase::create("client").await;
        let (folder, logs) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let surroundings = surroundings(&database.url, String::new(), logs.path().to_owned())?;
        let mut api = Service::start(Kind::Api, "api", &surroundings, &[("API_AUTH", "none")], &reaper()?)?;
        api.wait_ready().await?;
        let url = api.api_url().context("the api has a URL")?;
        let newer = NewerApi::start().await?;
        let file = folder.path().join(self.file);
        fs::create_dir_all(file.parent().context("a folder")?)?;
        fs::write(&file, self.text)?;
        // Node takes files for scripts of old unless it is told otherwise.
        fs::write(folder.path().join("package.json"), r#"{"type": "module"}"#)?;
        provided.lay(folder.path())?;
        let mut printed = String::new();
        for command in self.commands {
            let command = command.replace("{url}", &url).replace("{newer}", &newer.url);
            printed = run(&command, folder.path(), &provided).await.with_context(|| self.generator)?;
        }
        assert_eq!(printed, EXPECTED, "{}", self.generator);
        api.stop().await?;
        Ok(())
    }
}

/// Runs a command line, none of whose words has a space in it, and returns what it prints.
async fn run(line: &str, folder: &Path, provided: &Provided) -> Result<String> {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).current_dir(folder).envs(provided.env()?).kill_on_drop(true);
    let output = timeout(PATIENCE, command.output()).await.with_context(|| format!("{line} takes too long"))?;
    let output = output.with_context(|| format!("cannot run {line}"))?;
    let (said, complaints) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("{line}: {}\n{said}{complaints}", output.status);
    }
    Ok(said)
}
