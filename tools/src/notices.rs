//! `outrider notices`: writes what the licences of the packages in our programs ask for: their names, and the texts that they bring.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use crate::packages::{self, Package};
use crate::workspace::Workspace;

/// For the command line.
pub const EXAMPLES: &str = "Examples:
  cargo dev notices
  cargo dev notices /tmp/notices -- --offline --no-default-features";

/// Where to, and of which build.
#[derive(Debug, Args)]
pub struct NoticesArgs {
    /// The file to write
    #[arg(default_value = "THIRD_PARTY_NOTICES")]
    file: PathBuf,

    /// For cargo: the features that were built, for example
    #[arg(last = true, default_value = "--all-features", value_name = "ARGUMENTS")]
    cargo: Vec<String>,
}

/// How a file with a licence is called.
const NAMES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "COPYRIGHT", "UNLICENSE"];

/// Files with such names that are programs or pages.
const OTHER_KINDS: [&str; 9] = ["rs", "c", "h", "py", "sh", "js", "html", "json", "toml"];

/// How deep below a package's folder the libraries in C that it brings keep their licences, at most.
const DEPTH_MAX: u32 = 4;

/// Beyond that, a file is no licence.
const FILE_BYTES_MAX: u64 = 200_000;

/// What is in our programs and in none of the files that are looked at.
const BESIDES: &str = "Besides these packages:

- Rust's standard library, Copyright (c) The Rust Project Contributors: MIT OR Apache-2.0.
- Swagger UI, in the package utoipa-swagger-ui-vendored, Copyright 2020-2021 SmartBear Software Inc.: Apache-2.0.
- OpenSSL, where a program is built with the feature kafka-tls, is the system's and comes with the system's own notice.

The text of a licence of which a package brings none stands below, as others bring it.
";

/// A text, and the packages that bring it.
struct Notice {
    text: String,
    of: Vec<String>,
}

/// Writes the file.
pub fn run(args: &NoticesArgs) -> Result<ExitCode> {
    let workspace = Workspace::required()?;
    let packages = packages::linked(workspace.root(), &args.cargo)?;
    let text = notices(&packages)?;
    fs::write(&args.file, text).with_context(|| format!("cannot write {}", args.file.display()))?;
    println!("{} names {} packages", args.file.display(), packages.len());
    Ok(ExitCode::SUCCESS)
}

/// The whole text: a line for each package, then each licence with the packages that bring it.
fn notices(packages: &[Package]) -> Result<String> {
    let mut out = format!("Outrider contains the work of others, under the licences below.\n\n{BESIDES}\n");
    let mut by_words: BTreeMap<String, Notice> = BTreeMap::new();
    for package in packages {
        let label = format!("{} {}", package.name, package.version);
        let files = licence_files(package.folder(), DEPTH_MAX)?;
        let _ = write!(out, "{label}: {}", package.licence());
        if files.is_empty() {
            let authors = package.authors.join(", ");
            let _ = write!(out, " (brings no text; by {})", if authors.is_empty() { "its authors" } else { &authors });
        }
        out.push('\n');
        for file in files {
            let text = String::from_utf8_lossy(&fs::read(&file)?).into_owned();
            let place = file.strip_prefix(package.folder()).unwrap_or(&file).display();
            let notice =
                by_words.entry(words(&text)).or_insert_with(|| Notice { text: laid_out(&text), of: Vec::new() });
            notice.of.push(format!("{label}, {place}"));
        }
    }
    let mut notices: Vec<Notice> = by_words.into_values().collect();
    // Those of most packages first.
    notices.sort_by_key(|notice| std::cmp::Reverse(notice.of.len()));
    for Notice { text, of } in notices {
        let _ = write!(out, "\n{}\n{}\n\n{text}\n", "=".repeat(80), of.join("\n"));
    }
    Ok(out)
}

/// What a text says, however it is laid out: many packages bring the same licence with other lines.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A text without spaces that nobody sees.
fn laid_out(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n").trim_matches('\n').to_owned()
}

/// The files with licences in a folder and, as long as `depth` allows, in those below.
fn licence_files(folder: &Path, depth: u32) -> Result<Vec<PathBuf>> {
    let mut entries: Vec<fs::DirEntry> = fs::read_dir(folder)
        .and_then(Iterator::collect)
        .with_context(|| format!("cannot read {}", folder.display()))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let mut files = Vec::new();
    for entry in entries {
        let kind = entry.file_type()?;
        if kind.is_dir() && depth > 0 {
            files.extend(licence_files(&entry.path(), depth - 1)?);
        } else if kind.is_file() && is_licence(&entry.path()) && entry.metadata()?.len() <= FILE_BYTES_MAX {
            files.push(entry.path());
        }
    }
    Ok(files)
}

fn is_licence(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
    let is_other =
        file.extension().is_some_and(|kind| OTHER_KINDS.iter().any(|other| kind.eq_ignore_ascii_case(other)));
    !is_other && NAMES.iter().any(|start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_are_told_from_programs_by_their_names() {
        for (name, is) in [
            ("LICENSE", true),
            ("license-mit", true),
            ("LICENSE.lz4", true),
            ("COPYING", true),
            ("UNLICENSE", true),
            ("Copyright.txt", true),
            ("license.rs", false),
            ("notice.html", false),
            ("README.md", false),
        ] {
            assert_eq!(is_licence(Path::new(name)), is, "{name}");
        }
    }

    #[test]
    fn one_text_with_other_lines_is_the_same_and_shown_as_it_is() {
        assert_eq!(laid_out("\n\n  MIT\r\n\r\nFree \n"), "  MIT\n\nFree");
        assert_eq!(words("\n\n  MIT\r\n\r\nFree \n"), words("MIT Free"));
    }
}
