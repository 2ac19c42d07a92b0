//! What we are built from: the packages of `cargo metadata`, and whether a licence is one of those that are allowed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// A package.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Package {
    id: String,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Where it comes from; none for a package of ours.
    pub source: Option<String>,
    /// Its licences, as an expression of SPDX.
    pub license: Option<String>,
    /// Who wrote it, as far as it says so.
    #[serde(default)]
    pub authors: Vec<String>,
    manifest_path: PathBuf,
}

impl Package {
    /// The folder that its sources are in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(Path::new("/"))
    }

    /// Its licences, or that it has none.
    #[must_use]
    pub fn licence(&self) -> &str {
        self.license.as_deref().unwrap_or("no licence")
    }
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
    workspace_members: Vec<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    kind: Option<String>,
}

/// All packages of others, as cargo lists them for this machine, in the order of their names. `arguments` are for cargo: features, or `--offline`.
pub fn all(root: &Path, arguments: &[String]) -> Result<Vec<Package>> {
    Ok(others(metadata(root, arguments)?.packages))
}

/// Those of [`all`] that our programs are linked with: without those that only tests or the build itself need.
pub fn linked(root: &Path, arguments: &[String]) -> Result<Vec<Package>> {
    let Metadata { packages, resolve, workspace_members } = metadata(root, arguments)?;
    let nodes: HashMap<&str, &Node> = resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let mut waiting: Vec<&str> = workspace_members.iter().map(String::as_str).collect();
    let mut found = HashSet::new();
    while let Some(id) = waiting.pop() {
        if found.insert(id.to_owned()) {
            let dependencies = nodes.get(id).map_or(&[][..], |node| &node.deps);
            let is_linked = |dependency: &&Dependency| dependency.dep_kinds.iter().any(|kind| kind.kind.is_none());
            waiting.extend(dependencies.iter().filter(is_linked).map(|dependency| dependency.pkg.as_str()));
        }
    }
    Ok(others(packages.into_iter().filter(|package| found.contains(&package.id)).collect()))
}

fn others(mut packages: Vec<Package>) -> Vec<Package> {
    packages.retain(|package| package.source.is_some());
    packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    packages
}

fn metadata(root: &Path, arguments: &[String]) -> Result<Metadata> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // Those of other platforms need not be on this machine.
    let mut command = Command::new(cargo);
    command.current_dir(root).args(["metadata", "--format-version", "1", "--locked", "--filter-platform", &host()?]);
    let output = command.args(arguments).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    serde_json::from_slice(&output.stdout).context("cannot read what cargo metadata says")
}

/// The platform that programs are built for here.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().context("cannot run rustc")?;
    let said = String::from_utf8(output.stdout)?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}

/// The licences that `deny.toml` allows.
pub fn allowed_licences(deny: &str) -> Result<BTreeSet<&str>> {
    let (_, section) = deny.split_once("\n[licenses]\n").context("deny.toml has no section [licenses]")?;
    let (_, list) = section.split_once("\nallow = [").context("deny.toml allows no licence")?;
    let (list, _) = list.split_once(']').context("the list of allowed licences ends with ]")?;
    Ok(list.split('"').skip(1).step_by(2).collect())
}

/// Whether an expression of SPDX can be met with licences that are allowed. A slash, as some older packages have it, is a choice.
#[must_use]
pub fn is_allowed(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words, allowed };
    parser.choice().is_some_and(|met| met && parser.words.is_empty())
}

struct Parser<'a> {
    words: &'a [&'a str],
    allowed: &'a BTreeSet<&'a str>,
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let (first, rest) = self.words.split_first()?;
        self.words = rest;
        Some(first)
    }

    fn takes(&mut self, word: &str) -> bool {
        let is_next = self.words.first() == Some(&word);
        if is_next {
            self.words = &self.words[1..];
        }
        is_next
    }

    fn choice(&mut self) -> Option<bool> {
        let mut met = self.all_of()?;
        while self.takes("OR") {
            met |= self.all_of()?;
        }
        Some(met)
    }

    fn all_of(&mut self) -> Option<bool> {
        let mut met = self.one()?;
        while self.takes("AND") {
            met &= self.one()?;
        }
        Some(met)
    }

    fn one(&mut self) -> Option<bool> {
        let name = self.next()?;
        if name == "(" {
            let met = self.choice()?;
            return self.takes(")").then_some(met);
        }
        if self.takes("WITH") {
            let with = format!("{name} WITH {}", self.next()?);
            return Some(self.allowed.contains(with.as_str()));
        }
        Some(self.allowed.contains(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_allowed_if_one_of_its_choices_is() {
        let allowed = BTreeSet::from(["MIT", "Apache-2.0", "ISC"]);
        for (expression, is) in [
            ("MIT", true),
            ("MIT/GPL-3.0", true),
            ("Apache-2.0 / MIT", true),
            ("GPL-3.0 OR MIT", true),
            ("MIT AND GPL-3.0", false),
            ("MIT AND GPL-3.0 OR ISC", true),
            ("(MIT OR GPL-3.0) AND ISC", true),
            ("(MIT OR ISC) AND GPL-3.0", false),
            ("Apache-2.0 WITH LLVM-exception", false),
            ("Apache-2.0 WITH LLVM-exception OR MIT", true),
            ("", false),
            ("(MIT", false),
            ("MIT ISC", false),
            ("no licence", false),
        ] {
            assert_eq!(is_allowed(expression, &allowed), is, "{expression}");
        }
    }

    #[test]
    fn the_list_of_allowed_licences_is_read() -> Result<()> {
        let deny = "[graph]\nall-features = true\n\n[licenses]\n# Why.\nallow = [\n    \"MIT\",\n    \"ISC\",\n]\n\n[bans]\nallow = []\n";
        assert_eq!(allowed_licences(deny)?, BTreeSet::from(["ISC", "MIT"]));
        Ok(())
    }
}
