//! `outrider top`: the pipeline as it is right now, a page that is drawn anew each second.

pub mod figures;
pub mod view;

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chrono::Utc;
use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use reqwest::Url;
use shared::config::Env;
use shared::db::DatabaseConfig;
use shared::kafka::KafkaConfig;
use sqlx::PgConnection;
use tokio::sync::{mpsc, watch};

use crate::http;
use crate::signals::StopSignals;
use crate::status::{self, Status};
use figures::Scrape;
use view::Page;

/// What `--help` shows.
pub const EXAMPLES: &str = "Examples:
  outrider top
  outrider top --admin http://api:9090 --admin http://relay-1:9090 --admin http://relay-2:9090 --admin http://processor:9090

Beside `cargo dev up`, which prints these addresses: outrider top --admin URL --admin URL --admin URL";

/// Between two looks at the admin ports.
const INTERVAL: Duration = Duration::from_secs(1);

/// Over so many looks rates and times are told: shorter, and they would be too jumpy to be read.
const LOOKS: usize = 5;

/// How long an admin port may take.
const SCRAPE_PATIENCE: Duration = Duration::from_secs(2);

/// Before Postgres is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// How often the keyboard's thread looks whether it is still wanted.
const KEY_PATIENCE: Duration = Duration::from_millis(200);

/// Where to look.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Admin port of a service; may be given many times. Unless given, those that the services have by themselves on this machine (9080,
    /// 9081, 9082)
    #[arg(long = "admin", value_name = "URL")]
    admin: Vec<Url>,
}

/// Rates from the admin ports.
#[derive(Debug, Clone, Default)]
struct Seen {
    rows: Vec<figures::Row>,
    faults: Vec<String>,
}

/// Shows the page until `q`, Ctrl-C or a signal.
pub async fn run(args: TopArgs) -> Result<ExitCode> {
    let env = Env::load()?;
    let database = DatabaseConfig::from_env(&env, "outrider top")?;
    let kafka = env.var("KAFKA_BROKERS").map(|_| KafkaConfig::from_env(&env)).transpose()?;
    if !std::io::stdout().is_terminal() {
        bail!("outrider top needs a terminal; for programs there is outrider status --json");
    }
    let admin = match args.admin.as_slice() {
        [] => [9_080, 9_081, 9_082]
            .iter()
            .map(|port| format!("http://127.0.0.1:{port}").parse())
            .collect::<Result<_, _>>()?,
        given => given.to_vec(),
    };
    let mut signals = StopSignals::listen()?;
    let (seen_sender, seen) = watch::channel(Seen::default());
    let (status_sender, status) = watch::channel(Err("Postgres is being asked".to_owned()));
    // Each ends with this function, whose tasks they are.
    let mut looks = tokio::task::JoinSet::new();
    looks.spawn(scrape(admin, seen_sender));
    looks.spawn(ask(database, kafka, status_sender));
    let keys = keys();
    // Also has a panic leave the terminal as it was.
    let mut terminal = ratatui::try_init().context("the terminal cannot be used")?;
    let ended = signals.interrupts(show(&mut terminal, seen, status, keys)).await;
    ratatui::restore();
    looks.shutdown().await;
    ended.map(|()| ExitCode::SUCCESS)
}

/// Draws whenever there is something new, until a key says to quit.
async fn show(
    terminal: &mut DefaultTerminal,
    mut seen: watch::Receiver<Seen>,
    mut status: watch::Receiver<Result<Status, String>>,
    mut keys: mpsc::Receiver<Key>,
) -> Result<()> {
    loop {
        {
            let (seen, status) = (seen.borrow_and_update(), status.borrow_and_update());
            let mut faults = seen.faults.clone();
            faults.extend(status.as_ref().err().cloned());
            faults.extend(
                status
                    .as_ref()
                    .ok()
                    .and_then(|status| status.consumers.kafka_error.clone())
                    .map(|error| format!("Kafka: {error}")),
            );
            let page = Page { at: Utc::now(), rows: seen.rows.clone(), status: status.as_ref().ok(), faults };
            terminal.draw(|frame| view::draw(frame, &page))?;
        }
        tokio::select! {
            _ = seen.changed() => {}
            _ = status.changed() => {}
            key = keys.recv() => match key {
                Some(Key::Quit) | None => return Ok(()),
                Some(Key::Redraw) => {}
            }
        }
    }
}

/// What the keyboard, or the terminal, wants.
#[derive(Debug)]
enum Key {
    Quit,
    Redraw,
}

/// A thread that waits for keys: in raw mode Ctrl-C is one of them. It ends soon after nobody listens.
fn keys() -> mpsc::Receiver<Key> {
    let (sender, receiver) = mpsc::channel(8);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            let key = match event::poll(KEY_PATIENCE) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            let wanted = match key {
                Ok(Event::Key(key)) if key.kind == KeyEventKind::Press => {
                    let is_interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                    if !is_interrupt && !matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                        continue;
                    }
                    Key::Quit
                }
                Ok(Event::Resize(..)) => Key::Redraw,
                Ok(_) => continue,
                // No terminal any more.
                Err(_) => Key::Quit,
            };
            if sender.blocking_send(wanted).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Looks at the admin ports each second.
async fn scrape(admin: Vec<Url>, sender: watch::Sender<Seen>) {
    let Ok(client) = http::client() else { return };
    let mut looks: VecDeque<(Instant, Scrape)> = VecDeque::new();
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !sender.is_closed() {
        ticks.tick().await;
        let answers = futures_util::future::join_all(admin.iter().map(|url| metrics(&client, url))).await;
        let (mut scrape, mut faults) = (Scrape::default(), Vec::new());
        for (url, answer) in admin.iter().zip(answers) {
            match answer {
                Ok(text) => scrape.add(&text),
                Err(_) => faults.push(format!("no answer at {url}metrics (--admin says where)")),
            }
        }
        let now = Instant::now();
        let (before, seconds) = match looks.front() {
            Some((then, before)) => (before, now.duration_since(*then).as_secs_f64()),
            // Nothing to compare with yet.
            None => (&scrape, 1.0),
        };
        let rows = scrape.since(before, seconds);
        sender.send_replace(Seen { rows, faults });
        looks.push_back((now, scrape));
        if looks.len() > LOOKS {
            looks.pop_front();
        }
    }
}

async fn metrics(client: &reqwest::Client, url: &Url) -> Result<String> {
    let answer = client.get(url.join("metrics")?).timeout(SCRAPE_PATIENCE).send().await?;
    Ok(answer.error_for_status()?.text().await?)
}

/// Asks Postgres, and Kafka, again and again: a look takes about a second.
async fn ask(database: DatabaseConfig, kafka: Option<KafkaConfig>, sender: watch::Sender<Result<Status, String>>) {
    let mut connection: Option<PgConnection> = None;
    while !sender.is_closed() {
        let looked = async {
            let connection = match &mut connection {
                Some(connection) => connection,
                none => none.insert(status::connect(&database).await?),
            };
            status::look(connection, kafka.as_ref()).await
        };
        let looked = looked.await;
        if looked.is_err() {
            connection = None;
        }
        let failed = looked.is_err();
        let _ = sender.send_replace(looked.map_err(|error| format!("Postgres: {error:#}")));
        if failed {
            tokio::time::sleep(RETRY).await;
        }
    }
}
