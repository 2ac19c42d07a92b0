//! The alerts in a real Prometheus: what an operator is told when a relay is killed under load, and that it clears.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::Value;
use shared::testing::eventually;
use tools::http::{NewOrder, client};
use tools::stack::{Kind, Launch, Process, Service, free_port};

use super::pipeline::{RELAY_ENV, Stage, orders_of, stop_all};

/// The alert of lanes that nobody holds.
const NO_RELAY: &str = "OutriderNoRelay";

/// The alerts as they are shipped, but soon: minutes are seconds.
fn hasty_alerts() -> Result<String> {
    let alerts = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/alerts.yaml"))?;
    let mut hasty = String::new();
    for line in alerts.lines() {
        let line = if line.trim_start().starts_with("for: ") { line.replace('m', "s") } else { line.to_owned() };
        let line = ["[5m]", "[10m]", "[1h]"].iter().fold(line, |line, range| line.replace(range, "[10s]"));
        // Long enough for its being pending to be seen.
        writeln!(hasty, "{}", line.replace("for: 1s", "for: 3s"))?;
    }
    Ok(hasty)
}

/// A Prometheus that looks at the services each second.
struct Prometheus {
    process: Process,
    url: String,
    folder: PathBuf,
}

fn configure(folder: &Path, services: &[Service]) -> Result<()> {
    let mut config = "global: {scrape_interval: 1s, evaluation_interval: 1s}\n".to_owned();
    config.push_str("rule_files: [alerts.yaml]\nscrape_configs:\n");
    for service in services {
        let (job, url) = (service.kind().name(), service.admin_url());
        let target = url.strip_prefix("http://").context("an address")?;
        writeln!(config, "  - job_name: outrider-{job}\n    static_configs: [{{targets: [\"{target}\"]}}]")?;
    }
    Ok(fs::write(folder.join("prometheus.yaml"), config)?)
}

impl Prometheus {
    async fn start(stage: &Stage, services: &[Service]) -> Result<Self> {
        let folder = stage.servers.folder().join("prometheus");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("alerts.yaml"), hasty_alerts()?)?;
        configure(&folder, services)?;
        let port = free_port()?;
        let mut process = Launch::new("prometheus", "prometheus")
            .arg(format!("--config.file={}", folder.join("prometheus.yaml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .log(folder.join("log"))
            .spawn(&stage.supply.reaper)
            .context("Prometheus is needed for this test; Debian: apt install prometheus")?;
        let url = format!("http://127.0.0.1:{port}");
        let (ready, client) = (format!("{url}/-/ready"), client()?);
        let probe = async || client.get(&ready).send().await.is_ok_and(|answer| answer.status().is_success());
        process.wait_ready(Duration::from_mins(1), probe).await?;
        Ok(Self { process, url, folder })
    }

    /// Looks at these from now on.
    fn look_at(&mut self, services: &[Service]) -> Result<()> {
        configure(&self.folder, services)?;
        self.process.signal(Signal::HUP)
    }

    /// The state of an alert, pending or firing; none if it is inactive.
    async fn state(&self, alert: &str) -> Result<Option<String>> {
        let answer = client()?.get(format!("{}/api/v1/alerts", self.url)).send().await?;
        let answer: Value = serde_json::from_slice(&answer.bytes().await?)?;
        let alerts = answer["data"]["alerts"].as_array().context("alerts")?;
        let found = alerts.iter().find(|found| found["labels"]["alertname"] == alert);
        Ok(found.and_then(|found| found["state"].as_str()).map(str::to_owned))
    }

    async fn becomes(&self, alert: &str, wanted: Option<&str>) {
        eventually(&format!("{alert} is {wanted:?}"), async || {
            (self.state(alert).await.ok()?.as_deref() == wanted).then_some(())
        })
        .await;
    }

    /// Whether it has all services' figures.
    async fn has(&self, query: &str) -> bool {
        let Ok(client) = client() else { return false };
        let answer = client.get(format!("{}/api/v1/query?query={query}", self.url)).send().await;
        let Ok(answer) = answer else { return false };
        let answer: Value =
            answer.bytes().await.ok().and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or_default();
        answer["data"]["result"].as_array().is_some_and(|result| !result.is_empty())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_killed_under_load_is_told_and_clears_when_it_is_back() -> Result<()> {
    let stage = Stage::new("a_relay_that_is_killed_under_load_is_told").await?;
    let mut services = stage.start_all().await?;
    let mut prometheus = Prometheus::start(&stage, &services).await?;
    let api = orders_of(&services)?;
    let (posted, enough) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicBool::new(false)));
    let load = tokio::spawn({
        let (posted, enough) = (Arc::clone(&posted), Arc::clone(&enough));
        async move {
            while !enough.load(Ordering::Relaxed) {
                let order = NewOrder { user_id: 1, product_id: 2, quantity: 3 };
                if api.post(&order).await.is_ok() {
                    posted.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    eventually("Prometheus knows of the relay", async || prometheus.has("relay_lanes_held==16").await.then_some(()))
        .await;
    prometheus.becomes(NO_RELAY, None).await;

    let relay = services.iter().position(|service| service.kind() == Kind::Relay).context("a relay")?;
    services[relay].process().kill().await?;
    prometheus.becomes(NO_RELAY, Some("pending")).await;
    prometheus.becomes(NO_RELAY, Some("firing")).await;
    let at_firing = posted.load(Ordering::Relaxed);

    services[relay] = stage.start(Kind::Relay, "relay-again", &RELAY_ENV).await?;
    prometheus.look_at(&services)?;
    prometheus.becomes(NO_RELAY, None).await;
    enough.store(true, Ordering::Relaxed);
    load.await?;
    let posted = posted.load(Ordering::Relaxed);
    assert!(posted > at_firing && at_firing > 0, "orders were accepted all the while: {at_firing}, {posted}");
    eventually("all orders are Processed", async || {
        (stage.count("SELECT count(*) FROM orders WHERE status = 'Processed'").await >= posted).then_some(())
    })
    .await;
    prometheus.process.stop().await?;
    stop_all(&mut services).await
}
