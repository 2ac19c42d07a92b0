//! `cargo dev`: looks for what the command needs, builds the workspace, and hands over to `outrider`.

use std::env;
use std::ffi::OsString;
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use prerequisites::command::Request;
use prerequisites::install::{self, Manager};
use prerequisites::{BUILD, Program, disk};

fn main() -> ExitCode {
    match run(&Request::parse(env::args_os().skip(1))) {
        Ok(never) => match never {},
        Err(message) => {
            eprintln!("cargo dev: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(request: &Request) -> Result<std::convert::Infallible, String> {
    let root = root()?;
    provide(request, &root)?;
    let own = env::current_exe().map_err(|error| format!("cannot find our own executable: {error}"))?;
    let outrider = own.with_file_name("outrider");
    let target = own.parent().unwrap_or(&root);
    let free = disk::free_mb(target).filter(|free| *free < disk::FIRST_BUILD_MB && !outrider.exists());
    if let Some(free) = free {
        return Err(format!(
            "the first build writes some {} MB, and {}",
            disk::FIRST_BUILD_MB,
            too_little(free, target)
        ));
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(BUILD).current_dir(&root);
    forget_our_package(&mut build);
    let status = build.status().map_err(|error| format!("cannot run cargo: {error}"))?;
    if !status.success() {
        return Err(match disk::free_mb(target).filter(|free| *free < disk::FULL_MB) {
            Some(free) => format!("the build failed, and {}", too_little(free, target)),
            None => "the build failed; its messages are above".to_owned(),
        });
    }
    let mut outrider = Command::new(outrider);
    outrider.args(&request.arguments);
    forget_our_package(&mut outrider);
    Err(format!("cannot run outrider: {}", outrider.exec()))
}

fn too_little(free: u64, target: &Path) -> String {
    format!(
        "only {free} MB are free for {}: make room, or set CARGO_TARGET_DIR to a folder on another disk",
        target.display()
    )
}

/// Looks for what is needed, and installs what is missing if that is wanted.
fn provide(request: &Request, root: &Path) -> Result<(), String> {
    let given = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    let in_ci = given("CI");
    let needs = request.needs(root, given);
    let wants_all = in_ci || request.install;
    let wanted: Vec<Program> =
        needs.required.into_iter().chain(needs.optional.into_iter().filter(|_| wants_all)).collect();
    let missing = missing(&wanted);
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("missing:");
    for (program, found) in &missing {
        eprintln!("  {:<34} {:<42} ({found})", program.name(), program.purpose());
    }
    let elevated = is_root();
    let programs: Vec<Program> = missing.iter().map(|(program, _)| *program).collect();
    let Some(manager) = Manager::find() else {
        return Err("install these first; neither apt-get nor dnf nor brew is here to do it".to_owned());
    };
    let lines = manager.commands(&programs, elevated);
    let pasted: Vec<String> = lines.iter().map(|line| install::pasteable(line)).collect();
    eprintln!("to install all of it:\n  {}", pasted.join(" &&\n  "));
    if !(request.install || in_ci && elevated || confirmed()) {
        return Err("install these first, or let `--install` do it: for instance `cargo dev up --install`".to_owned());
    }
    install::run(&lines)?;
    let still: Vec<String> =
        self::missing(&programs).iter().map(|(program, found)| format!("{} ({found})", program.name())).collect();
    if still.is_empty() { Ok(()) } else { Err(format!("still missing: {}", still.join(", "))) }
}

/// What was not found, and what was found in its place.
fn missing(wanted: &[Program]) -> Vec<(Program, String)> {
    wanted.iter().filter_map(|program| program.look().err().map(|found| (*program, found))).collect()
}

/// Asks the person at the terminal, if there is one.
fn confirmed() -> bool {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return false;
    }
    eprint!("Install it now? [y/N] ");
    let _ = io::stderr().flush();
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).is_ok() && matches!(line.trim(), "y" | "Y" | "yes")
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// The topmost folder of the checkout: cargo says where our package is.
fn root() -> Result<PathBuf, String> {
    let package = env::var_os("CARGO_MANIFEST_DIR").ok_or("run it by `cargo dev`")?;
    Path::new(&package)
        .ancestors()
        .nth(2)
        .map(Path::to_owned)
        .ok_or_else(|| "there is no checkout around this package".to_owned())
}

/// `cargo run` has described our package to us. What runs from here on is not to take that for its own: cargo would rebuild whatever looks
/// at such a variable.
fn forget_our_package(command: &mut Command) {
    let ours = |name: &OsString| {
        let name = name.to_string_lossy();
        name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
    };
    for (name, _) in env::vars_os().filter(|(name, _)| ours(name)) {
        command.env_remove(name);
    }
}
