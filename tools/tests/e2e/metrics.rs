//! What the services show of themselves, against what is written about it: the list of metrics, the alerts and the dashboards.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shared::exposition::{self, Family};
use shared::testing::eventually;
use tools::http::{NewOrder, client};
use tools::stack::{Kind, Service};

use super::pipeline::{Stage, orders_of, stop_all};

/// What names of metrics begin with.
const PREFIXES: [&str; 7] = ["outrider_", "outbox_", "relay_", "api_", "http_server_", "db_client_", "process_"];

/// The metrics of a service, by name, as their row in the list.
type Rows = BTreeMap<String, String>;

fn deploy() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy"))
}

async fn scrape(service: &Service) -> Result<String> {
    let url = service.admin_url();
    let answer = client()?.get(format!("{url}/metrics")).send().await?;
    ensure!(answer.status().is_success(), "{url} says {}", answer.status());
    Ok(answer.text().await?)
}

/// The rows of what was scraped.
fn rows(text: &str) -> Rows {
    exposition::parse(text).iter().map(row).collect()
}

fn row(family: &Family<'_>) -> (String, String) {
    let name = whole_name(family);
    let Family { kind, unit, help, samples, .. } = family;
    let shown = match *kind {
        "counter" => format!("{name}_total"),
        "info" => format!("{name}_info"),
        _ => name,
    };
    let mut labels: BTreeSet<&str> = samples.iter().flat_map(|sample| sample.labels.keys().copied()).collect();
    // It comes with the type.
    labels.remove("le");
    let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
    (shown.clone(), format!("| `{shown}` | {kind} | {unit} | {} | {help} |", labels.join(", ")))
}

/// With its unit.
fn whole_name(family: &Family<'_>) -> String {
    if family.unit.is_empty() { family.name.to_owned() } else { format!("{}_{}", family.name, family.unit) }
}

/// The rows of the list, by service.
fn documented() -> Result<BTreeMap<String, Rows>> {
    let text = std::fs::read_to_string(deploy().join("METRICS.md"))?;
    let mut services = BTreeMap::new();
    let mut service = String::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            heading.clone_into(&mut service);
        } else if let Some((name, _)) = line.strip_prefix("| `").and_then(|rest| rest.split_once('`')) {
            services.entry(service.clone()).or_insert_with(Rows::new).insert(name.to_owned(), line.to_owned());
        }
    }
    Ok(services)
}

/// Names in the alerts and on the dashboards, each with where it was found.
fn used() -> Result<BTreeSet<(String, String)>> {
    let mut expressions = Vec::new();
    let alerts = std::fs::read_to_string(deploy().join("alerts.yaml"))?;
    expressions.push(("alerts.yaml".to_owned(), alerts));
    for file in std::fs::read_dir(deploy().join("grafana/dashboards"))? {
        let path = file?.path();
        let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
        let board: Value = serde_json::from_slice(&std::fs::read(&path)?).with_context(|| name.clone())?;
        collect(&board, &mut |expression| expressions.push((name.clone(), expression.to_owned())));
    }
    let names = expressions.iter().flat_map(|(place, text)| {
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let known = words.filter(|word| PREFIXES.iter().any(|prefix| word.starts_with(prefix)));
        known.map(|word| (word.to_owned(), place.clone()))
    });
    Ok(names.collect())
}

/// The queries of a dashboard.
fn collect(value: &Value, into: &mut dyn FnMut(&str)) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member {
                    Value::String(text) if name == "expr" || name == "query" => into(text),
                    other => collect(other, into),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, into)),
        _ => {}
    }
}

/// Names of the samples of what was scraped.
fn samples(text: &str) -> BTreeSet<String> {
    let of = |family: &Family<'_>| -> Vec<String> {
        family.samples.iter().map(|sample| whole_name(family) + sample.suffix).collect()
    };
    exposition::parse(text).iter().flat_map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_about_metrics_is_what_the_services_show() -> Result<()> {
    let stage = Stage::new("what_is_written_about_metrics").await?;
    let mut services = stage.start_all().await?;
    let url = services.iter().find_map(Service::api_url).context("the api has a URL")?;
    // One order that goes through, and one that does not: with that, each of them has something to show.
    let api = orders_of(&services)?;
    let order = api.post(&NewOrder { user_id: 1, product_id: 2, quantity: 3 }).await?;
    eventually("the order is processed", async || {
        api.read(order.id).await.ok().filter(tools::http::Order::is_processed)
    })
    .await;
    client()?.get(format!("{url}/orders/nothing")).send().await?;

    let documented = documented()?;
    let (mut known, mut wanted) = (BTreeSet::new(), String::new());
    let mut differ = BTreeSet::new();
    for (kind, service) in Kind::ALL.into_iter().zip(&services) {
        let name = kind.name();
        let written = documented.get(name).cloned().unwrap_or_default();
        // Some are shown after their first look at the database, or with the first statistics of Kafka's client.
        let complete = eventually("all metrics are shown", async || {
            let text = scrape(service).await.ok()?;
            written.keys().all(|name| rows(&text).contains_key(name)).then_some(text)
        });
        let text = match tokio::time::timeout(std::time::Duration::from_secs(20), complete).await {
            Ok(text) => text,
            Err(_) => scrape(service).await?,
        };
        known.extend(samples(&text));
        let shown = rows(&text);
        writeln!(wanted, "## {name}\n\n| metric | type | unit | labels | meaning |\n|---|---|---|---|---|")?;
        for row in shown.values() {
            writeln!(wanted, "{row}")?;
        }
        writeln!(wanted)?;
        let all: BTreeSet<&String> = shown.keys().chain(written.keys()).collect();
        differ.extend(all.into_iter().filter(|name| shown.get(*name) != written.get(*name)).cloned());
    }
    assert!(differ.is_empty(), "deploy/METRICS.md differs in {differ:?}; the services show\n\n{wanted}");

    let unknown: Vec<_> = used()?.into_iter().filter(|(name, _)| !known.contains(name)).collect();
    assert!(unknown.is_empty(), "nobody shows these: {unknown:?}");
    stop_all(&mut services).await
}
