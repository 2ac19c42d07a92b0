//! What services that run say of themselves, at their admin ports.

use std::time::Duration;

use anyhow::Result;
use reqwest::{StatusCode, Url};
use shared::exposition;
use shared::findings::Finding;

use crate::http;

/// How long an admin port may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Looks at each of `admin`.
pub async fn look(admin: &[Url]) -> Result<Vec<Finding>> {
    let client = http::client()?;
    let (mut findings, mut versions) = (Vec::new(), Vec::new());
    for url in admin {
        match of(&client, url).await {
            Ok((finding, version)) => {
                findings.push(finding);
                versions.extend(version);
            }
            Err(error) => findings.push(Finding::wrong(
                "services.ready",
                format!("{url} does not answer: {}", without_url(error)),
                "check that the service runs, and that ADMIN_BIND lets it be reached from here",
            )),
        }
    }
    findings.extend(same(versions));
    Ok(findings)
}

async fn of(client: &reqwest::Client, url: &Url) -> Result<(Finding, Option<(Url, String)>), reqwest::Error> {
    let get = async |path: &str| client.get(at(url, path)).timeout(PATIENCE).send().await;
    let ready = get("/readyz").await?;
    let status = ready.status();
    let text = ready.text().await?;
    let finding = if status == StatusCode::OK {
        Finding::fine("services.ready", format!("{url} is ready"))
    } else {
        let why: Vec<&str> = text.lines().skip(1).collect();
        Finding::wrong("services.ready", format!("{url} is not ready: {}", why.join("; ")), "its log says more")
    };
    let metrics = get("/metrics").await?.text().await?;
    let build = exposition::parse(&metrics).into_iter().find(|family| family.name == "outrider_build");
    let version =
        build.and_then(|family| family.samples.first().and_then(|sample| sample.labels.get("version").cloned()));
    Ok((finding, version.map(|version| (url.clone(), version))))
}

fn at(url: &Url, path: &str) -> Url {
    let mut url = url.clone();
    url.set_path(path);
    url
}

fn without_url(error: reqwest::Error) -> String {
    let error = error.without_url();
    shared::db::chain(&error.into())
}

/// Whether all run the same version, and ours.
fn same(versions: Vec<(Url, String)>) -> Option<Finding> {
    const CHECK: &str = "services.version";
    const OURS: &str = env!("CARGO_PKG_VERSION");
    if versions.is_empty() {
        return None;
    }
    let others: Vec<String> = versions
        .into_iter()
        .filter(|(_, version)| version != OURS)
        .map(|(url, version)| format!("{url} runs {version}"))
        .collect();
    Some(if others.is_empty() {
        Finding::fine(CHECK, format!("all run {OURS}, as this command"))
    } else {
        let found = format!("{}, and this command is {OURS}", others.join(", "));
        Finding::warning(CHECK, found, "finish the upgrade, or use the command of that version")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::findings::Verdict;

    #[test]
    fn another_version_is_named() {
        let url: Url = "http://relay:9090/".parse().expect("a URL");
        let found = same(vec![(url.clone(), "0.0.1".to_owned())]).expect("a finding");
        assert_eq!(found.verdict, Verdict::Warning);
        assert!(found.found.starts_with("http://relay:9090/ runs 0.0.1"), "{found}");
        assert_eq!(
            same(vec![(url, env!("CARGO_PKG_VERSION").to_owned())]).map(|found| found.verdict),
            Some(Verdict::Fine)
        );
    }
}
