//! What cannot be applied is given up, and its neighbours are not.

use processor::Processor;
use processor::handler::{EventHandler, Handled, HandlerError};
use processor::handlers::orders::{ORDER_CREATED, OrderCreated};
use processor::record::Event;
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::support::{Produced, Running, World, event};

/// Offset, type, reason and headers of each dead letter.
async fn letters(world: &World) -> Vec<(i64, Option<String>, String, serde_json::Value)> {
    sqlx::query_as("SELECT record_offset, event_type, reason, headers FROM dead_letters ORDER BY record_offset")
        .fetch_all(&world.database.pool)
        .await
        .expect("letters")
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_records_are_dead_lettered_and_their_neighbours_are_processed() {
    let world = World::new("broken", 1).await;
    let orders = world.orders(9).await;
    let whole = |index: usize| orders[index].created(1);
    let created = |key: &str, payload: &str| event("order.created", Uuid::now_v7(), key, payload);
    let header = |name, value: &[u8]| vec![(name, value.to_vec())];
    let broken = [
        Produced::default(),
        Produced { headers: header("id", b"\xff\x00\x01"), key: Some(b"another".to_vec()), ..whole(0) },
        Produced { key: Some(b"\xff".to_vec()), ..whole(0) },
        created("8888888", "no JSON \0"),
        Produced { payload: None, ..created("8888889", "") },
        created("999999", &orders[0].payload.replace(&format!("\"id\":{}", orders[0].id), "\"id\":999999")),
        created("7777777", &orders[0].payload),
        created("\0", "{\"id\": \"\0\"}"),
        Produced {
            headers: vec![("ce_type", b"type\0".to_vec()), ("x", b"a\0".to_vec())],
            key: Some(b"third".to_vec()),
            ..whole(0)
        },
    ];
    let unknown = event("other\0", Uuid::now_v7(), "1", "{}");
    let records: Vec<Produced> = broken
        .iter()
        .cloned()
        .enumerate()
        .flat_map(|(index, record)| [record, whole(index)])
        .chain([unknown])
        .collect();
    world.produce(records);
    let handlers =
        Processor::builder(world.config(&[])).handler(ORDER_CREATED, OrderCreated).handler("type\0", OrderCreated);
    let running = Running::start(handlers);
    world.eventually_at(0, 19).await;
    let tally = running.stop().await.tally();
    world.assert_processed_once(9).await;
    assert_eq!((tally.applied, tally.dead_lettered, tally.passed_over), (9, 9, 1));

    let letters = letters(&world).await;
    assert_eq!(letters.iter().map(|letter| letter.0).collect::<Vec<_>>(), [0, 2, 4, 6, 8, 10, 12, 14, 16]);
    for (letter, reason) in letters.iter().zip([
        "the header 'id' is missing",
        "the header 'id' is not a UUID",
        "the key is missing or not UTF-8",
        "the payload is not what is expected",
        "the record has no payload",
        "the order is not in the database",
        "the order's id in the payload is not the record's key",
        "the payload is not what is expected",
        "the header 'id' is missing",
    ]) {
        assert!(letter.2.starts_with(reason), "{} does not start with {reason}", letter.2);
    }
    assert_eq!(letters[0].3, json!([]));
    assert_eq!(letters[1].3, json!([["id", {"hex": "ff0001"}]]));
    assert_eq!(letters[8].1.as_deref(), Some("type\\u0000"));
    assert_eq!(letters[8].3, json!([["ce_type", {"hex": "7479706500"}], ["x", {"hex": "6100"}]]));
    assert_eq!(letters[3].1.as_deref(), Some("order.created"));
    let payload: Vec<u8> = sqlx::query_scalar("SELECT payload FROM dead_letters WHERE record_offset = 6")
        .fetch_one(&world.database.pool)
        .await
        .expect("a payload");
    assert_eq!(payload, b"no JSON \0");
}

/// How a handler refuses events with the key "bad".
#[derive(Clone, Copy)]
enum Refusal {
    ByIndex,
    ByConstraint,
    ByPanic,
    AfterAFailedStatement,
}

/// Writes the keys of events down in one statement.
struct Keep(Refusal);

impl EventHandler for Keep {
    async fn handle(&self, events: &[Event<'_>], connection: &mut PgConnection) -> Result<Handled, HandlerError> {
        let keys: Vec<String> = events.iter().map(|event| event.aggregate_id().to_owned()).collect();
        let kept = sqlx::query("INSERT INTO kept (key) SELECT * FROM UNNEST($1::text[])")
            .bind(&keys)
            .execute(connection)
            .await;
        let bad = keys.iter().position(|key| key == "bad");
        match (self.0, bad) {
            (_, None) | (Refusal::ByConstraint, _) => kept.map(|_| Handled::default()).map_err(Into::into),
            (Refusal::ByIndex, Some(index)) => Err(HandlerError::permanent_at(index, "bad")),
            (Refusal::ByPanic, Some(_)) => panic!("bad"),
            (Refusal::AfterAFailedStatement, Some(_)) => Ok(Handled::default()),
        }
    }
}

/// One event in twenty is refused; it alone goes to the dead letters.
async fn refused(table: &str, refusal: Refusal, reason: &str) {
    let world = World::new("refused", 1).await;
    world.table("allowed (key text PRIMARY KEY)").await;
    sqlx::query("INSERT INTO allowed SELECT n::text FROM generate_series(0, 19) AS n")
        .execute(&world.database.pool)
        .await
        .expect("allowed");
    world.table(table).await;
    let key = |n: i32| if n == 13 { "bad".to_owned() } else { n.to_string() };
    world.produce((0..20).map(|n| event("kept", Uuid::now_v7(), &key(n), "{}")));
    let running = Running::start(Processor::builder(world.config(&[])).handler("kept", Keep(refusal)));
    world.eventually_at(0, 20).await;
    let tally = running.stop().await.tally();
    assert_eq!((tally.applied, tally.dead_lettered), (19, 1));
    assert_eq!(world.count("SELECT count(DISTINCT key) FROM kept WHERE key <> 'bad'").await, 19);
    assert_eq!(world.count("SELECT count(*) FROM kept").await, 19);
    let letters = letters(&world).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].0, 13);
    assert!(letters[0].2.contains(reason), "{}", letters[0].2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permanent_error_that_names_its_event_hits_only_that() {
    refused("kept (key text)", Refusal::ByIndex, "bad").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permanent_error_that_names_no_event_hits_only_the_one_found_by_halving() {
    refused("kept (key text CONSTRAINT good CHECK (key <> 'bad'))", Refusal::ByConstraint, "good").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_constraint_that_is_deferred_to_the_commit_hits_only_its_event() {
    let table = "kept (key text CONSTRAINT known REFERENCES allowed DEFERRABLE INITIALLY DEFERRED)";
    refused(table, Refusal::ByConstraint, "known").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_panics_loses_only_the_event_that_it_panics_over() {
    refused("kept (key text)", Refusal::ByPanic, "the handler panicked: bad").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_goes_on_after_a_failed_statement_loses_only_the_event_that_failed() {
    let table = "kept (key text CONSTRAINT good CHECK (key <> 'bad'))";
    refused(table, Refusal::AfterAFailedStatement, "aborted").await;
}

/// Writes types down in the order in which it gets them.
struct Log;

impl EventHandler for Log {
    async fn handle(&self, events: &[Event<'_>], connection: &mut PgConnection) -> Result<Handled, HandlerError> {
        let types: Vec<String> = events.iter().map(|event| event.event_type().to_owned()).collect();
        sqlx::query("INSERT INTO log (type) SELECT * FROM UNNEST($1::text[])").bind(types).execute(connection).await?;
        Ok(Handled::default())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_one_key_keep_their_order_across_types() {
    let world = World::new("types", 1).await;
    world.table("log (place bigint GENERATED ALWAYS AS IDENTITY, type text)").await;
    let types = ["a", "b", "b", "a", "a", "b"];
    world.produce(types.iter().map(|name| event(name, Uuid::now_v7(), "k", "{}")));
    let running = Running::start(Processor::builder(world.config(&[])).handler("a", Log).handler("b", Log));
    world.eventually_at(0, 6).await;
    running.stop().await;
    let query = "SELECT type FROM log ORDER BY place";
    let found: Vec<String> = sqlx::query_scalar(query).fetch_all(&world.database.pool).await.expect("types");
    assert_eq!(found, types);
}
