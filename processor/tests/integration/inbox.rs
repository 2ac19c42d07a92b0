//! The inbox knows events for as long as they can come again, and no longer.

use std::time::Duration;

use processor::handler::{EventHandler, Handled, HandlerError};
use processor::record::Event;
use processor::{Processor, ProcessorError};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use shared::testing::eventually;
use sqlx::types::chrono::{DateTime, NaiveDate, Utc};
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::{NoContext, Timestamp, Uuid};

use crate::support::{Produced, Running, World, event};

/// Notes each event, with no guard against a second time.
struct Note;

impl EventHandler for Note {
    async fn handle(&self, events: &[Event<'_>], connection: &mut PgConnection) -> Result<Handled, HandlerError> {
        let keys: Vec<&str> = events.iter().map(Event::aggregate_id).collect();
        sqlx::query("INSERT INTO noted (key) SELECT UNNEST($1::text[])").bind(keys).execute(connection).await?;
        Ok(Handled::default())
    }
}

async fn world(test: &str) -> World {
    let world = World::new(test, 1).await;
    world.table("noted (place bigint GENERATED ALWAYS AS IDENTITY, key text NOT NULL)").await;
    world
}

fn start(world: &World) -> Running {
    Running::start(Processor::builder(world.config(&[])).handler("made", Note))
}

async fn noted(world: &World) -> Vec<String> {
    let keys = sqlx::query_scalar("SELECT key FROM noted ORDER BY place");
    keys.fetch_all(&world.database.pool).await.expect("notes")
}

async fn run(world: &World, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&world.database.pool).await.expect(sql);
}

/// Today and so many days, in UTC.
fn day(days: i64) -> NaiveDate {
    let span = Duration::from_hours(24 * days.unsigned_abs());
    let time = if days < 0 { Utc::now() - span } else { Utc::now() + span };
    time.date_naive()
}

/// An id (UUID v7) made at noon of that day.
fn id_of(days: i64) -> Uuid {
    let noon: DateTime<Utc> = day(days).and_hms_opt(12, 0, 0).expect("noon").and_utc();
    Uuid::new_v7(Timestamp::from_unix(NoContext, noon.timestamp().cast_unsigned(), 0))
}

/// An id that tells no time (UUID v4).
fn random_id() -> Uuid {
    let bits = Uuid::now_v7().as_u128().rotate_left(64);
    Uuid::from_u128(bits & !(0xf << 76) | (4 << 76))
}

fn made(id: Uuid, key: &str) -> Produced {
    event("made", id, key, "{}")
}

/// Name of the partition of a day.
fn partition(days: i64) -> String {
    format!("inbox_p{}", day(days).format("%Y%m%d"))
}

async fn partitions(world: &World) -> Vec<String> {
    sqlx::query_scalar("SELECT name::text FROM inbox_partitions ORDER BY occurred_on")
        .fetch_all(&world.database.pool)
        .await
        .expect("partitions")
}

/// Makes a partition as the upkeep would have long ago, with one row that was received at `received`, an expression.
async fn old_partition(world: &World, days: i64, received: &str) {
    let (name, first, next) = (partition(days), day(days), day(days + 1));
    let sql = format!(
        "CREATE TABLE {name} PARTITION OF inbox FOR VALUES FROM ('{first}') TO ('{next}');
         INSERT INTO inbox VALUES ('g', gen_random_uuid(), '{first}', {received})"
    );
    run(world, &sql).await;
}

/// Where the rows of the inbox are.
async fn places(world: &World) -> Vec<(String, i64)> {
    sqlx::query_as("SELECT tableoid::regclass::text, count(*) FROM inbox GROUP BY 1 ORDER BY 1")
        .fetch_all(&world.database.pool)
        .await
        .expect("places")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_known_whatever_partitions_are_made_and_dropped_around_it() {
    let world = world("around").await;
    // Days without a partition, for the time being: long past, yet to come, and one that the upkeep will make.
    run(&world, &format!("DROP TABLE {}; DROP TABLE {}", partition(-3), partition(0))).await;
    run(&world, "REVOKE EXECUTE ON FUNCTION inbox_make_partition FROM outrider_processor").await;
    let undated = random_id();
    let with_header = |id: Uuid, key: &str, time: &str| {
        let mut made = made(id, key);
        made.headers.push(("ce_time", time.as_bytes().to_vec()));
        made
    };
    let yesterday = format!("{}T23:59:59.999Z", day(-1));
    let events = [
        made(id_of(-400), "long past"),
        made(id_of(-3), "past"),
        made(id_of(0), "today"),
        made(id_of(1), "tomorrow"),
        made(id_of(5), "to come"),
        made(undated, "undated"),
        with_header(random_id(), "by its header", &yesterday),
        with_header(random_id(), "of no use", "yesterday"),
    ];
    world.produce(events.iter().cloned());
    let running = start(&world);
    world.eventually_at(0, 8).await;
    running.stop().await;
    let count = |name: &str, count| (name.to_owned(), count);
    let mut expected =
        vec![count("inbox_default", 4), count(&partition(-1), 1), count(&partition(1), 1), count("inbox_undated", 2)];
    expected.sort();
    assert_eq!(places(&world).await, expected);

    // The first round of the upkeep makes the partitions of two of the days, and moves their rows; the next drops one.
    run(&world, "GRANT EXECUTE ON FUNCTION inbox_make_partition TO outrider_processor").await;
    old_partition(&world, -200, "now() - interval '190 days'").await;
    let running = start(&world);
    eventually("the old partition is dropped", async || {
        (!partitions(&world).await.contains(&partition(-200))).then_some(())
    })
    .await;
    let mut expected = vec![
        count("inbox_default", 2),
        count(&partition(-3), 1),
        count(&partition(-1), 1),
        count(&partition(0), 1),
        count(&partition(1), 1),
        count("inbox_undated", 2),
    ];
    expected.sort();
    assert_eq!(places(&world).await, expected);

    world.produce(events.iter().cloned());
    world.eventually_at(0, 16).await;
    let tally = running.stop().await.tally();
    assert_eq!((tally.applied, tally.repeated), (0, 8));
    assert_eq!(noted(&world).await.len(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_makes_the_inbox_remember_for_longer() {
    let world = world("renewed").await;
    let (old, young) = (id_of(-3), id_of(-2));
    world.produce([made(old, "old"), made(young, "young")]);
    let running = start(&world);
    world.eventually_at(0, 2).await;
    run(&world, &format!("UPDATE inbox SET received_at = now() - interval '6 days' WHERE event_id = '{old}'")).await;
    let ages = "SELECT count(*) FROM inbox WHERE received_at < now() - interval '5 days'";
    assert_eq!(world.count(ages).await, 1);
    let young_row = format!("SELECT xmin::text || ctid::text FROM inbox WHERE event_id = '{young}'");
    let row = async || {
        let row: String =
            sqlx::query_scalar(AssertSqlSafe(young_row.clone())).fetch_one(&world.database.pool).await.expect("a row");
        row
    };
    let before = row().await;
    world.produce([made(young, "young"), made(old, "old"), made(Uuid::now_v7(), "new"), made(old, "old")]);
    world.eventually_at(0, 6).await;
    running.stop().await;
    assert_eq!(world.count(ages).await, 0, "the record that came again may stay for a whole retention");
    assert_eq!(row().await, before, "what is young is not written again");
    assert_eq!(noted(&world).await, ["old", "young", "new"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_retention_drops_what_is_old_and_nothing_else() {
    let world = world("retention").await;
    // Seven days, and one hour.
    let (old, young) = ("now() - interval '7 days 61 minutes'", "now() - interval '7 days 59 minutes'");
    old_partition(&world, -30, old).await;
    old_partition(&world, -31, young).await;
    old_partition(&world, -32, old).await;
    run(
        &world,
        &format!(
            "INSERT INTO inbox SELECT 'g', gen_random_uuid(), day, received
             FROM (VALUES (date '0001-01-01'), (date '3000-01-01')) d (day), (VALUES ({old}), ({young})) r (received)"
        ),
    )
    .await;
    // As long as a group that was there lately wants more, all stays.
    run(&world, "INSERT INTO inbox_groups VALUES ('other', interval '30 days', now() - interval '20 days')").await;
    let before = places(&world).await;
    let running = start(&world);
    // The upkeep does its first round before the first batch.
    world.produce([made(random_id(), "undated")]);
    world.eventually_at(0, 1).await;
    eventually("it has said for how long", async || {
        (world.count("SELECT count(*) FROM inbox_groups").await == 2).then_some(())
    })
    .await;
    running.stop().await;
    run(&world, "DELETE FROM inbox WHERE received_at > now() - interval '1 hour'").await;
    assert_eq!(places(&world).await, before);

    run(&world, "UPDATE inbox_groups SET seen_at = now() - interval '31 days 1 minute' WHERE group_id = 'other'").await;
    let running = start(&world);
    eventually("the old ones are gone", async || {
        let rows = "SELECT count(*) FROM inbox WHERE received_at < now() - interval '7 days 1 hour'";
        let left = partitions(&world).await;
        let gone = ![-30, -32].iter().any(|days| left.contains(&partition(*days)));
        (gone && world.count(rows).await == 0).then_some(())
    })
    .await;
    running.stop().await;
    let mut expected = vec![("inbox_default".to_owned(), 1), (partition(-31), 1), ("inbox_undated".to_owned(), 1)];
    expected.sort();
    assert_eq!(places(&world).await, expected);
    let left = partitions(&world).await;
    assert!(
        left.contains(&partition(-31)) && left.contains(&partition(-7)) && left.contains(&partition(2)),
        "{left:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_in_use_is_emptied_without_holding_anybody_up_and_dropped_later() {
    let world = world("in_use").await;
    old_partition(&world, -30, "now() - interval '8 days'").await;
    run(&world, "INSERT INTO inbox_groups VALUES ('g', interval '7 days')").await;
    let mut batch = world.database.pool.begin().await.expect("a transaction");
    let take_in = "INSERT INTO inbox (group_id, event_id, occurred_on) VALUES ('g', gen_random_uuid(), now()::date)";
    sqlx::query(take_in).execute(&mut *batch).await.expect("taken in");
    let attempt = async || {
        let attempt: Option<(String, String)> = sqlx::query_as("SELECT name, outcome FROM inbox_drop_partition()")
            .fetch_optional(&world.database.pool)
            .await
            .expect("an outcome");
        attempt.map(|attempt| attempt.1)
    };
    assert_eq!(attempt().await.as_deref(), Some("emptied"), "batches elsewhere are in nobody's way");
    assert_eq!(attempt().await.as_deref(), Some("busy"), "the batch is not waited for");
    sqlx::query(take_in).execute(&mut *batch).await.expect("taken in");
    batch.commit().await.expect("committed");

    // An event of that day that has just come in keeps the partition.
    let late = format!("INSERT INTO inbox VALUES ('g', gen_random_uuid(), '{}', now())", day(-30));
    run(&world, &late).await;
    assert_eq!(attempt().await, None);
    run(&world, "DELETE FROM inbox WHERE occurred_on < now()::date - 20").await;
    assert_eq!(attempt().await.as_deref(), Some("dropped"));
    assert_eq!(attempt().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_looked_up_in_the_one_partition_of_its_day() {
    let world = world("one_partition").await;
    let ids = [id_of(-1), id_of(-1)];
    let events = || ids.iter().map(|id| made(*id, "key"));
    let running = start(&world);
    world.produce(events());
    world.eventually_at(0, 2).await;
    run(&world, "UPDATE inbox SET received_at = now() - interval '2 hours'").await;
    // Stale ones, which are written anew, and then young ones.
    world.produce(events());
    world.eventually_at(0, 4).await;
    world.produce(events());
    world.eventually_at(0, 6).await;
    let tally = running.stop().await.tally();
    assert_eq!((tally.applied, tally.repeated), (2, 4));
    let scans = async || -> Vec<(String, i64)> {
        let sql = "SELECT s.relname::text, sum(s.idx_scan)::bigint FROM pg_stat_user_indexes s
            WHERE s.relname LIKE 'inbox%' AND s.indexrelname LIKE '%pkey' AND s.idx_scan > 0
                AND s.relname <> 'inbox_groups' GROUP BY 1";
        sqlx::query_as(sql).fetch_all(&world.database.pool).await.expect("statistics")
    };
    // The connections are closed, so their statistics are there; those of the server's own may take a moment.
    let scans =
        eventually("look-ups are counted", async || Some(scans().await).filter(|scans| !scans.is_empty())).await;
    let names: Vec<&str> = scans.iter().map(|scan| scan.0.as_str()).collect();
    assert_eq!(names, [partition(-1).as_str()], "{scans:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retention_shorter_than_that_of_the_topic_is_refused() {
    let world = world("refused").await;
    let shorter = [("PROCESSOR_INBOX_RETENTION", "1h")];
    let (code, said) = world.spawn_refused(&shorter).await;
    assert_eq!(code, Some(64), "{said}");
    let start = "outrider-processor: PROCESSOR_INBOX_RETENTION: is shorter (3600 s) than the topic ";
    assert!(said.starts_with(start) && said.lines().count() == 1, "{said}");

    world.produce([made(Uuid::now_v7(), "a")]);
    let running = world.start(&[shorter[0], ("PROCESSOR_INBOX_RETENTION_SHORTER", "allow")]);
    world.eventually_at(0, 1).await;
    running.stop().await;

    // A compacted topic keeps records for ever.
    let admin: AdminClient<DefaultClientContext> = world.consumer_config().create().expect("an admin client");
    let compact = AlterConfig::new(ResourceSpecifier::Topic(&world.topic)).set("cleanup.policy", "compact");
    admin.alter_configs(&[compact], &AdminOptions::new()).await.expect("an answer").remove(0).expect("altered");
    match world.start(&[]).ended().await {
        Err(ProcessorError::Config(error)) => assert!(error.to_string().contains("for ever"), "{error}"),
        other => panic!("it should have been refused: {other:?}"),
    }
    let running = world.start(&[("PROCESSOR_INBOX_RETENTION", "forever")]);
    world.produce([made(Uuid::now_v7(), "a")]);
    world.eventually_at(0, 2).await;
    running.stop().await;
}
