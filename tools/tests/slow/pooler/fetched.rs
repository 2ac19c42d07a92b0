//! A PgBouncer of a later Debian than this machine's, fetched once into `.dev`, with the libraries that it was built with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tools::stack::Launch;
use tools::workspace::dev_folder;

use crate::harness::pooler::Program;
use crate::harness::reaper;

/// The release of Debian that it is taken from, which has PgBouncer 1.24.
const RELEASE: &str = "trixie";

/// The oldest that is current, as (major, minor).
const VERSION_MIN: (u32, u32) = (1, 24);

/// PgBouncer and all that it is linked with. The machine's own libraries may be older.
const PACKAGES: [&str; 12] = [
    "pgbouncer",
    "libc6",
    "libc-ares2",
    "libevent-2.1-7t64",
    "libpam0g",
    "libssl3t64",
    "libsystemd0",
    "libcap2",
    "libaudit1",
    "libcap-ng0",
    "libzstd1",
    "zlib1g",
];

/// The system's, if that is current, and else the fetched one.
pub(super) async fn current() -> Result<Program> {
    let installed = Program::installed();
    if version(&installed).is_ok_and(|version| version >= VERSION_MIN) {
        return Ok(installed);
    }
    let folder = dev_folder()?.join(format!("pgbouncer-{RELEASE}"));
    if !folder.exists() {
        fetch(&folder).await.context("a current PgBouncer cannot be fetched through apt, which this test needs")?;
    }
    let program = in_folder(&folder)?;
    let version = version(&program)?;
    ensure!(version >= VERSION_MIN, "{version:?} is not current");
    Ok(program)
}

/// Runs the program by the loader that came with it, with the libraries that came with it.
fn in_folder(folder: &Path) -> Result<Program> {
    let libraries = fs::read_dir(folder.join("usr/lib"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.join("libc.so.6").exists())
        .context("no libraries")?;
    let loader = fs::read_dir(&libraries)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-linux")))
        .context("no loader")?;
    let command: Vec<PathBuf> = vec![loader, "--library-path".into(), libraries, folder.join("usr/sbin/pgbouncer")];
    Ok(Program { command })
}

fn version(program: &Program) -> Result<(u32, u32)> {
    let output = Command::new(&program.command[0]).args(&program.command[1..]).arg("--version").output()?;
    let text = String::from_utf8(output.stdout)?;
    let numbers = text.strip_prefix("PgBouncer ").and_then(|rest| rest.lines().next()).context("its version")?;
    let mut numbers = numbers.split('.').map(str::parse);
    Ok((numbers.next().context("a major version")??, numbers.next().context("a minor version")??))
}

async fn fetch(folder: &Path) -> Result<()> {
    eprintln!("fetching a current PgBouncer through apt, once");
    let parent = folder.parent().context("a folder has a parent")?;
    fs::create_dir_all(parent)?;
    // Beside the target, so that it can be renamed; gone when we are interrupted.
    let place = tempfile::Builder::new().prefix("fetching-").tempdir_in(parent)?;
    let at = |name: &str| place.path().join(name);
    for name in ["sources", "lists", "cache", "packages", "root"] {
        fs::create_dir(at(name))?;
    }
    fs::write(at("sources/later.sources"), sources()?)?;
    // Lists, and what is held to be installed, of its own: the machine's apt is not touched.
    let options = [
        "Dir::Etc::sourcelist=/dev/null".to_owned(),
        format!("Dir::Etc::sourceparts={}", at("sources").display()),
        format!("Dir::State::lists={}", at("lists").display()),
        format!("Dir::Cache={}", at("cache").display()),
        "Dir::State::status=/dev/null".to_owned(),
        "APT::Sandbox::User=root".to_owned(),
    ];
    let apt = |arguments: &[&str]| {
        let launch = Launch::new("apt-get", "apt-get").arg("--quiet").current_dir(at("packages")).log(at("log"));
        options.iter().fold(launch, |launch, option| launch.arg("-o").arg(option)).args(arguments)
    };
    let reaper = reaper()?;
    apt(&["update"]).run(&reaper).await?;
    apt(&[&["download"], &PACKAGES[..]].concat()).run(&reaper).await?;
    for package in fs::read_dir(at("packages"))? {
        let launch = Launch::new("dpkg-deb", "dpkg-deb").arg("-x").arg(package?.path()).arg(at("root")).log(at("log"));
        launch.run(&reaper).await?;
    }
    fs::rename(at("root"), folder)?;
    Ok(())
}

/// Where this machine gets its own Debian's packages from, for [`RELEASE`].
fn sources() -> Result<String> {
    let system = fs::read_to_string("/etc/os-release")?;
    let own = system.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).context("no Debian")?;
    let mut found = String::new();
    for file in fs::read_dir("/etc/apt/sources.list.d")? {
        let file = file?.path();
        if file.extension().is_none_or(|extension| extension != "sources") {
            continue;
        }
        for paragraph in fs::read_to_string(file)?.split("\n\n") {
            let suites = paragraph.lines().find_map(|line| line.strip_prefix("Suites:")).unwrap_or_default();
            if !suites.split_whitespace().any(|suite| suite == own) {
                continue;
            }
            for line in paragraph.lines().filter(|line| !line.starts_with('#')) {
                found.extend(if line.starts_with("Suites:") { ["Suites: ", RELEASE, "\n"] } else { [line, "\n", ""] });
            }
            found.push('\n');
        }
    }
    ensure!(!found.is_empty(), "no file in sources.list.d says where the packages of {own} come from");
    Ok(found)
}
