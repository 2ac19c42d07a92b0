//! A Go that is new enough: the one on the path, or the one that an older one fetches as a module.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use prerequisites::{Program, version};
use serde::Deserialize;
use tokio::process::Command;

use crate::required::need;

/// The second number of the oldest version that fetches by itself what a `go.mod` asks for.
const MINOR_MIN: u32 = 21;

/// The version that `jaeger/go.mod` asks for, as the module is called that holds it. An older Go can fetch that as well, and only does not
/// know that it could run it.
const TOOLCHAIN: &str = "golang.org/toolchain@v0.0.1-go1.24.6";

/// What `go mod download -json` says.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Module {
    dir: PathBuf,
}

/// The program to build Jaeger with. What is fetched is kept where Go keeps modules.
///
/// # Errors
/// When there is no Go, or it can fetch no newer one.
pub async fn program() -> Result<PathBuf> {
    let found = need(Program::Go)?;
    if version::minor(&found, "go1") >= Some(MINOR_MIN) {
        return Ok(PathBuf::from("go"));
    }
    let platform = ask(&["env", "GOOS", "GOARCH"]).await?.trim().replace('\n', "-");
    let answer = ask(&["mod", "download", "-json", &format!("{TOOLCHAIN}.{platform}")]).await?;
    let module: Module = serde_json::from_str(&answer).context("Go says where it has put a module")?;
    // Go unpacks the files of a module without the right to run them.
    make_executable(&module.dir.join("bin"))?;
    make_executable(&module.dir.join("pkg/tool").join(platform.replace('-', "_")))?;
    Ok(module.dir.join("bin/go"))
}

async fn ask(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("go");
    // In a folder outside of any module: Go would follow the settings of a module around it.
    command
        .args(arguments)
        .env("GOWORK", "off")
        .env("GOTOOLCHAIN", "local")
        .current_dir(std::env::temp_dir())
        .kill_on_drop(true);
    let output = command.output().await.context("cannot run go")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "go {} failed: {}", arguments.join(" "), complaint.trim());
    Ok(String::from_utf8(output.stdout)?)
}

fn make_executable(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("{} is in the module", folder.display()))? {
        let path = entry?.path();
        fs::set_permissions(&path, Permissions::from_mode(0o555))
            .with_context(|| format!("cannot change {}", path.display()))?;
    }
    Ok(())
}
