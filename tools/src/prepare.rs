//! `outrider prepare`: describes the checked queries in `.sqlx`, so that a build needs no database, and what the migrations make in `schema.txt`.
//!
//! It does what sqlx's own command line does (`cargo sqlx prepare --workspace`), whose build takes minutes: the macros
//! of sqlx write a description of each query that they check against a database into `SQLX_OFFLINE_DIR`, so it is
//! enough to let cargo check the crates that use them anew. Unlike that command it brings the database along, removes
//! what is no longer used, and puts the files' times back, so that the next build has nothing to do.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;
use sqlx::Connection;
use sqlx::migrate::Migrator;

use crate::console::say;
use crate::signals::StopSignals;
use crate::stack::throwaway::{Supply, Throwaway};
use crate::stack::{Reaper, postgres};
use crate::workspace::{Executables, Workspace};

/// Whether to write.
#[derive(Debug, Args)]
pub struct PrepareArgs {
    /// Write nothing; fail when `.sqlx` is not current, and name the files
    #[arg(long)]
    check: bool,
}

/// What a new database holds, for `outrider doctor`.
const SCHEMA: &str = "shared/src/db/schema.txt";

/// The descriptions in a folder, by file name.
type Descriptions = BTreeMap<String, Value>;

/// Writes `.sqlx` anew, or checks it. The exit code is 1 when the check finds a difference.
pub async fn run(args: PrepareArgs) -> Result<ExitCode> {
    let workspace = Workspace::required()?;
    let mut signals = StopSignals::listen()?;
    let supply = Supply {
        cache: workspace.root().join(".dev"),
        announce: |line| eprintln!("{line}"),
        reaper: Reaper::start(Executables::own()?.outrider())?,
    };
    let mut servers = Throwaway::new()?;
    let fresh = servers.folder().join("sqlx");
    fs::create_dir(&fresh)?;
    let schema = signals.interrupts(Box::pin(describe(&workspace, &supply, &mut servers, &fresh))).await?;

    let (kept, kept_schema) = (workspace.root().join(".sqlx"), workspace.root().join(SCHEMA));
    let mut differences = differences(&read_descriptions(&kept)?, &read_descriptions(&fresh)?);
    if fs::read_to_string(&kept_schema).ok().as_ref() != Some(&schema) {
        differences.push(format!("stale   {SCHEMA}"));
    }
    for difference in &differences {
        say(format_args!("{difference}"));
    }
    if differences.is_empty() {
        say(format_args!(".sqlx and {SCHEMA} are current"));
    } else if args.check {
        say(format_args!(".sqlx and {SCHEMA} are not current; run: cargo dev prepare"));
        return Ok(ExitCode::FAILURE);
    } else {
        replace(&kept, &fresh)?;
        fs::write(&kept_schema, schema).with_context(|| format!("cannot write {}", kept_schema.display()))?;
        say(format_args!(".sqlx and {SCHEMA} are written; commit them"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Lets the macros describe all queries into `folder`, against a database of this build's schema. Returns the description of that.
async fn describe(workspace: &Workspace, supply: &Supply, servers: &mut Throwaway, folder: &Path) -> Result<String> {
    let url = servers.start_postgres(supply).await?;
    // The files as they are now, not as they were built into us: a query that is new does not let us be built anew.
    let migrations = Migrator::new(workspace.root().join("migrations")).await.context("the migrations can be read")?;
    let mut connection = postgres::connect(&url).await?;
    migrations.run_direct(None, &mut connection, false).await.context("the migrations apply")?;
    let schema = shared::db::describe(&mut connection).await.context("the schema can be described")?;
    connection.close().await?;
    let _touched = Touched::new(&files_with_queries(workspace.root())?)?;
    workspace
        .cargo()
        .args(["check", "--workspace", "--all-targets", "--no-default-features"])
        .env("DATABASE_URL", url)
        .env("SQLX_OFFLINE", "false")
        .env("SQLX_OFFLINE_DIR", folder)
        .run(&supply.reaper)
        .await
        .context("the queries could not be checked")?;
    Ok(schema)
}

/// The source files that hold checked queries. Touching one of them makes cargo check all targets that it belongs to.
fn files_with_queries(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = fs::read_dir(root)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.join("Cargo.toml").exists())
        .collect();
    // The depth is that of the source tree; links, which could make a circle, are not followed.
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let path = entry.path();
            let kind = entry.file_type()?;
            if kind.is_dir() && entry.file_name() != "target" {
                folders.push(path);
            } else if kind.is_file()
                && path.extension().is_some_and(|extension| extension == "rs")
                && has_query(&fs::read_to_string(&path)?)
            {
                files.push(path);
            }
        }
    }
    Ok(files)
}

/// Whether a source text calls one of the macros `query!`, `query_as!`, `query_scalar!`, `query_file!` and so on.
fn has_query(text: &str) -> bool {
    text.match_indices("query").any(|(start, word)| {
        let rest = &text[start + word.len()..];
        let end = rest.find(|character: char| character != '_' && !character.is_ascii_lowercase());
        end.is_some_and(|end| rest[end..].starts_with('!'))
    })
}

/// Files that look as if they had just been edited, until this is dropped.
struct Touched {
    now: SystemTime,
    files: Vec<(PathBuf, SystemTime)>,
}

impl Touched {
    fn new(paths: &[PathBuf]) -> Result<Self> {
        let mut touched = Self { now: SystemTime::now(), files: Vec::new() };
        for path in paths {
            let file = File::options().append(true).open(path);
            let file = file.with_context(|| format!("cannot touch {}", path.display()))?;
            let before = file.metadata()?.modified()?;
            file.set_modified(touched.now)?;
            // As the file system keeps it, which may be coarser.
            touched.now = file.metadata()?.modified()?;
            touched.files.push((path.clone(), before));
        }
        Ok(touched)
    }
}

impl Drop for Touched {
    fn drop(&mut self) {
        for (path, before) in &self.files {
            let Ok(file) = File::options().append(true).open(path) else {
                continue;
            };
            // Somebody may have edited it meanwhile; then it has to stay as new as it is.
            let is_as_we_left_it =
                file.metadata().and_then(|metadata| metadata.modified()).is_ok_and(|modified| modified == self.now);
            if is_as_we_left_it {
                let _ = file.set_modified(*before);
            }
        }
    }
}

fn read_descriptions(folder: &Path) -> Result<Descriptions> {
    let mut descriptions = Descriptions::new();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(descriptions),
        Err(error) => bail!("cannot read {}: {error}", folder.display()),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_description(&name) {
            // A file that is no JSON differs from any that is.
            let content = serde_json::from_slice(&fs::read(entry.path())?).unwrap_or_default();
            descriptions.insert(name, without_guesses(content));
        }
    }
    Ok(descriptions)
}

/// Leaves out whether a column may be null where the query itself says so (`"id?"`, `"rows!"`). The macros do not look at it then, and it is
/// guessed from the query's plan, which differs between versions of Postgres.
fn without_guesses(mut description: Value) -> Value {
    let says_itself = |column: &Value| column["name"].as_str().is_some_and(|name| name.ends_with(['?', '!']));
    let places: Vec<bool> =
        description["describe"]["columns"].as_array().into_iter().flatten().map(says_itself).collect();
    let nullable = description.pointer_mut("/describe/nullable").and_then(Value::as_array_mut);
    for (guess, _) in nullable.into_iter().flatten().zip(places).filter(|(_, says_itself)| *says_itself) {
        *guess = Value::Null;
    }
    description
}

fn is_description(name: &str) -> bool {
    name.starts_with("query-") && Path::new(name).extension().is_some_and(|extension| extension == "json")
}

/// One line for each file that is missing, stale or no longer used, with the query's first words.
fn differences(kept: &Descriptions, fresh: &Descriptions) -> Vec<String> {
    let line = |what: &str, name: &str, description: &Value| {
        let query = description["query"].as_str().unwrap_or_default().trim();
        let query = query.lines().next().unwrap_or_default();
        format!("{what} {name}  {query}")
    };
    let new_or_changed = fresh.iter().filter_map(|(name, description)| match kept.get(name) {
        None => Some(line("missing", name, description)),
        Some(old) if old != description => Some(line("stale  ", name, description)),
        Some(_) => None,
    });
    let unused = kept
        .iter()
        .filter(|(name, _)| !fresh.contains_key(*name))
        .map(|(name, description)| line("surplus", name, description));
    new_or_changed.chain(unused).collect()
}

/// Makes the descriptions in `kept` those of `fresh`; other files there stay.
fn replace(kept: &Path, fresh: &Path) -> Result<()> {
    fs::create_dir_all(kept).with_context(|| format!("cannot create {}", kept.display()))?;
    for name in read_descriptions(kept)?.keys() {
        fs::remove_file(kept.join(name))?;
    }
    for name in read_descriptions(fresh)?.keys() {
        fs::copy(fresh.join(name), kept.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_macros_are_found_and_functions_are_not() {
        for text in ["query!(", "sqlx::query_as!(T,", "query_scalar_unchecked! (", "query_file!"] {
            assert!(has_query(text), "{text}");
        }
        for text in ["query(", "sqlx::query_as::<_, T>(", "query", "a query, done!", "Query!"] {
            assert!(!has_query(text), "{text}");
        }
    }

    #[test]
    fn each_kind_of_difference_is_named() {
        let descriptions = |pairs: &[(&str, &str)]| -> Descriptions {
            pairs.iter().map(|(name, query)| ((*name).to_owned(), json!({ "query": query }))).collect()
        };
        let kept = descriptions(&[("a", "SELECT 1"), ("b", "SELECT 2"), ("c", "SELECT 3")]);
        let fresh = descriptions(&[("a", "SELECT 1"), ("b", "\n-- two\nSELECT"), ("d", "SELECT 4")]);
        assert_eq!(differences(&kept, &fresh), ["stale   b  -- two", "missing d  SELECT 4", "surplus c  SELECT 3"]);
        assert!(differences(&kept, &kept).is_empty());
    }

    #[test]
    fn a_guess_that_no_macro_looks_at_is_no_difference() {
        let description = |id: bool, lane: bool| {
            let columns = json!([{ "name": "oldest_id?" }, { "name": "lane" }]);
            without_guesses(json!({ "describe": { "columns": columns, "nullable": [id, lane] } }))
        };
        assert_eq!(description(true, false), description(false, false));
        assert_ne!(description(true, false), description(true, true));
        assert_eq!(without_guesses(Value::Null), Value::Null, "no description at all");
    }

    #[test]
    fn touched_files_get_their_time_back_unless_they_were_edited() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let long_ago = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        let paths = ["kept.rs", "edited.rs"].map(|name| folder.path().join(name));
        for path in &paths {
            File::create(path)?.set_modified(long_ago)?;
        }
        let touched = Touched::new(&paths)?;
        assert!(fs::metadata(&paths[0])?.modified()? > long_ago);
        let edit = SystemTime::now() + std::time::Duration::from_secs(1);
        File::options().append(true).open(&paths[1])?.set_modified(edit)?;
        drop(touched);
        assert_eq!(fs::metadata(&paths[0])?.modified()?, long_ago);
        assert!(fs::metadata(&paths[1])?.modified()? > long_ago);
        Ok(())
    }
}
