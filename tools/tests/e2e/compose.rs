//! `deploy/compose.yaml` and its overlay: what they promise, and what they set tried on real servers.

mod kafka_sasl;
mod logins;
mod rules;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Map, Value};
use tools::stack::{Kind, Launch, Reaper};

/// Where secrets are in a container.
const SECRETS: &str = "/run/secrets";

/// The folder with the files.
fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// One compose file, or several laid over one another.
struct Compose(Value);

impl Compose {
    fn read(files: &[&str]) -> Result<Self> {
        let mut merged = Value::Null;
        for file in files {
            let text = fs::read_to_string(deploy().join(file))?;
            lay_over(&mut merged, serde_saphyr::from_str(&text).with_context(|| (*file).to_owned())?);
        }
        Ok(Self(merged))
    }

    fn services(&self) -> Result<&Map<String, Value>> {
        self.0["services"].as_object().context("services")
    }

    /// The environment of a service as its process sees it, where the one who starts it has set nothing.
    fn environment(&self, service: &str) -> Result<BTreeMap<String, String>> {
        let variables = self.services()?[service]["environment"].as_object().context("an environment")?;
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Ok(variables.iter().map(|(name, value)| (name.clone(), resolved(&text(value)))).collect())
    }

    /// The environment of a service of ours, with the secrets from `secrets` and these variables in place of its own.
    fn environment_at(
        &self,
        service: &str,
        secrets: &Path,
        instead: &[(&str, String)],
    ) -> Result<Vec<(String, String)>> {
        let mut variables = self.environment(service)?;
        for value in variables.values_mut() {
            *value = value.replace(SECRETS, &secrets.display().to_string());
        }
        variables.extend(instead.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        Ok(variables.into_iter().collect())
    }

    /// The texts of a list of a service.
    fn list(&self, service: &str, name: &str) -> Result<Vec<String>> {
        let Some(list) = self.services()?[service].get(name) else { return Ok(Vec::new()) };
        let texts = list.as_array().with_context(|| format!("{name} of {service}"))?;
        texts.iter().map(|text| Ok(resolved(text.as_str().context("a text")?))).collect()
    }
}

/// As compose merges files: mappings by their keys, and lists one behind the other.
fn lay_over(below: &mut Value, above: Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                lay_over(below.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(below), Value::Array(above)) => below.extend(above),
        (below, above) => *below = above,
    }
}

/// A text in which `${NAME:-default}` has become the default, and `$$` a dollar.
fn resolved(text: &str) -> String {
    let mut parts = text.split("$$").map(|part| {
        let mut out = String::new();
        let mut rest = part;
        while let Some((before, (inside, after))) =
            rest.split_once("${").and_then(|(before, rest)| Some((before, rest.split_once('}')?)))
        {
            out.push_str(before);
            out.push_str(inside.split_once(":-").map_or("", |(_, default)| default));
            rest = after;
        }
        out + rest
    });
    let first = parts.next().unwrap_or_default();
    parts.fold(first, |text, part| text + "$" + &part)
}

/// Makes the secrets, as people do before the first start.
async fn make_secrets(folder: &Path, reaper: &Reaper) -> Result<()> {
    let log = folder.with_extension("log");
    Launch::new("secrets.sh", "sh").arg(deploy().join("secrets.sh")).arg(folder).log(log).run(reaper).await
}

/// The name that a service has in the file.
fn service_of(kind: Kind) -> &'static str {
    kind.name()
}
