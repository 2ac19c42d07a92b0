//! Handlers of a user's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use processor::Processor;
use processor::handler::{EventHandler, Handled, HandlerError, OneByOne, SingleEventHandler};
use processor::record::Event;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::support::{Running, World, event};

/// Notes each event in the table `seen`, whose CHECK refuses the key "bad".
struct Note {
    /// Whether to name the event that is refused, or to leave it to the database.
    names: bool,
    calls: Arc<AtomicUsize>,
}

impl EventHandler for Note {
    async fn handle(&self, events: &[Event<'_>], connection: &mut PgConnection) -> Result<Handled, HandlerError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if let Some(index) = events.iter().position(|event| self.names && event.aggregate_id() == "bad") {
            return Err(HandlerError::permanent_at(index, "named"));
        }
        let keys: Vec<String> = events.iter().map(|event| event.aggregate_id().to_owned()).collect();
        sqlx::query("INSERT INTO seen (key) SELECT UNNEST($1::text[])").bind(keys).execute(connection).await?;
        Ok(Handled::default())
    }
}

struct NoteOne;

impl SingleEventHandler for NoteOne {
    async fn handle_one(&self, event: Event<'_>, connection: &mut PgConnection) -> Result<(), HandlerError> {
        sqlx::query("INSERT INTO seen (key) VALUES ($1)").bind(event.aggregate_id()).execute(connection).await?;
        Ok(())
    }
}

/// Fails a few times, then notes.
struct Flaky {
    failures: AtomicUsize,
    then: Note,
}

impl EventHandler for Flaky {
    async fn handle(&self, events: &[Event<'_>], connection: &mut PgConnection) -> Result<Handled, HandlerError> {
        // Written before the failure, and so not there after it.
        let handled = self.then.handle(events, connection).await?;
        let left = self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if left.is_ok() { Err(HandlerError::retryable("not yet")) } else { Ok(handled) }
    }
}

async fn world(test: &str) -> World {
    let world = World::new(test, 1).await;
    for sql in [
        "CREATE TABLE seen (place bigint GENERATED ALWAYS AS IDENTITY, key text NOT NULL CHECK (key <> 'bad'))",
        "GRANT INSERT ON seen TO outrider_processor",
    ] {
        sqlx::query(sql).execute(&world.database.pool).await.unwrap();
    }
    world
}

fn produce(world: &World, keys: &[&str]) {
    world.produce(keys.iter().map(|key| event("noted", Uuid::now_v7(), key, "{}")));
}

async fn seen(world: &World) -> Vec<String> {
    sqlx::query_scalar("SELECT key FROM seen ORDER BY place").fetch_all(&world.database.pool).await.unwrap()
}

async fn only_the_bad_one_is_refused(test: &str, handler: impl EventHandler, reason: &str) {
    let world = world(test).await;
    produce(&world, &["a", "b", "c", "bad", "d", "e", "f", "g", "h"]);
    let running = Running::start(Processor::builder(world.config(&[])).handler("noted", handler));
    world.eventually_at(0, 9).await;
    running.stop().await;
    assert_eq!(seen(&world).await, ["a", "b", "c", "d", "e", "f", "g", "h"], "in their order, each once");
    let letters: Vec<(i64, String)> =
        sqlx::query_as("SELECT record_offset, reason FROM dead_letters").fetch_all(&world.database.pool).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].0, 3);
    assert!(letters[0].1.contains(reason), "{}", letters[0].1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_the_handler_names_is_refused_alone() {
    let handler = Note { names: true, calls: Arc::default() };
    only_the_bad_one_is_refused("named", handler, "named").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_only_the_database_refuses_is_found_by_halving() {
    let handler = Note { names: false, calls: Arc::default() };
    only_the_bad_one_is_refused("halved", handler, "seen_key_check").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_of_single_events_refuses_only_its_event() {
    only_the_bad_one_is_refused("single", OneByOne(NoteOne), "seen_key_check").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retryable_error_is_tried_again_until_it_succeeds_and_leaves_no_trace() {
    let world = world("retryable").await;
    produce(&world, &["a", "b", "c"]);
    let calls = Arc::new(AtomicUsize::new(0));
    let note = Note { names: false, calls: Arc::clone(&calls) };
    let flaky = Flaky { failures: AtomicUsize::new(3), then: note };
    let running = Running::start(Processor::builder(world.config(&[])).handler("noted", flaky));
    world.eventually_at(0, 3).await;
    running.stop().await;
    assert_eq!(seen(&world).await, ["a", "b", "c"]);
    assert!(calls.load(Ordering::Relaxed) >= 4, "three failures and a success");
    assert_eq!(world.count("SELECT count(*) FROM dead_letters").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_a_key_holds_across_types() {
    let world = world("across_types").await;
    let note = || Note { names: false, calls: Arc::default() };
    let types = ["opened", "changed", "changed", "opened", "closed", "changed"];
    let records = types.iter().enumerate().map(|(number, kind)| event(kind, Uuid::now_v7(), &number.to_string(), "{}"));
    world.produce(records);
    let processor = Processor::builder(world.config(&[]));
    let running =
        Running::start(processor.handler("opened", note()).handler("changed", note()).handler("closed", note()));
    world.eventually_at(0, 6).await;
    running.stop().await;
    assert_eq!(seen(&world).await, ["0", "1", "2", "3", "4", "5"]);
}

/// The order handler would be safe by its own guards; this one is not, so it is the inbox that keeps repeats from it.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_published_again_reaches_its_handler_once() {
    let world = world("repeats").await;
    let events: Vec<_> = ["a", "b", "c"].iter().map(|key| event("noted", Uuid::now_v7(), key, "{}")).collect();
    world.produce(events.iter().chain(&events).cloned());
    let note = || Note { names: false, calls: Arc::default() };
    let running = Running::start(Processor::builder(world.config(&[])).handler("noted", note()));
    world.eventually_at(0, 6).await;
    world.produce(events.iter().cloned());
    world.eventually_at(0, 9).await;
    running.stop().await;
    // And over a restart.
    world.produce(events.iter().cloned());
    let running = Running::start(Processor::builder(world.config(&[])).handler("noted", note()));
    world.eventually_at(0, 12).await;
    running.stop().await;
    assert_eq!(seen(&world).await, ["a", "b", "c"]);
}
