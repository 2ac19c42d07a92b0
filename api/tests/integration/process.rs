//! The program itself: its exit codes, its signals, its traces.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use shared::testing::{PATIENCE, TestDatabase, eventually};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::http::{open, request, send};
use crate::idempotency::keyed;
use crate::service::{Api, ORDER, hold, shown, statement_waits, written};

pub fn program(variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrider-api"));
    command.env_clear().envs(variables.iter().copied()).current_dir(std::env::temp_dir());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Reads the log up to the line that says where orders are taken.
pub async fn address(child: &mut Child) -> std::net::SocketAddr {
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let found = timeout(PATIENCE, async {
        while let Some(line) = lines.next_line().await.expect("a log") {
            let entry: Value = serde_json::from_str(&line).expect("LOG_FORMAT=json is JSON");
            if let Some(address) = entry["server.address"].as_str() {
                return address.parse().expect("an address");
            }
        }
        panic!("the log ended without an address");
    });
    let found = found.await.expect("the API starts");
    // Keeps reading, so that the program never blocks on its log.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    found
}

#[tokio::test]
async fn a_bad_setting_is_one_line_and_exit_code_64() {
    let url = "postgres://nobody@127.0.0.1:1/none";
    let cases = [
        (vec![("DATABASE_URL", url), ("API_QUEUE_MAX", "0")], "API_QUEUE_MAX: must be from 1 to 1000000 ('0' given)"),
        (vec![("DATABASE_URL", url), ("API_BIND", "nowhere")], "API_BIND: 'nowhere' is not a host and port"),
        (vec![], "DATABASE_URL: is not set"),
    ];
    for (variables, expected) in cases {
        let output = program(&variables).output().await.expect("it runs");
        let text = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(64), "{text}");
        assert!(text.contains(expected) && text.lines().count() == 1, "{text}");
    }
}

#[tokio::test]
async fn the_event_carries_the_span_of_its_request() {
    let database = TestDatabase::create("span").await;
    let variables = [
        ("DATABASE_URL", database.url.as_str()),
        ("API_AUTH", "none"),
        ("DB_ROLE", "outrider_api"),
        ("API_BIND", "127.0.0.1:0"),
        ("ADMIN_BIND", "127.0.0.1:0"),
        ("LOG_FORMAT", "json"),
        // Nobody listens there; spans are made all the same.
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "100"),
    ];
    let mut child = program(&variables).spawn().expect("it runs");
    let address = address(&mut child).await;
    let headers = "content-type: application/json\r\n\
        traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
    assert_eq!(send(address, request("POST", "/orders", headers, ORDER.as_bytes())).await.status, 201);
    let traceparent: String = sqlx::query_scalar("SELECT headers->>'traceparent' FROM outbox")
        .fetch_one(&database.pool)
        .await
        .expect("one event with a trace");
    assert!(traceparent.starts_with("00-0af7651916cd43dd8448eb211c80319c-"), "the caller's trace: {traceparent}");
    assert!(!traceparent.contains("b7ad6b7169203331"), "and a span of its own: {traceparent}");

    signal(&child, Signal::TERM);
    let status = timeout(Duration::from_secs(30), child.wait()).await.expect("it ends").expect("it is our child");
    assert_eq!(status.code(), Some(0));
}

/// The signal is sent at once and takes effect when each thread comes to it: until then one of them could still answer.
async fn stopped(child: &Child) {
    let tasks = format!("/proc/{}/task", child.id().expect("it runs"));
    eventually("all threads have stopped", async || {
        let states = std::fs::read_dir(&tasks).ok()?.filter_map(|task| {
            let stat = std::fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
            // Behind the name, which is in parentheses and may hold anything.
            stat.rsplit(')').next()?.trim_start().chars().next()
        });
        states.collect::<Vec<char>>().iter().all(|state| *state == 'T').then_some(())
    })
    .await;
}

fn signal(child: &Child, signal: Signal) {
    let process = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)).expect("it runs");
    kill_process(process, signal).expect("it can be signalled");
}

#[tokio::test]
async fn a_repeat_gets_the_first_answer_though_the_program_was_killed_between_commit_and_answer() {
    let database = TestDatabase::create("killed").await;
    let variables = [
        ("DATABASE_URL", database.url.as_str()),
        ("API_AUTH", "none"),
        ("DB_ROLE", "outrider_api"),
        ("API_BIND", "127.0.0.1:0"),
        ("ADMIN_BIND", "127.0.0.1:0"),
        ("API_STATEMENT_TIMEOUT_MS", "60000"),
        ("API_STATEMENTS_MAX", "1"),
        ("LOG_FORMAT", "json"),
    ];
    let mut child = program(&variables).spawn().expect("it runs");
    let address = address(&mut child).await;
    // A statement that Postgres knows already is sent whole, so that it needs the program no more.
    assert_eq!(send(address, keyed("before", ORDER)).await.status, 201);
    let held = hold(&database.pool).await;
    let mut client = open(address, &keyed("k", ORDER)).await;
    statement_waits(&database, "-- insert_keyed_orders%", 1).await;
    // It can hear of the commit no more.
    signal(&child, Signal::STOP);
    stopped(&child).await;
    drop(held);
    eventually("the order is committed", async || (written(&database).await == (2, 2, 2)).then_some(())).await;
    signal(&child, Signal::KILL);
    child.wait().await.expect("it is our child");
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer).await;
    assert!(answer.is_empty(), "nobody was answered, but: {}", String::from_utf8_lossy(&answer));

    let api = Api::start(&database).await;
    let again = send(api.address, keyed("k", ORDER)).await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (201, Some("true")));
    let committed: (i64, String) =
        sqlx::query_as("SELECT aggregate_id::bigint, payload::text FROM outbox ORDER BY id DESC LIMIT 1")
            .fetch_one(&database.pool)
            .await
            .expect("an event");
    assert_eq!(
        (again.header("location"), again.body.as_str()),
        (Some(format!("/orders/{}", committed.0).as_str()), shown(committed.1).as_str())
    );
    assert_eq!(written(&database).await, (2, 2, 2));
    api.stop().await;
}
