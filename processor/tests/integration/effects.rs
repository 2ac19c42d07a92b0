//! Effects are exactly once.

use std::time::{Duration, Instant};

use processor::Processor;
use processor::handler::{EventHandler, Handled, HandlerError};
use processor::record::Event;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::support::{Running, World, event};
use shared::testing::eventually;

#[tokio::test(flavor = "multi_thread")]
async fn an_order_goes_from_pending_to_processed_with_one_transition_and_one_event() {
    let world = World::new("straight", 3).await;
    let orders = world.created_orders(20).await;
    let running = world.start(&[]);
    world.eventually_processed(20).await;
    running.stop().await;
    world.assert_processed_once(20).await;

    let (payload, version): (String, i64) = sqlx::query_as(
        "SELECT payload::text, aggregate_version FROM outbox WHERE aggregate_id = $1 AND type = 'order.processed'",
    )
    .bind(orders[0].id.to_string())
    .fetch_one(&world.database.pool)
    .await
    .expect("its event");
    assert_eq!(version, 2);
    let document: serde_json::Value = serde_json::from_str(&payload).expect("JSON");
    assert_eq!((&document["status"], &document["version"]), (&"Processed".into(), &2.into()));
    assert_eq!(document["id"], orders[0].id);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_context_of_an_event_travels_to_the_event_that_it_causes() {
    let world = World::new("trace", 1).await;
    let order = world.orders(1).await.remove(0);
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut created = order.created(1);
    created.headers.push(("traceparent", traceparent.as_bytes().to_vec()));
    world.produce([created]);
    let running = world.start(&[]);
    world.eventually_processed(1).await;
    running.stop().await;
    let query = "SELECT headers ->> 'traceparent' FROM outbox";
    let found: String = sqlx::query_scalar(query).fetch_one(&world.database.pool).await.expect("a context");
    assert_eq!(found, traceparent);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_published_again_at_another_offset_has_no_second_effect() {
    let world = World::new("again", 1).await;
    let orders = world.created_orders(10).await;
    let running = world.start(&[]);
    world.eventually_processed(10).await;
    // Once more each, and a new one twice in the same batch.
    let new = world.orders(1).await.remove(0);
    world.produce(orders.iter().chain([&new, &new]).map(|order| order.created(1)));
    world.eventually_at(0, 22).await;
    let tally = running.stop().await.tally();
    assert_eq!((tally.applied, tally.repeated, tally.superseded), (11, 11, 0));
    world.assert_processed_once(11).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_event_for_an_order_that_has_moved_on_has_no_effect() {
    let world = World::new("overtaken", 1).await;
    let order = world.created_orders(1).await.remove(0);
    let running = world.start(&[]);
    world.eventually_processed(1).await;
    world.produce([order.event(Uuid::now_v7(), 0)]);
    world.eventually_at(0, 2).await;
    let tally = running.stop().await.tally();
    assert_eq!((tally.superseded, tally.dead_lettered), (1, 0));
    world.assert_processed_once(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_position_in_postgres_wins_when_kafkas_offsets_are_lost() {
    let world = World::new("reset", 1).await;
    world.created_orders(10).await;
    let running = world.start(&[]);
    world.eventually_processed(10).await;
    running.stop().await;

    let kafka: BaseConsumer = world.consumer_config().create().expect("a consumer");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&world.topic, 0, Offset::Offset(0)).expect("an offset");
    kafka.commit(&list, CommitMode::Sync).expect("the group is empty, so its offsets can be set");
    // Without the inbox there is only the position between the events and a second effect.
    sqlx::query("TRUNCATE inbox").execute(&world.database.pool).await.expect("truncated");

    world.created_orders(1).await;
    let running = world.start(&[]);
    world.eventually_processed(11).await;
    let tally = running.stop().await.tally();
    assert_eq!((tally.applied, tally.superseded), (1, 0), "the old ones were not even read");
    world.assert_processed_once(11).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_new_to_postgres_starts_where_kafka_says() {
    let world = World::new("fallback", 1).await;
    let old = world.created_orders(3).await;
    let kafka: BaseConsumer = world.consumer_config().create().expect("a consumer");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&world.topic, 0, Offset::Offset(2)).expect("an offset");
    // The broker that is to look after the group may still be on its way to it.
    let committed = async || kafka.commit(&list, CommitMode::Sync).ok();
    eventually("the offset is committed", committed).await;
    let running = world.start(&[]);
    world.eventually_at(0, 3).await;
    running.stop().await;
    world.assert_processed_once(1).await;
    let status = "SELECT count(*) FROM orders WHERE status = 'Pending'";
    assert_eq!(world.count(status).await, i64::try_from(old.len()).expect("small") - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_an_unknown_type_are_passed_over_and_counted() {
    let world = World::new("unknown", 1).await;
    let order = world.orders(1).await.remove(0);
    let others = (0..5).map(|_| event("order.audited", Uuid::now_v7(), "1", "{}"));
    world.produce(others.chain([order.created(1)]));
    let running = world.start(&[]);
    world.eventually_at(0, 6).await;
    let tally = running.stop().await.tally();
    assert_eq!((tally.passed_over, tally.applied), (5, 1));
    assert_eq!(world.count("SELECT count(*) FROM dead_letters").await, 0);
    assert_eq!(world.count("SELECT count(*) FROM inbox").await, 1, "those without a handler are not taken in");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_nobody_handles_do_not_cost_a_transaction_each() {
    let world = World::new("passing", 1).await;
    let noting = "CREATE TABLE moves (next_offset bigint);
        CREATE FUNCTION note_move() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
            'BEGIN INSERT INTO moves VALUES (NEW.next_offset); RETURN NEW; END';
        CREATE TRIGGER note_moves AFTER INSERT OR UPDATE ON consumer_offsets FOR EACH ROW EXECUTE FUNCTION note_move()";
    sqlx::raw_sql(noting).execute(&world.database.pool).await.expect("a trigger");
    let running = world.start(&[]);
    let start = Instant::now();
    for _ in 0..40 {
        world.produce([event("order.audited", Uuid::now_v7(), "1", "{}")]);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Nothing comes that has to be done, and the position gets there all the same.
    world.eventually_at(0, 40).await;
    let moves = world.count("SELECT count(*) FROM moves").await;
    // They wait for a tenth of a second.
    let (took, moves) = (start.elapsed(), u128::try_from(moves).expect("a count"));
    assert!(moves <= took.as_millis() / 100 + 2, "{moves} transactions for 40 records within {took:?}");

    let order = world.orders(1).await.remove(0);
    world.produce([event("order.audited", Uuid::now_v7(), "2", "{}"), order.created(1)]);
    world.eventually_at(0, 42).await;
    let tally = running.stop().await.tally();
    assert_eq!((tally.passed_over, tally.applied), (41, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_that_are_full_all_the_time_lose_and_repeat_nothing() {
    let world = World::new("pauses", 3).await;
    world.created_orders(5_000).await;
    let running = world.start(&[("PROCESSOR_QUEUE_ROWS_MAX", "20"), ("PROCESSOR_BATCH_ROWS_MAX", "10")]);
    world.eventually_processed(5_000).await;
    let metrics = running.stop().await;
    let (tally, pauses) = (metrics.tally(), metrics.pauses());
    assert!(pauses > 10, "{pauses} pauses");
    assert_eq!((tally.applied, tally.repeated), (5_000, 0));
    world.assert_processed_once(5_000).await;
}

/// Notes each event, with no guard against a second time.
struct Note;

impl EventHandler for Note {
    async fn handle(&self, events: &[Event<'_>], connection: &mut PgConnection) -> Result<Handled, HandlerError> {
        let keys: Vec<&str> = events.iter().map(Event::aggregate_id).collect();
        sqlx::query("INSERT INTO noted (key) SELECT UNNEST($1::text[])").bind(keys).execute(connection).await?;
        Ok(Handled::default())
    }
}

/// The order handler would be safe by its own guards; from this one, only the inbox keeps repeats away.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_published_again_reaches_its_handler_once() {
    let world = World::new("repeats", 1).await;
    world.table("noted (place bigint GENERATED ALWAYS AS IDENTITY, key text NOT NULL)").await;
    let events: Vec<_> = ["a", "b", "c"].iter().map(|key| event("made", Uuid::now_v7(), key, "{}")).collect();
    world.produce(events.iter().chain(&events).cloned());
    let running = Running::start(Processor::builder(world.config(&[])).handler("made", Note));
    world.eventually_at(0, 6).await;
    world.produce(events.iter().cloned());
    world.eventually_at(0, 9).await;
    running.stop().await;
    // And over a restart.
    world.produce(events.iter().cloned());
    let running = Running::start(Processor::builder(world.config(&[])).handler("made", Note));
    world.eventually_at(0, 12).await;
    running.stop().await;
    let noted: Vec<String> = sqlx::query_scalar("SELECT key FROM noted ORDER BY place")
        .fetch_all(&world.database.pool)
        .await
        .expect("notes");
    assert_eq!(noted, ["a", "b", "c"]);
}
