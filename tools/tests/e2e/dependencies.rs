//! What we are built from: licences and sources that `deny.toml` allows, and the notices that they ask for.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tools::packages::{all, allowed_licences, is_allowed};

use super::command_line::{outrider, well};

/// Only what the build has fetched is on every machine.
const AS_BUILT: [&str; 2] = ["--offline", "--no-default-features"];

fn root() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the top of the tree")
}

#[test]
fn each_package_has_a_licence_that_is_allowed_and_comes_from_crates_io() -> Result<()> {
    let deny = fs::read_to_string(root()?.join("deny.toml"))?;
    let allowed = allowed_licences(&deny)?;
    let packages = all(root()?, &AS_BUILT.map(str::to_owned))?;
    ensure!(packages.len() > 200, "{} packages", packages.len());
    let refused: Vec<String> = packages
        .iter()
        .filter(|package| !is_allowed(package.licence(), &allowed))
        .map(|package| format!("{} {}: {}", package.name, package.version, package.licence()))
        .collect();
    ensure!(refused.is_empty(), "deny.toml does not allow {refused:#?}");

    // That of all platforms and features.
    let lock = fs::read_to_string(root()?.join("Cargo.lock"))?;
    let crates_io = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
    let others: Vec<&str> = lock.lines().filter(|line| line.starts_with("source = ") && *line != crates_io).collect();
    ensure!(others.is_empty() && lock.contains(crates_io), "{others:?}");
    Ok(())
}

#[test]
fn the_notices_have_the_texts_of_packages_and_of_the_libraries_that_they_bring_each_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("notices");
    let said = well(outrider("notices").arg(&file).arg("--").args(AS_BUILT).current_dir(root()?))?;
    ensure!(said.contains("packages"), "{said}");
    let text = fs::read_to_string(&file)?;
    for words in [
        "\nserde 1.",
        "librdkafka/LICENSES.txt",
        "Copyright (c) 2012-2022, Magnus Edenhill",
        "zstd/LICENSE",
        "Copyright (c) Meta Platforms",
        "LZ4 Library",
        "SmartBear",
    ] {
        ensure!(text.contains(words), "the notices have no {words:?}");
    }
    // Hundreds of packages bring the same text of it.
    let copies = text.matches("TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION").count();
    ensure!((1..40).contains(&copies), "{copies} copies of the Apache licence");
    ensure!(text.len() < 2_000_000, "{} bytes", text.len());
    // A tool of the tests alone.
    ensure!(!text.contains("\nrcgen "), "what is only in tests is listed");
    Ok(())
}
