//! A real Prometheus that evaluates the alerts as they are shipped, only sooner.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use shared::testing::eventually_within;
use tools::http::client;
use tools::stack::{Launch, Process, Service, free_port};

use crate::pipeline::Stage;

/// Of the alerts' expressions: what is too much, and what is too much within a test.
const BOUNDS: [(&str, &str); 6] = [
    ("outbox_oldest_age_seconds) > 60", "outbox_oldest_age_seconds) > 2"),
    ("outrider_processor_lag) > 10000", "outrider_processor_lag) > 30"),
    ("outbox_oldest_transaction_age_seconds) > 600", "outbox_oldest_transaction_age_seconds) > 5"),
    ("outbox_replication_slot_wal_bytes) > 10e9", "outbox_replication_slot_wal_bytes) > 1e6"),
    ("class=\"lane_lost\"}[10s])) > 3", "class=\"lane_lost\"}[10s])) > 0"),
    ("class!=\"lane_lost\"}[10s])) > 10", "class!=\"lane_lost\"}[10s])) > 0"),
];

/// For an alert to become what is waited for.
pub(super) const PATIENCE: Duration = Duration::from_mins(2);

/// The alerts as they are shipped, but soon: minutes are seconds, and less is too much.
fn hasty_alerts() -> Result<String> {
    let alerts = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/alerts.yaml"))?;
    let mut hasty = String::new();
    for line in alerts.lines() {
        let line = if line.trim_start().starts_with("for: ") { line.replace('m', "s") } else { line.to_owned() };
        let line = ["[5m]", "[10m]", "[1h]"].iter().fold(line, |line, range| line.replace(range, "[10s]"));
        // Long enough for its being pending to be seen.
        writeln!(hasty, "{}", line.replace("for: 1s", "for: 3s"))?;
    }
    for (bound, sooner) in BOUNDS {
        ensure!(hasty.contains(bound), "no alert has {bound} any more");
        hasty = hasty.replace(bound, sooner);
    }
    Ok(hasty)
}

fn configure(folder: &Path, services: &[Service]) -> Result<()> {
    let mut config = "global: {scrape_interval: 1s, evaluation_interval: 1s}\n".to_owned();
    config.push_str("rule_files: [alerts.yaml]\nscrape_configs:\n");
    for (number, service) in services.iter().enumerate() {
        let (job, url) = (service.kind().name(), service.admin_url());
        let target = url.strip_prefix("http://").context("an address")?;
        // Two jobs cannot have the same name; the label is what the alerts see.
        let labelled = format!("{{targets: [\"{target}\"], labels: {{job: outrider-{job}}}}}");
        writeln!(config, "  - job_name: service-{number}\n    static_configs: [{labelled}]")?;
    }
    Ok(fs::write(folder.join("prometheus.yaml"), config)?)
}

/// A Prometheus that looks at the services each second.
pub(super) struct Prometheus {
    pub(super) process: Process,
    url: String,
    folder: PathBuf,
}

impl Prometheus {
    pub(super) async fn start(stage: &Stage, services: &[Service]) -> Result<Self> {
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
    pub(super) fn look_at(&mut self, services: &[Service]) -> Result<()> {
        configure(&self.folder, services)?;
        self.process.signal(Signal::HUP)
    }

    async fn ask(&self, path: &str) -> Result<Value> {
        let answer = client()?.get(format!("{}/api/v1/{path}", self.url)).send().await?;
        Ok(serde_json::from_slice(&answer.bytes().await?)?)
    }

    /// The names of the alerts that are pending or firing, and which of both; one of several labels, several times.
    pub(super) async fn active(&self) -> Result<Vec<(String, String)>> {
        let answer = self.ask("alerts").await?;
        let alerts = answer["data"]["alerts"].as_array().context("alerts")?.iter();
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a text");
        alerts.map(|alert| Ok((text(&alert["labels"]["alertname"])?, text(&alert["state"])?))).collect()
    }

    /// Waits until an alert is `pending`, `firing`, or neither.
    pub(super) async fn becomes(&self, alert: &str, wanted: Option<&str>) {
        eventually_within(PATIENCE, &format!("{alert} is {wanted:?}"), async || {
            let active = self.active().await.ok()?;
            let mut states = active.iter().filter(|(name, _)| name == alert).map(|(_, state)| state.as_str());
            match wanted {
                Some(wanted) => states.any(|state| state == wanted),
                None => states.next().is_none(),
            }
            .then_some(())
        })
        .await;
    }

    /// Whether a query finds anything.
    pub(super) async fn has(&self, query: &str) -> bool {
        let answer = self.ask(&format!("query?query={query}")).await.unwrap_or_default();
        answer["data"]["result"].as_array().is_some_and(|result| !result.is_empty())
    }
}
