//! `outrider top` in a terminal.

use std::process::Stdio;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use shared::testing::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tools::http::NewOrder;

use super::OUTRIDER;
use super::pipeline::{Stage, orders_of, stop_all};

/// What brings a terminal back from a full page.
const LEAVES_PAGE: &str = "\u{1b}[?1049l";

#[tokio::test(flavor = "multi_thread")]
async fn top_shows_the_pipeline_in_80_by_24_and_quits_cleanly() -> Result<()> {
    let stage = Stage::new("top_shows_the_pipeline").await?;
    let mut services = stage.start_all().await?;
    // Before it has applied something, a group has no position.
    orders_of(&services)?.post(&NewOrder { user_id: 1, product_id: 2, quantity: 3 }).await?;
    let admin: Vec<String> = services.iter().map(|service| format!("--admin {}", service.admin_url())).collect();
    // `script` gives it a terminal, and hands on what it draws.
    let command = format!("stty rows 24 cols 80; exec {OUTRIDER} top {}", admin.join(" "));
    let mut terminal = Command::new("script")
        .args(["--quiet", "--flush", "--return", "--command", &command, "/dev/null"])
        .env("DATABASE_URL", &stage.database.url)
        .env("KAFKA_BROKERS", &stage.surroundings.kafka_brokers)
        .env("TERM", "xterm-256color")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // If this test fails, it ends; and what it runs, with its terminal.
        .kill_on_drop(true)
        .spawn()
        .context("script")?;
    let drawn = Arc::new(Mutex::new(Vec::new()));
    let mut output = terminal.stdout.take().context("its output")?;
    let reader = tokio::spawn({
        let drawn = Arc::clone(&drawn);
        async move {
            let mut some = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut some).await {
                drawn.lock().expect("nobody panics").extend_from_slice(&some[..count]);
            }
        }
    });
    let text = || String::from_utf8_lossy(&drawn.lock().expect("nobody panics")).into_owned();
    for part in ["STAGE", "applied", "outbox", "outrider-processor", "0-15", "PARTITION"] {
        eventually(&format!("{part} is on the page"), async || text().contains(part).then_some(())).await;
    }
    assert!(!text().contains(LEAVES_PAGE), "the page stays");

    terminal.stdin.take().context("its input")?.write_all(b"q").await?;
    let status = terminal.wait().await?;
    reader.await?;
    assert_eq!(status.code(), Some(0), "{}", text());
    assert!(text().contains(LEAVES_PAGE), "the terminal is as it was: {:?}", text());
    stop_all(&mut services).await
}
