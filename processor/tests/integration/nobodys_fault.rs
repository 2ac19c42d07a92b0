//! Failures that are no event's fault, and yet one handler's or one key's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use processor::Processor;
use processor::handler::{HandlerError, OneByOne, SingleEventHandler};
use processor::record::Event;
use shared::testing::eventually;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::keeper::QUICK;
use crate::support::{Produced, Running, World, event};

/// Notes events in a table that may be missing.
struct Note;

impl SingleEventHandler for Note {
    async fn handle_one(&self, event: Event<'_>, connection: &mut PgConnection) -> Result<(), HandlerError> {
        sqlx::query("INSERT INTO notes (key) VALUES ($1)").bind(event.aggregate_id()).execute(connection).await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_a_handler_misses_holds_up_its_partition_and_gives_nothing_up() {
    let world = World::new("missing", 2).await;
    let running = Running::start(Processor::builder(world.config(&[])).handler("noted", OneByOne(Note)));
    let noted = |key: &str, partition| Produced { partition, ..event("noted", Uuid::now_v7(), key, "{}") };
    let other = |partition| Produced { partition, ..event("other", Uuid::now_v7(), "k", "{}") };
    world.produce([noted("a", 0), noted("b", 0), other(0), other(1)]);
    eventually("it is tried again", async || (running.metrics.retries() >= 3).then_some(())).await;
    world.eventually_at(1, 1).await;
    assert_eq!(world.position(0).await, None, "its own partition waits");
    world.assert_nothing_waits().await;
    world.table("notes (key text NOT NULL)").await;
    world.eventually_at(0, 3).await;
    running.stop().await;
    assert_eq!(world.count("SELECT count(*) FROM notes").await, 2);
    world.assert_nothing_waits().await;
}

const FIRST: u8 = 0;
const STUCK: u8 = 1;
const MENDED: u8 = 2;

/// Has every key wait first. Then one of them fails as if a database were away, which blames nobody.
struct Fickle(Arc<AtomicU8>);

impl SingleEventHandler for Fickle {
    async fn handle_one(&self, event: Event<'_>, connection: &mut PgConnection) -> Result<(), HandlerError> {
        match self.0.load(Ordering::SeqCst) {
            FIRST => Err(HandlerError::retryable("later")),
            STUCK if event.aggregate_id() == "stuck" => Err(HandlerError::retryable(sqlx::Error::PoolTimedOut)),
            _ => Note.handle_one(event, connection).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_failure_blames_nobody_makes_way_for_those_behind_it() {
    let world = World::new("way", 1).await;
    world.table("notes (key text NOT NULL)").await;
    let phase = Arc::new(AtomicU8::new(FIRST));
    let running =
        Running::start(Processor::builder(world.config(&QUICK)).handler("noted", OneByOne(Fickle(Arc::clone(&phase)))));
    let noted = |key: &str| event("noted", Uuid::now_v7(), key, "{}");
    world.produce(["stuck".to_owned()].into_iter().chain((0..40).map(|n| format!("k{n}"))).map(|key| noted(&key)));
    world.eventually_at(0, 41).await;
    eventually("all are counted", async || (running.metrics.keys_blocked("retrying") == 41).then_some(())).await;

    phase.store(STUCK, Ordering::SeqCst);
    eventually("the others are applied", async || {
        (world.count("SELECT count(*) FROM notes").await == 40).then_some(())
    })
    .await;
    assert_eq!(world.state("stuck").await.as_deref(), Some("retrying"));
    for dry_run in [true, false] {
        let (applied, waiting, reason) = world.replay("stuck", 0, dry_run).await;
        assert_eq!((applied, waiting), (0, 1));
        assert!(reason.is_some_and(|reason| reason.contains("timed out")), "an operator is told");
    }

    phase.store(MENDED, Ordering::SeqCst);
    world.eventually_state("stuck", None).await;
    eventually("none is counted", async || (running.metrics.keys_blocked("retrying") == 0).then_some(())).await;
    running.stop().await;
    assert_eq!(world.count("SELECT count(DISTINCT key) FROM notes").await, 41);
    assert_eq!(world.count("SELECT count(*) FROM notes").await, 41);
}
