//! What each container may do, and who knows which secret.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::super::reaper;
use super::{Compose, SECRETS, deploy, make_secrets, resolved};

const FILES: [&str; 2] = ["compose.yaml", "compose.kafka-sasl.yaml"];

/// Those of our image that log in to Postgres with the rights of one group role, and their logins.
const LOGINS: [(&str, &str); 4] =
    [("api", "api_login"), ("relay", "relay_login"), ("processor", "processor_login"), ("operator", "operator_login")];

#[test]
fn each_container_is_confined_and_those_of_ours_cannot_write() -> Result<()> {
    for files in [&FILES[..1], &FILES[..]] {
        let compose = Compose::read(files)?;
        let mut of_ours = 0;
        for (name, service) in compose.services()? {
            ensure!(service["cap_drop"] == json!(["ALL"]), "{name} keeps capabilities");
            ensure!(
                service.get("cap_add").is_none() && service.get("privileged").is_none(),
                "{name} gets capabilities"
            );
            ensure!(service["security_opt"] == json!(["no-new-privileges:true"]), "{name} may get more rights");
            ensure!(service["mem_limit"].is_string() && service["pids_limit"].is_u64(), "{name} has no limits");
            let image = service["image"].as_str().context("an image")?;
            if image == "outrider" {
                of_ours += 1;
                ensure!(service["read_only"] == true, "{name} can write");
                ensure!(service["user"] == "10001:10001", "{name} runs as {}", service["user"]);
            } else {
                let (_, tag) = image.rsplit_once(':').with_context(|| format!("{name} has {image}"))?;
                ensure!(tag.matches('.').count() >= 1 && tag != "latest", "{name} has {image}, which may change");
            }
            for published in compose.list(name, "ports")? {
                ensure!(published.starts_with("127.0.0.1:"), "{name} publishes {published} to the network");
            }
        }
        ensure!(of_ours == 5, "{of_ours} services of ours");
    }
    let image = fs::read_to_string(deploy().join("Dockerfile"))?;
    ensure!(image.contains("\nUSER 10001\n") && image.contains("--uid 10001"), "the image has the same user");
    Ok(())
}

#[test]
fn each_service_logs_in_as_itself_and_knows_no_other_secret() -> Result<()> {
    let compose = Compose::read(&FILES)?;
    let mut knowing: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for name in compose.services()?.keys() {
        for secret in compose.list(name, "secrets")? {
            knowing.entry(secret).or_default().insert(name);
        }
    }
    for (name, login) in LOGINS {
        let variables = compose.environment(name)?;
        ensure!(variables["DB_USER"] == login, "{name} logs in as {}", variables["DB_USER"]);
        ensure!(variables["DB_PASSWORD_FILE"] == format!("{SECRETS}/{name}"), "{name}: {variables:?}");
        ensure!(!variables.contains_key("DB_ROLE"), "{name} gives up rights that it could take back");
        ensure!(knowing[name] == BTreeSet::from([name, "logins"]), "{name} is known to {:?}", knowing[name]);
        if name != "api" {
            let secret = format!("kafka_{name}");
            ensure!(variables["KAFKA_SASL_USERNAME"] == name, "{name}: {variables:?}");
            ensure!(variables["KAFKA_SASL_PASSWORD_FILE"] == format!("{SECRETS}/{secret}"), "{name}: {variables:?}");
            ensure!(knowing[&secret] == BTreeSet::from([name, "kafka-rights"]), "{secret}: {:?}", knowing[&secret]);
        }
    }
    ensure!(knowing["postgres"] == BTreeSet::from(["postgres", "migrate", "logins"]), "{:?}", knowing["postgres"]);
    ensure!(knowing["kafka_admin"] == BTreeSet::from(["kafka", "kafka-rights"]), "{:?}", knowing["kafka_admin"]);
    Ok(())
}

#[tokio::test]
async fn no_password_has_a_default_and_each_is_made_once() -> Result<()> {
    let compose = Compose::read(&FILES)?;
    let place = tempfile::tempdir()?;
    let folder = place.path().join("secrets");
    let reaper = reaper()?;
    make_secrets(&folder, &reaper).await?;
    let read = || -> Result<BTreeMap<String, String>> {
        let entries = fs::read_dir(&folder)?.map(|entry| entry.map(|entry| entry.path()));
        let files = entries.collect::<Result<Vec<_>, _>>()?;
        let name = |path: &std::path::Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.iter().map(|path| Ok((name(path), fs::read_to_string(path)?))).collect()
    };
    let made = read()?;
    let distinct: BTreeSet<&String> = made.values().collect();
    ensure!(distinct.len() == made.len(), "two secrets are the same");
    ensure!(made.values().all(|text| text.len() == 48 && text.chars().all(|c| c.is_ascii_hexdigit())), "{made:?}");
    let secrets = compose.0["secrets"].as_object().context("secrets")?;
    ensure!(secrets.keys().eq(made.keys()), "{:?} are wanted, {:?} made", secrets.keys(), made.keys());
    for (name, secret) in secrets {
        let file = resolved(secret["file"].as_str().context("a file")?);
        ensure!(file == format!("./secrets/{name}"), "{name} is in {file}");
    }

    fs::remove_file(folder.join("api"))?;
    make_secrets(&folder, &reaper).await?;
    let again = read()?;
    ensure!(again["api"] != made["api"] && again["relay"] == made["relay"], "only what is missing is made");

    // Nothing that a description of the containers shows is one.
    for (name, service) in compose.services()? {
        let empty = serde_json::Map::new();
        for (variable, value) in service.get("environment").and_then(Value::as_object).unwrap_or(&empty) {
            let text = value.to_string();
            ensure!(!text.contains("://") || !text.contains('@'), "{variable} of {name} may hold a password");
            ensure!(!variable.ends_with("PASSWORD"), "{variable} of {name} is in the environment");
        }
    }
    Ok(())
}

#[test]
fn what_may_be_set_from_outside_has_its_default() {
    assert_eq!(resolved("${API_PUBLISH:-127.0.0.1:8080}:8080"), "127.0.0.1:8080:8080");
    assert_eq!(resolved("a$$(cat ${X:-y}) ${Z}"), "a$(cat y) ");
}
