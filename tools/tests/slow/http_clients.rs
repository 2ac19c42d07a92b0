//! HTTP as real clients speak it, and nginx in front with the settings that people write.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shared::testing::{TestDatabase, eventually_within};
use tokio::net::TcpStream;
use tools::stack::{Kind, Launch, Service};

use crate::harness::{reaper, supply, surroundings};

const PYTHON_PACKAGES: [&str; 2] = ["requests==2.32.5", "httpx==0.28.1"];
const NODE_PACKAGES: [&str; 3] = ["undici@7.16.0", "eventsource@4.0.0", "event-source-polyfill@1.0.31"];

const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/slow/http_clients");

fn program(name: &str) -> PathBuf {
    Path::new(PROGRAMS).join(name)
}

/// An API with a database of its own.
async fn api(test: &str, env: &[(&str, &str)], logs: &Path) -> Result<(TestDatabase, Service, String)> {
    let database = TestDatabase::create(test).await;
    let surroundings = surroundings(&database.url, String::new(), logs.to_owned())?;
    let mut api = Service::start(Kind::Api, "api", &surroundings, env, &reaper()?)?;
    api.wait_ready().await?;
    let url = api.api_url().context("the api has a URL")?;
    Ok((database, api, url))
}

/// Runs a client to its end, which says that all was well.
fn says_well(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| {
        format!(
            "{command:?} cannot be run: these tests need curl, Go, a JDK, Node with npm, Python with pip, and nginx"
        )
    })?;
    let [said, complaints] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    ensure!(output.status.success() && said.ends_with("well\n"), "{command:?}: {said}{complaints}");
    Ok(())
}

/// A folder in `.dev` that `fill` fills, once.
fn fetched(name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = supply()?.cache;
    let target = cache.join(name);
    if !target.exists() {
        fs::create_dir_all(&cache)?;
        let place = tempfile::Builder::new().prefix("fetching-").tempdir_in(&cache)?;
        fill(place.path())?;
        fs::rename(place.keep(), &target)?;
    }
    Ok(target)
}

fn python_packages() -> Result<PathBuf> {
    fetched(&PYTHON_PACKAGES.join("-").replace("==", "-"), |folder| {
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"];
        let done = Command::new("python3").args(install).arg(folder).args(PYTHON_PACKAGES).status()?;
        ensure!(done.success(), "pip cannot fetch {PYTHON_PACKAGES:?}");
        Ok(())
    })
}

fn node_packages() -> Result<PathBuf> {
    fetched(&NODE_PACKAGES.join("-").replace('@', "-"), |folder| {
        let install = ["install", "--silent", "--no-audit", "--no-fund", "--prefix"];
        let done = Command::new("npm").args(install).arg(folder).args(NODE_PACKAGES).status()?;
        ensure!(done.success(), "npm cannot fetch {NODE_PACKAGES:?}");
        Ok(())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_java_python_go_and_node_are_served_for_hundreds_of_requests_on_their_connections() -> Result<()> {
    let logs = tempfile::tempdir()?;
    let (_database, mut api, url) = api("http_clients", &[], logs.path()).await?;
    says_well(Command::new("java").arg(program("Client.java")).arg(&url))?;
    says_well(Command::new("python3").arg(program("client.py")).arg(&url).env("PYTHONPATH", python_packages()?))?;
    says_well(Command::new("go").arg("run").arg(program("client.go")).arg(&url).env("GOFLAGS", ""))?;
    // Node looks for packages beside the program.
    let node = node_packages()?;
    fs::copy(program("client.mjs"), node.join("client.mjs"))?;
    says_well(Command::new("node").arg(node.join("client.mjs")).arg(&url))?;
    api.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_is_served_in_each_version_that_it_speaks() -> Result<()> {
    let logs = tempfile::tempdir()?;
    let (_database, mut api, url) = api("curl", &[], logs.path()).await?;
    let order = r#"{"user_id": 1, "product_id": 2, "quantity": 3}"#;
    let orders = format!("{url}/orders");
    // `--http2` offers an upgrade over plain HTTP, and `--http2-prior-knowledge` speaks what only TLS has here.
    for (version, expected) in [
        // As curl writes 1.0.
        ("--http1.0", "201 1"),
        ("--http1.1", "201 1.1"),
        ("--http2", "201 1.1"),
        ("--http2-prior-knowledge", "000 0"),
    ] {
        let output = Command::new("curl")
            .args(["--silent", version, "--max-time", "10", "--output", "/dev/null"])
            .args(["--write-out", "%{http_code} %{http_version}", "--header", "content-type: application/json"])
            .args(["--header", "expect: 100-continue", "--data", order, &orders])
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said.trim_end_matches(".0"), expected, "{version}");
    }
    api.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_behind_nginx_see_right_addresses_tags_that_hold_and_events_at_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let free = || -> Result<u16> { Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port()) };
    let (old, new) = (free()?, free()?);
    let public = format!("http://127.0.0.1:{new}/shop");
    let (_database, mut api, url) = api("nginx", &[("API_PUBLIC_URL", &public)], folder.path()).await?;
    let (_, api_port) = url.rsplit_once(':').context("a port")?;
    let config = fs::read_to_string(program("nginx.conf"))?
        .replace("FOLDER", &folder.path().display().to_string())
        .replace("API_PORT", api_port)
        .replace("OLD_PORT", &old.to_string())
        .replace("NEW_PORT", &new.to_string());
    let file = folder.path().join("nginx.conf");
    fs::write(&file, config)?;
    // Its workers are another account.
    let mut permissions = fs::metadata(folder.path())?.permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    fs::set_permissions(folder.path(), permissions)?;
    let nginx =
        Launch::new("nginx", "nginx").args(["-e", "stderr", "-c"]).arg(&file).log(folder.path().join("nginx.log"));
    let mut nginx = nginx.spawn(&reaper()?).context("nginx is needed for this test")?;
    for port in [old, new] {
        eventually_within(Duration::from_secs(10), "nginx listens", async || {
            TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
        let base = format!("http://127.0.0.1:{port}/shop");
        let packages = python_packages()?;
        says_well(Command::new("python3").arg(program("proxied.py")).arg(&base).env("PYTHONPATH", packages))?;
    }
    nginx.stop().await?;
    api.stop().await?;
    Ok(())
}
