//! Failures that pass, and one that must not be passed over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use processor::broker::Broker;
use processor::handler::{HandlerError, OneByOne, SingleEventHandler};
use processor::offsets::{self, Operator};
use processor::record::Event;
use processor::{ConsumerError, Processor, ProcessorError};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{Offset, TopicPartitionList};
use shared::shutdown::Shutdown;
use shared::testing::eventually;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::proxy::{Mode, Proxy};
use crate::support::{Produced, Running, World, event};

/// Notes events, and fails over those with the key "slow" for as long as it is told to.
struct Note {
    failing: Arc<AtomicBool>,
}

impl SingleEventHandler for Note {
    async fn handle_one(&self, event: Event<'_>, connection: &mut PgConnection) -> Result<(), HandlerError> {
        sqlx::query("INSERT INTO notes (key) VALUES ($1)").bind(event.aggregate_id()).execute(connection).await?;
        if event.aggregate_id() == "slow" && self.failing.load(Ordering::Relaxed) {
            return Err(HandlerError::retryable("not yet"));
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retryable_error_backs_off_and_succeeds_while_other_partitions_go_on() {
    let world = World::new("retry", 2).await;
    world.table("notes (key text NOT NULL)").await;
    let failing = Arc::new(AtomicBool::new(true));
    let handler = OneByOne(Note { failing: Arc::clone(&failing) });
    let running = Running::start(Processor::builder(world.config(&[])).handler("noted", handler));
    let note = |key: &str, partition| Produced { partition, ..event("noted", Uuid::now_v7(), key, "{}") };
    world.produce([note("slow", 0), note("quick", 1)]);
    eventually("it is tried again", async || (running.metrics.tally().keys_tried >= 3).then_some(())).await;
    world.eventually_at(1, 1).await;
    assert_eq!(world.position(0).await, Some(1), "its own partition goes on as well");
    failing.store(false, Ordering::Relaxed);
    eventually("it succeeds", async || (running.metrics.tally().keys_unblocked == 1).then_some(())).await;
    running.stop().await;
    assert_eq!(world.count("SELECT count(*) FROM notes WHERE key = 'slow'").await, 1);
    assert_eq!(world.count("SELECT count(*) FROM notes").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_that_keeps_failing_can_be_shut_down() {
    let world = World::new("stuck", 1).await;
    world.table("notes (key text NOT NULL)").await;
    let handler = OneByOne(Note { failing: Arc::new(AtomicBool::new(true)) });
    let running = Running::start(Processor::builder(world.config(&[])).handler("noted", handler));
    world.produce([event("noted", Uuid::now_v7(), "slow", "{}")]);
    eventually("it is tried again", async || (running.metrics.tally().keys_tried >= 2).then_some(())).await;
    running.stop().await;
    assert_eq!(world.members(), 0, "it has left the group");
    assert_eq!(world.count("SELECT count(*) FROM notes").await, 0);
    assert_eq!(world.count("SELECT count(*) FROM inbox").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_goes_away_is_waited_for() {
    let world = World::new("away", 2).await;
    let proxy = Proxy::to(&world.database.url).await;
    let url = proxy.url(&world.database.url);
    world.created_orders(10).await;
    let running = world.start(&[("DATABASE_URL", &url)]);
    world.eventually_processed(10).await;
    proxy.set(Mode::Away);
    world.created_orders(10).await;
    eventually("it tries to come back", async || (proxy.refused() >= 4).then_some(())).await;
    assert_eq!(world.members(), 1);
    proxy.set(Mode::Pass);
    world.eventually_processed(20).await;
    running.stop().await;
    world.assert_processed_once(20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_at_the_assignment_is_waited_for_and_does_not_stop_a_shutdown() {
    let world = World::new("absent", 1).await;
    world.created_orders(10).await;
    let first = world.start(&[]);
    world.eventually_processed(10).await;
    let proxy = Proxy::to(&world.database.url).await;
    let url = proxy.url(&world.database.url);
    // The second one joins, has nothing, and loses its database; then it gets the partition.
    let second = world.start(&[("DATABASE_URL", &url)]);
    world.eventually_settled(2).await;
    proxy.set(Mode::Away);
    first.stop().await;
    world.created_orders(10).await;
    eventually("it tries to read the position", async || (proxy.refused() >= 2).then_some(())).await;
    second.stop().await;
    assert_eq!(world.members(), 0, "it has left the group");

    let third = world.start(&[("DATABASE_URL", &world.database.url)]);
    world.eventually_processed(20).await;
    third.stop().await;
    world.assert_processed_once(20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_vanishes_without_a_word_is_given_up_within_seconds() {
    let world = World::new("silent", 2).await;
    let proxy = Proxy::to(&world.database.url).await;
    let url = proxy.url(&world.database.url);
    let running = world.start(&[("DATABASE_URL", &url)]);
    world.created_orders(10).await;
    world.eventually_processed(10).await;

    // In the middle of a transaction: it waits for a row, and then for an answer that never comes.
    let orders = world.orders(1).await;
    let mut other = world.database.pool.begin().await.expect("a transaction");
    sqlx::query("SELECT FROM orders WHERE id = $1 FOR UPDATE")
        .bind(orders[0].id)
        .execute(&mut *other)
        .await
        .expect("locked");
    world.produce([orders[0].created(2)]);
    let waiting = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'outrider-processor' AND wait_event_type = 'Lock'";
    eventually("a transaction waits", async || (world.count(waiting).await > 0).then_some(())).await;
    proxy.fall_silent();
    // What a vanished host had under way is gone with it.
    let gone = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'outrider-processor'";
    assert!(world.count(gone).await > 0);
    other.commit().await.expect("committed");
    let started = std::time::Instant::now();
    world.created_orders(10).await;
    world.eventually_processed(21).await;
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());

    // With nothing under way: connections that rest.
    proxy.fall_silent();
    let started = std::time::Instant::now();
    world.created_orders(10).await;
    world.eventually_processed(31).await;
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    running.stop().await;
    world.assert_processed_once(31).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_whose_server_has_vanished_still_stops() {
    let world = World::new("silent_stop", 2).await;
    let proxy = Proxy::to(&world.database.url).await;
    let url = proxy.url(&world.database.url);
    let running = world.start(&[("DATABASE_URL", &url)]);
    world.created_orders(10).await;
    world.eventually_processed(10).await;

    // A batch and the count of blocked keys wait for answers that never come.
    let orders = world.orders(10).await;
    let mut other = world.database.pool.begin().await.expect("a transaction");
    sqlx::query("LOCK blocked_keys, orders").execute(&mut *other).await.expect("locked");
    world.produce(orders.iter().map(|order| order.created(2)));
    let waiting = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'outrider-processor' AND wait_event_type = 'Lock'";
    eventually("both wait", async || (world.count(waiting).await > 1).then_some(())).await;
    proxy.fall_silent();
    let started = std::time::Instant::now();
    running.stop().await;
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    other.commit().await.expect("committed");
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_is_dropped_when_the_server_has_vanished_costs_the_pool_no_connection() {
    let world = World::new("silent_drop", 1).await;
    let proxy = Proxy::to(&world.database.url).await;
    let url = proxy.url(&world.database.url);
    let config = world.config(&[("DATABASE_URL", &url), ("DB_CONNECTIONS_MAX", "1"), ("DB_SILENCE_MAX_MS", "500")]);
    let database = config.database.connect(&Shutdown::new()).await.expect("connected");
    let asked = async || {
        let one = async |connection: &mut PgConnection| sqlx::query_scalar("SELECT 1").fetch_one(connection).await;
        let one: i32 = database.with(one).await.expect("another connection");
        assert_eq!(one, 1);
    };
    let dropped = async || {
        let long = async |connection: &mut PgConnection| sqlx::query("SELECT pg_sleep(60)").execute(connection).await;
        let work = tokio::time::timeout(Duration::from_millis(100), database.with(long));
        proxy.fall_silent();
        work.await.expect_err("dropped in the middle");
    };
    asked().await;
    for _ in 0..3 {
        dropped().await;
        asked().await;
    }
    dropped().await;
    tokio::time::timeout(Duration::from_secs(10), database.close()).await.expect("it closes");
}

/// The message of a processor that stops because positions are lost.
async fn lost(running: Running) -> String {
    match running.ended().await {
        Err(ProcessorError::Consumer(error @ ConsumerError::PositionsLost(_))) => error.to_string(),
        other => panic!("it should have stopped over a lost position: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_beyond_the_topics_end_stops_the_processor_and_can_be_accepted() {
    let world = World::new("beyond", 1).await;
    world.created_orders(3).await;
    sqlx::query("INSERT INTO consumer_offsets (group_id, topic, partition, next_offset) VALUES ($1, $2, 0, 100)")
        .bind(&world.group)
        .bind(&world.topic)
        .execute(&world.database.pool)
        .await
        .expect("a position");
    let message = lost(world.start(&[])).await;
    assert!(message.contains("/0: Postgres says 100, the broker has 0 to 3: the topic was made anew"), "{message}");
    let broker = Broker::new(&world.consumer_config()).expect("a client");
    let mut connection = world.database.pool.acquire().await.expect("a connection");
    let lost = offsets::lost(&mut connection, &broker, &world.group, &world.topic, Some(0)).await.expect("an answer");
    let operator = Operator { os_user: "tester", why: None };
    assert!(offsets::accept(&mut connection, &lost[0], operator).await.expect("accepted"));
    let running = world.start(&[]);
    world.eventually_processed(3).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_deleted_before_they_were_applied_stop_the_processor() {
    let world = World::new("deleted", 1).await;
    world.created_orders(100).await;
    let mut other = world.database.pool.begin().await.expect("a transaction");
    sqlx::query("SELECT 1 FROM orders FOR UPDATE").execute(&mut *other).await.expect("locked");
    let running = world.start(&[("PROCESSOR_QUEUE_ROWS_MAX", "1"), ("PROCESSOR_BATCH_ROWS_MAX", "1")]);
    eventually("the partition is paused", async || (running.metrics.pauses() >= 2).then_some(())).await;

    let admin: AdminClient<DefaultClientContext> = world.consumer_config().create().expect("an admin client");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&world.topic, 0, Offset::Offset(90)).expect("an offset");
    admin.delete_records(&list, &AdminOptions::new()).await.expect("deleted");
    other.commit().await.expect("committed");
    let message = lost(running).await;
    assert!(
        message.contains("the broker has 90 to 100: records that were never applied have been deleted"),
        "{message}"
    );
}
