//! Topics that are not what they were, and Kafka's offsets, which do not count.

use std::sync::Arc;
use std::time::{Duration, Instant};

use processor::broker::Broker;
use processor::offsets::{self, Cause, Operator};
use processor::record::Partition;
use processor::{ConsumerError, ProcessorError};
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use shared::testing::eventually;

use crate::keeper::{self, kept};
use crate::support::{Produced, Running, World, event};

fn admin(world: &World) -> AdminClient<DefaultClientContext> {
    world.consumer_config().create().expect("an admin client")
}

/// Deletes the topic and makes it anew, empty.
pub(crate) async fn make_anew(world: &World) {
    let admin = admin(world);
    admin.delete_topics(&[&world.topic], &AdminOptions::new()).await.expect("an answer").remove(0).expect("deleted");
    // It is gone a moment after the broker has said so, and until then it cannot be made.
    eventually("the topic is made anew", async || {
        world.make_topic().await;
        let broker = Broker::new(&world.consumer_config()).expect("a client");
        let partition = Partition { topic: world.topic.as_str().into(), number: 0 };
        let views = tokio::task::spawn_blocking(move || broker.views(&[partition])).await.expect("no panic");
        views.is_ok_and(|views| views[0].high == 0).then_some(())
    })
    .await;
}

/// What a processor has to say that stops because positions are lost.
pub(crate) async fn lost(running: Running) -> String {
    match running.ended().await {
        Err(ProcessorError::Consumer(error @ ConsumerError::PositionsLost(_))) => error.to_string(),
        other => panic!("it should have stopped over a lost position: {other:?}"),
    }
}

/// Accepts what the broker has, and returns what was wrong.
async fn accept(world: &World) -> Vec<Cause> {
    let mut connection = world.database.pool.acquire().await.expect("a connection");
    let broker = Broker::new(&world.consumer_config()).expect("a client");
    let lost = offsets::lost(&mut connection, &broker, &world.group, &world.topic, None).await.expect("an answer");
    for lost in &lost {
        let operator = Operator { os_user: "tester (uid 7)", why: Some("made anew") };
        assert!(offsets::accept(&mut connection, lost, operator).await.expect("accepted"), "{lost}");
        let again = offsets::accept(&mut connection, lost, operator).await.expect("an answer");
        assert!(!again || lost.offset == lost.view.low);
    }
    lost.into_iter().map(|lost| lost.cause).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_anew_is_known_even_if_it_is_longer_than_before() {
    let world = World::new("anew", 2).await;
    let orders = world.created_orders(10).await;
    let running = world.start(&[]);
    world.eventually_processed(10).await;
    running.stop().await;
    make_anew(&world).await;
    // More of them than before, other ones first.
    world.created_orders(20).await;
    world.produce(orders.iter().map(|order| order.created(2)));

    let message = lost(world.start(&[])).await;
    for number in [0, 1] {
        let part = format!("/{number}: Postgres says 5, the broker has 0 to 15: the record at 4 is not the one");
        assert!(message.contains(&part), "{message}");
    }
    let command = format!("outrider offsets accept --group {} --topic {}", world.group, world.topic);
    assert!(message.ends_with(&command), "{message}");
    assert_eq!(world.processed().await, 10, "nothing is applied before that");

    assert_eq!(accept(&world).await, [Cause::Another, Cause::Another]);
    let logged = "SELECT count(*) FROM offset_log WHERE old_offset = 5 AND new_offset = 0 AND db_user = session_user
        AND os_user = 'tester (uid 7)' AND why = 'made anew' AND cause LIKE '%/_: Postgres says 5, %is not the one%'";
    assert_eq!(world.count(logged).await, 2);
    assert_eq!(world.count("SELECT count(*) FROM offset_log").await, 2, "what was left alone is not logged");
    let erased = sqlx::query("DELETE FROM offset_log").execute(&world.database.pool).await;
    assert!(erased.is_err(), "the log is append-only");
    let running = world.start(&[]);
    world.eventually_at(0, 15).await;
    world.eventually_at(1, 15).await;
    let tally = running.stop().await.tally();
    assert_eq!((tally.applied, tally.repeated), (20, 10));
    world.assert_processed_once(30).await;
    assert_eq!(accept(&world).await, [], "all is well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_anew_is_known_even_if_the_same_events_are_at_the_same_places() {
    let world = World::new("same", 1).await;
    let orders = world.created_orders(5).await;
    let running = world.start(&[]);
    world.eventually_processed(5).await;
    running.stop().await;
    make_anew(&world).await;
    world.produce(orders.iter().map(|order| order.created(1)));
    assert!(lost(world.start(&[])).await.contains("the record at 4 is not the one that was applied"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_went_by_age_is_not_missed() {
    let world = World::new("by_age", 1).await;
    world.created_orders(5).await;
    let running = world.start(&[]);
    world.eventually_processed(5).await;
    running.stop().await;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&world.topic, 0, Offset::Offset(5)).expect("an offset");
    admin(&world).delete_records(&list, &AdminOptions::new()).await.expect("deleted");
    world.created_orders(2).await;
    let running = world.start(&[]);
    world.eventually_processed(7).await;
    running.stop().await;
    world.assert_processed_once(7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_position_in_postgres_wins_when_kafka_has_forgotten_the_group() {
    let world = World::new("forgotten", 1).await;
    world.created_orders(10).await;
    let running = world.start(&[]);
    world.eventually_processed(10).await;
    running.stop().await;
    // It takes a moment until the group is known to be empty.
    eventually("the group is deleted", async || {
        let deleted = admin(&world).delete_groups(&[&world.group], &AdminOptions::new()).await.expect("an answer");
        deleted.into_iter().all(|result| result.is_ok()).then_some(())
    })
    .await;
    sqlx::query("TRUNCATE inbox").execute(&world.database.pool).await.expect("truncated");
    world.created_orders(1).await;
    let running = world.start(&[]);
    world.eventually_processed(11).await;
    let tally = running.stop().await.tally();
    assert_eq!((tally.applied, tally.superseded), (1, 0), "the old ones were not even read");
    world.assert_processed_once(11).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_added_to_a_topic_are_read_from_their_beginning() {
    let world = World::new("added", 1).await;
    world.created_orders(5).await;
    let running = world.start(&[]);
    world.eventually_processed(5).await;
    let more = NewPartitions::new(&world.topic, 3);
    admin(&world).create_partitions(&[more], &AdminOptions::new()).await.expect("an answer").remove(0).expect("added");
    // Before the group has heard of them.
    let orders = world.orders(6).await;
    let produced = orders
        .iter()
        .zip([0, 1, 2].into_iter().cycle())
        .map(|(order, partition)| Produced { partition, ..order.event(order.event_id, 0) });
    world.produce(produced.collect::<Vec<_>>());
    world.eventually_processed(11).await;
    running.stop().await;
    world.assert_processed_once(11).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_at_the_place_of_an_old_one_that_waits_still_is_not_lost() {
    let world = keeper::world("same_place", 1).await;
    for key in ["old", "new"] {
        world.fate(key, 1, Some("permanent")).await;
    }
    let running = keeper::start(&world, true, &[]);
    world.produce([kept("old", 1), kept("old", 2)]);
    world.eventually_at(0, 2).await;
    running.stop().await;
    make_anew(&world).await;
    let record = kept("new", 1);
    world.produce([record.clone()]);
    assert_eq!(accept(&world).await, [Cause::Beyond]);
    let running = keeper::start(&world, true, &[]);
    world.eventually_at(0, 1).await;
    // And the same one at the same place, read once more, waits once.
    sqlx::query("UPDATE consumer_offsets SET next_offset = 0").execute(&world.database.pool).await.expect("set back");
    world.produce([kept("b", 1)]);
    world.eventually_at(0, 2).await;
    assert_eq!((world.waiting("old").await.len(), world.waiting("new").await.len()), (2, 1));
    for key in ["old", "new"] {
        world.fate(key, 1, None).await;
        let count = i64::try_from(world.waiting(key).await.len()).expect("few");
        assert_eq!(world.replay(key, 0, false).await, (count, 0, None));
    }
    running.stop().await;
    world.assert_nothing_waits().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_anchor_can_be_asked_for_again_and_again() {
    let world = World::new("asked_again", 2).await;
    world.produce([0, 1].map(|partition| Produced { partition, ..event("other", uuid::Uuid::now_v7(), "k", "{}") }));
    let topic: Arc<str> = world.topic.as_str().into();
    let places = [0, 1].map(|number| (Partition { topic: Arc::clone(&topic), number }, 0));
    let config = world.consumer_config();
    let asked = tokio::task::spawn_blocking(move || {
        let broker = Broker::new(&config).expect("a client");
        (0..3).map(|_| broker.anchors(&places).expect("an answer")).collect::<Vec<_>>()
    });
    let asked = asked.await.expect("no panic");
    assert!(asked[0].iter().all(Option::is_some));
    assert!(asked.iter().all(|answer| *answer == asked[0]), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_partitions_are_looked_at_in_a_few_questions() {
    let world = World::new("fifty", 50).await;
    let records = (0..50).flat_map(|partition| {
        (0..=partition % 3).map(move |_| Produced { partition, ..event("other", uuid::Uuid::now_v7(), "k", "{}") })
    });
    world.produce(records.collect::<Vec<_>>());
    let partitions: Vec<Partition> =
        (0..50).map(|number| Partition { topic: world.topic.as_str().into(), number }).collect();
    let config = world.consumer_config();
    let (views, anchors, elapsed) = tokio::task::spawn_blocking(move || {
        let broker = Broker::new(&config).expect("a client");
        let start = Instant::now();
        let views = broker.views(&partitions).expect("an answer");
        let seen = start.elapsed();
        let places: Vec<_> =
            partitions.iter().map(|partition| (partition.clone(), i64::from(partition.number % 3))).collect();
        let anchors = broker.anchors(&places).expect("an answer");
        (views, anchors, [seen, start.elapsed()])
    })
    .await
    .expect("no panic");
    println!(
        "ranges and committed offsets of 50 partitions after {:?}, and a record of each after {:?}",
        elapsed[0], elapsed[1]
    );
    let client: BaseConsumer = world.consumer_config().create().expect("a consumer");
    for (number, (view, anchor)) in (0..).zip(views.iter().zip(&anchors)) {
        let marks = client.fetch_watermarks(&world.topic, number, Duration::from_secs(10)).expect("an answer");
        assert_eq!((view.low, view.high, view.committed), (marks.0, marks.1, None), "{number}");
        assert_eq!(anchor.map(|anchor| anchor.offset), Some(view.high - 1), "{number}");
    }
}
