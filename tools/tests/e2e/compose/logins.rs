//! `deploy/logins.sql` on a migrated database: each service starts and works as its login, which can do no more by any SET ROLE.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use prerequisites::program::postgres_program;
use serde_json::Value;
use shared::testing::eventually;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use tools::http;
use tools::stack::{Kind, Launch, Service};

use super::super::command_line::{outrider, said, well};
use super::super::pipeline::Stage;
use super::{Compose, deploy, make_secrets, service_of};

const ORDER: &str = r#"{"user_id": 7, "product_id": 1, "quantity": 1}"#;

/// A migrated database on a server of its own, secrets, and the file that is tried.
struct Scene {
    stage: Stage,
    compose: Compose,
    server: PgConnectOptions,
    secrets: PathBuf,
}

impl Scene {
    async fn new(test: &str) -> Result<Self> {
        let stage = Stage::with_postgres(test).await?;
        let server: PgConnectOptions = stage.database.url.parse()?;
        let secrets = stage.servers.folder().join("secrets");
        make_secrets(&secrets, &stage.supply.reaper).await?;
        let (credentials, _) = stage.database.url.rsplit_once('@').context("a password")?;
        let (_, password) = credentials.rsplit_once(':').context("a password")?;
        fs::write(secrets.join("postgres"), password)?;
        Ok(Self { stage, compose: Compose::read(&["compose.yaml"])?, server, secrets })
    }

    fn log(&self, name: &str) -> PathBuf {
        self.stage.servers.folder().join(format!("{name}.log"))
    }

    /// What the file has in the place of what is different here.
    fn instead(&self) -> [(&'static str, String); 5] {
        [
            ("DB_HOST", self.server.get_host().to_owned()),
            ("DB_PORT", self.server.get_port().to_string()),
            ("DB_NAME", self.server.get_database().unwrap_or_default().to_owned()),
            ("KAFKA_BROKERS", self.stage.surroundings.kafka_brokers.clone()),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", String::new()),
        ]
    }

    fn environment(&self, service: &str) -> Result<Vec<(String, String)>> {
        self.compose.environment_at(service, &self.secrets, &self.instead())
    }

    /// Runs what the service `logins` runs.
    async fn make_logins(&self) -> Result<()> {
        let psql = postgres_program("psql").context("psql")?;
        let path = format!("{}:{}", psql.parent().context("a folder")?.display(), std::env::var("PATH")?);
        let here = |text: &str| {
            text.replace(super::SECRETS, &self.secrets.display().to_string())
                .replace("/logins.sql", &deploy().join("logins.sql").display().to_string())
        };
        let command: Vec<String> = self.compose.list("logins", "command")?.iter().map(|word| here(word)).collect();
        let (program, arguments) = command.split_first().context("a command")?;
        let mut launch = Launch::new("logins", program).args(arguments).log(self.log("logins")).env("PATH", path);
        for (name, value) in self.compose.environment("logins")? {
            launch = launch.env(name, value);
        }
        launch
            .env("PGHOST", self.server.get_host())
            .env("PGPORT", self.server.get_port().to_string())
            .env("PGUSER", self.server.get_username())
            .env("PGDATABASE", self.server.get_database().unwrap_or_default())
            .env("OUTRIDER_SECRETS", &self.secrets)
            .run(&self.stage.supply.reaper)
            .await
    }

    fn password(&self, of: &str) -> Result<String> {
        Ok(fs::read_to_string(self.secrets.join(of))?)
    }

    async fn log_in(&self, of: &str) -> Result<PgConnection> {
        let options = self.server.clone().username(&format!("{of}_login")).password(&self.password(of)?);
        Ok(options.connect().await?)
    }

    async fn start(&self, kind: Kind) -> Result<Service> {
        let environment = self.environment(service_of(kind))?;
        // Those of the test itself lead elsewhere.
        let mut pairs = vec![("DATABASE_URL", ""), ("DB_ROLE", "")];
        pairs.extend(environment.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let mut surroundings = self.stage.surroundings.clone();
        surroundings.takes_role = false;
        let mut service = Service::start(kind, kind.name(), &surroundings, &pairs, &self.stage.supply.reaper)?;
        service.wait_ready().await?;
        Ok(service)
    }

    /// What the operator's container says to a command.
    fn operator(&self, line: &str) -> Result<std::process::Command> {
        let mut command = outrider(line);
        command.env_remove("DB_ROLE").envs(self.environment("operator")?).env("USER", "alice");
        Ok(command)
    }
}

async fn run(connection: &mut PgConnection, sql: String) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn services_do_their_work_under_logins_of_their_own() -> Result<()> {
    let scene = Scene::new("compose_services").await?;
    scene.make_logins().await?;
    let mut services = Vec::new();
    for kind in Kind::ALL {
        services.push(scene.start(kind).await?);
    }
    let made = well(&mut scene.operator("api-keys create --name me --json")?)?;
    let made: Value = serde_json::from_str(&made)?;
    let key = made["key"].as_str().context("a key")?;
    let url = services[0].api_url().context("an API")?;
    let client = http::client()?;
    let post = client.post(format!("{url}/orders")).header("content-type", "application/json").body(ORDER);
    let answer = post.bearer_auth(key).send().await?;
    ensure!(answer.status() == 201, "{}", answer.text().await?);
    eventually("the order is Processed", async || {
        let answer = client.get(format!("{url}/orders/1")).bearer_auth(key).send().await.ok()?;
        answer.text().await.ok()?.contains("\"Processed\"").then_some(())
    })
    .await;
    // Partitions are made and dropped, blocked keys counted and groups looked at by now; all of them need rights.
    let status = well(&mut scene.operator("status")?)?;
    ensure!(status.contains("backlog"), "{status}");
    for service in &mut services {
        let ready = ready_by_health_check(&scene.compose, service)?;
        ensure!(ready, "the health check of {:?} finds it ready", service.kind());
        let name = service.kind().name();
        ensure!(service.stop().await?.success(), "{name} ended well");
        let log = fs::read_to_string(scene.log(name))?;
        for word in ["lacks", "permission denied", "42501"] {
            ensure!(!log.contains(word), "{name} says {word:?}: {log}");
        }
        ensure!(!ready_by_health_check(&scene.compose, service)?, "and when it is gone, it does not");
    }
    Ok(())
}

/// Whether the health check of a container finds this service ready, at the port that it has here.
fn ready_by_health_check(compose: &Compose, service: &Service) -> Result<bool> {
    let test = &compose.services()?[service_of(service.kind())]["healthcheck"]["test"];
    let words: Vec<&str> = test.as_array().context("a test")?.iter().filter_map(Value::as_str).collect();
    let url = service.admin_url();
    let (_, port) = url.rsplit_once(':').context("a port")?;
    let [_, program, arguments @ ..] = &words[..] else { anyhow::bail!("{words:?}") };
    let arguments = arguments.iter().map(|word| word.replace("/9090", &format!("/{port}")));
    let status = std::process::Command::new(program).args(arguments).stderr(std::process::Stdio::null()).status()?;
    Ok(status.success())
}

/// All that the current role may do with tables, sequences and functions of ours.
const RIGHTS: &str = "
    SELECT format('%s %s', c.relname, p.name) FROM pg_class c, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) AS p (name)
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND has_table_privilege(c.oid, p.name)
    UNION ALL
    SELECT format('%s %s', c.relname, p.name) FROM pg_class c, unnest(ARRAY['USAGE', 'SELECT', 'UPDATE']) AS p (name)
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'S' AND has_sequence_privilege(c.oid, p.name)
    UNION ALL
    SELECT p.oid::regprocedure::text FROM pg_proc p
    WHERE p.pronamespace = 'public'::regnamespace AND has_function_privilege(p.oid, 'EXECUTE')
    ORDER BY 1";

async fn rights(connection: &mut PgConnection) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(RIGHTS).fetch_all(connection).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_has_the_rights_of_its_role_and_no_set_role_adds_to_them() -> Result<()> {
    let scene = Scene::new("compose_rights").await?;
    let mut owner = scene.server.connect().await?;
    // A right from before, which nothing takes away but a run of the file.
    run(&mut owner, "CREATE ROLE api_login IN ROLE outrider_relay SUPERUSER".to_owned()).await?;
    scene.make_logins().await?;
    scene.make_logins().await?;
    let names = ["api", "relay", "processor", "operator"];
    for name in names {
        let mut login = scene.log_in(name).await?;
        let group = format!("outrider_{name}");
        let given = rights(&mut login).await?;
        ensure!(!given.is_empty(), "{name} may do something");
        run(&mut owner, format!("SET ROLE {group}")).await?;
        ensure!(rights(&mut owner).await? == given, "{name} may do what {group} may");
        run(&mut owner, "RESET ROLE".to_owned()).await?;
        let own = format!("SET ROLE {group}");
        for way in ["SET ROLE NONE", "RESET ROLE", own.as_str(), "RESET SESSION AUTHORIZATION"] {
            run(&mut login, way.to_owned()).await?;
            ensure!(rights(&mut login).await? == given, "{name} may do more or less after {way}");
        }
        let others = names.into_iter().filter(|other| *other != name).map(|other| format!("outrider_{other}"));
        for other in others.chain([scene.server.get_username().to_owned(), "outrider_writer".to_owned()]) {
            for way in ["SET ROLE", "SET SESSION AUTHORIZATION"] {
                let refused = run(&mut login, format!("{way} {other}")).await.err();
                ensure!(
                    refused.is_some_and(|error| error.to_string().contains("permission denied")),
                    "{name}: {way} {other}"
                );
            }
        }
        let plain: bool = sqlx::query_scalar(
            "SELECT NOT (rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls) FROM pg_roles WHERE rolname = current_user",
        )
        .fetch_one(&mut login)
        .await?;
        ensure!(plain, "{name} is more than a login");
        login.close().await?;
    }
    let mut api = scene.log_in("api").await?;
    let refused = run(&mut api, "UPDATE relay_lanes SET position = 0".to_owned()).await;
    ensure!(refused.is_err_and(|error| error.to_string().contains("permission denied")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_changed_by_its_file_and_shows_nowhere() -> Result<()> {
    let scene = Scene::new("compose_passwords").await?;
    let mut owner = scene.server.connect().await?;
    run(&mut owner, "ALTER SYSTEM SET log_statement = 'all'".to_owned()).await?;
    run(&mut owner, "ALTER SYSTEM SET log_min_duration_statement = 0".to_owned()).await?;
    run(&mut owner, "SELECT pg_reload_conf()".to_owned()).await?;
    eventually("the server logs statements", async || {
        let all: String = sqlx::query_scalar("SHOW log_statement").fetch_one(&mut owner).await.ok()?;
        (all == "all").then_some(())
    })
    .await;
    scene.make_logins().await?;
    let first = scene.password("api")?;
    scene.log_in("api").await?.close().await?;
    fs::write(scene.secrets.join("api"), "it's another 'password', with \\ and \"")?;
    scene.make_logins().await?;
    scene.log_in("api").await?.close().await?;
    let old = scene.server.clone().username("api_login").password(&first).connect().await;
    ensure!(old.is_err_and(|error| error.to_string().contains("password authentication failed")));

    // One that is missing stops it, before anything is changed.
    fs::write(scene.secrets.join("relay"), "short")?;
    let refused = scene.make_logins().await.err().context("it is refused")?.to_string();
    ensure!(refused.contains("the secret relay is missing or shorter than 16 characters"), "{refused}");
    let (code, words) = said(&mut scene.operator("status")?)?;
    ensure!(code == Some(0), "{words}");

    let logged = fs::read_to_string(scene.log("postgres"))? + &fs::read_to_string(scene.log("logins"))?;
    ensure!(logged.contains("log_statement"), "statements are logged: {logged}");
    for secret in [first, scene.password("api")?, scene.password("processor")?] {
        ensure!(!logged.contains(&secret) && !logged.contains("SCRAM-SHA-256$"), "a password is in a log");
    }
    ensure!(!logged.contains("another"), "a password is in a log");
    Ok(())
}

#[test]
fn secrets_are_neither_committed_nor_built_into_the_image() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the top of the tree")?;
    for (file, line) in [(".gitignore", "/deploy/secrets/"), (".dockerignore", "deploy/secrets")] {
        let text = fs::read_to_string(root.join(file))?;
        ensure!(text.lines().any(|found| found == line), "{file} has no {line}");
    }
    Ok(())
}
