//! `outrider api-keys`, on an API that asks for keys.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shared::testing::{TestDatabase, eventually, kafka_brokers};
use tools::http;
use tools::stack::service::Surroundings;
use tools::stack::{Kind, Service};

use super::command_line::outrider;
use super::{OUTRIDER, reaper};

/// Runs `outrider api-keys` as an operator. Its exit code, and all that it said.
fn api_keys(database: &TestDatabase, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let output = outrider("api-keys")
        .args(arguments)
        .env("DATABASE_URL", &database.url)
        .env("DB_ROLE", "outrider_operator")
        .env("USER", "alice")
        .output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8(said)?))
}

/// Like [`api_keys`], for what must go well.
fn well(database: &TestDatabase, arguments: &[&str]) -> Result<String> {
    let (code, said) = api_keys(database, arguments)?;
    ensure!(code == Some(0), "{arguments:?} ended with {code:?}: {said}");
    Ok(said)
}

fn made(database: &TestDatabase, arguments: &[&str]) -> Result<(String, String)> {
    let key: Value = serde_json::from_str(&well(database, &[arguments, &["--json"]].concat())?)?;
    let text = |field: &str| key[field].as_str().map(str::to_owned).with_context(|| format!("{field} in {key}"));
    Ok((text("id")?, text("key")?))
}

/// An API that asks for credentials, and its URL.
async fn start_api(database: &TestDatabase, logs: &Path) -> Result<(Service, String)> {
    // This executable lies beside those of the services.
    let binaries = Path::new(OUTRIDER).parent().context("a folder")?.to_owned();
    let surroundings = Surroundings {
        binaries,
        logs: logs.to_owned(),
        database_url: database.url.clone(),
        kafka_brokers: kafka_brokers(),
        takes_role: true,
        env: Vec::new(),
    };
    let env = [("API_AUTH", "required"), ("API_KEYS_CACHE_SECS", "1")];
    let mut api = Service::start(Kind::Api, "api", &surroundings, &env, &reaper()?)?;
    api.wait_ready().await?;
    let url = api.api_url().context("an API")?;
    Ok((api, url))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_lives_from_its_making_over_its_rotation_to_its_end() -> Result<()> {
    let database = TestDatabase::create("api_keys").await;
    let logs = tempfile::tempdir()?;
    let (mut api, url) = start_api(&database, logs.path()).await?;
    let client = http::client()?;
    let status = async |path: &str, key: &str| {
        let answer = client.get(format!("{url}{path}")).bearer_auth(key).send().await.expect("an answer");
        answer.status().as_u16()
    };

    let said = well(&database, &["create", "--name", "front end", "--expires", "90d"])?;
    let told = |word: &str| said.lines().find_map(|line| line.strip_prefix(word)).map(str::trim).context(said.clone());
    let (id, key) = (told("id ")?, told("key ")?);
    ensure!(key.starts_with(&format!("outrider_{id}_")) && told("may ")? == "orders:read orders:write", "{said}");
    ensure!(said.contains("shown this once"), "{said}");
    assert_eq!((status("/orders", key).await, status("/orders", &key[..key.len() - 1]).await), (200, 401));

    // Bound to a user, and good for reading only.
    let (_, bound) = made(&database, &["create", "--name", "user 7", "--user", "7", "--scope", "orders:read"])?;
    let order = r#"{"user_id": 7, "product_id": 1, "quantity": 1}"#;
    let post = async |key: &str| {
        let request = client.post(format!("{url}/orders")).bearer_auth(key).header("content-type", "application/json");
        request.body(order).send().await.expect("an answer").status().as_u16()
    };
    assert_eq!((post(key).await, post(&bound).await, status("/orders/1", &bound).await), (201, 403, 200));

    // Both are good during the overlap; the old one ends with it.
    let (new_id, new) = made(&database, &["rotate", id, "--overlap", "1h"])?;
    assert_eq!((status("/orders", key).await, status("/orders", &new).await), (200, 200));
    let (code, said) = api_keys(&database, &["rotate", id])?;
    ensure!(code == Some(1) && said.contains("rotated before"), "{said}");
    let (newest_id, newest) = made(&database, &["rotate", &new_id, "--overlap", "0s", "--why", "a drill"])?;
    eventually("the replaced key is refused", async || (status("/orders", &new).await == 401).then_some(())).await;
    assert_eq!(status("/orders", &newest).await, 200);

    let revoke = ["revoke", newest_id.as_str(), "--why", "was in a log file"];
    ensure!(well(&database, &revoke)?.contains("revoked"));
    eventually("the revoked key is refused", async || (status("/orders", &newest).await == 401).then_some(())).await;
    for (arguments, expected) in [
        (&revoke[..], "revoked before"),
        (&["rotate", newest_id.as_str()], "revoked before"),
        (&["revoke", "0123456789abcdef", "--why", "x"], "no key with that id"),
    ] {
        let (code, said) = api_keys(&database, arguments)?;
        ensure!(code == Some(1) && said.contains(expected), "{arguments:?}: {said}");
    }

    let listed: Value = serde_json::from_str(&well(&database, &["list", "--all", "--json"])?)?;
    let listed_as: Vec<&str> =
        listed.as_array().context("a list")?.iter().filter_map(|key| key["state"].as_str()).collect();
    assert_eq!(listed_as, ["revoked", "expired", "good", "replaced"]);
    let table = well(&database, &["list"])?;
    ensure!(table.lines().count() == 3 && table.contains("orders:read, user 7"), "{table}");
    api.stop().await?;
    let log = std::fs::read_to_string(logs.path().join("api.log"))?;
    ensure!(log.contains("a request was refused for its credentials") && log.contains(&newest_id), "{log}");
    no_secret_is_kept(&database, &[key, &bound, &new, &newest], &log).await?;
    actions_are_written_down(&database).await
}

/// Neither in a list, nor in the database, nor in the log of the API.
async fn no_secret_is_kept(database: &TestDatabase, keys: &[&str], log: &str) -> Result<()> {
    let shown = well(database, &["list", "--all"])? + &well(database, &["list", "--all", "--json"])?;
    let stored: String = sqlx::query_scalar("SELECT string_agg(k::text || l::text, '') FROM api_keys k, api_key_log l")
        .fetch_one(&database.pool)
        .await?;
    for key in keys {
        let secret = key.rsplit('_').next().context("a secret")?;
        for (place, text) in [("a list", shown.as_str()), ("the database", &stored), ("the log", log)] {
            ensure!(!text.contains(&secret[..64]), "a secret is in {place}");
        }
    }
    Ok(())
}

async fn actions_are_written_down(database: &TestDatabase) -> Result<()> {
    let actions: Vec<(String, String)> =
        sqlx::query_as("SELECT action, os_user FROM api_key_log ORDER BY id").fetch_all(&database.pool).await?;
    let by_alice = |(action, by): &(String, String)| by.starts_with("alice (uid ").then(|| action.clone());
    let actions: Vec<String> = actions.iter().filter_map(by_alice).collect();
    assert_eq!(actions, ["create", "create", "rotate", "rotate", "revoke"]);
    Ok(())
}

#[test]
fn a_key_that_makes_no_sense_is_refused_before_anything_is_done() -> Result<()> {
    for line in [
        "api-keys create",
        "api-keys create --name x --scope orders",
        "api-keys create --name x --user 0",
        "api-keys create --name x --expires 90",
        "api-keys revoke 0123456789abcdef",
        "api-keys revoke 17 --why x",
        "api-keys rotate 0123456789abcdef --overlap soon",
    ] {
        assert_eq!(outrider(line).output()?.status.code(), Some(2), "{line}");
    }
    Ok(())
}
