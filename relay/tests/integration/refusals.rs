//! What brokers refuse: batches, records and topics. A real broker where it can be brought to say so, a mock of librdkafka's else.

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use shared::testing::{eventually, kafka_brokers};

use crate::support::{Fixture, all_settled, assert_complete_and_in_order, assert_no_repeats, insert, published_at};

/// Bytes of a batch that the topic of these tests takes: far fewer than the relay's producer puts into one.
const BATCH_BYTES: usize = 20_000;

async fn make_topic_of_small_batches(fixture: &Fixture, partitions: i32) {
    let admin: AdminClient<DefaultClientContext> =
        rdkafka::ClientConfig::new().set("bootstrap.servers", kafka_brokers()).create().unwrap();
    let (name, bytes) = (fixture.topic(), BATCH_BYTES.to_string());
    let topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1)).set("max.message.bytes", &bytes);
    let made = admin.create_topics([&topic], &AdminOptions::new()).await.unwrap();
    assert_eq!(made, [Ok(name.clone())]);
}

/// So many characters that cannot be compressed, and need no escape.
fn letters(count: usize) -> String {
    (0..count).map(|_| char::from(rand::random_range(b'#'..=b'Z'))).collect()
}

fn payload_of(bytes: usize) -> String {
    format!("\"{}\"", letters(bytes - 2))
}

/// Inserts an event that the relay finds small enough and the broker does not: the relay allows 512 bytes for what comes to the payload, and a
/// long type makes more of it.
async fn insert_too_large_for_the_broker(fixture: &Fixture, key: &str, version: i64) {
    let sql = "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
        VALUES (gen_random_uuid(), $1, $2, $3, $4, $5::json)";
    let query = sqlx::query(sql).bind(&fixture.aggregate_type).bind(key).bind(version);
    query.bind(letters(250)).bind(payload_of(19_475)).execute(&fixture.database.pool).await.unwrap();
}

/// Version, and whether it is itself what was refused, of all that is parked.
async fn parked(fixture: &Fixture) -> Vec<(String, i64, bool)> {
    sqlx::query_as(
        "SELECT aggregate_id, aggregate_version, reason IS NOT NULL FROM relay_parked ORDER BY aggregate_id, id",
    )
    .fetch_all(&fixture.database.pool)
    .await
    .unwrap()
}

fn parked_from(key: &str, versions: std::ops::RangeInclusive<i64>) -> Vec<(String, i64, bool)> {
    let first = *versions.start();
    versions.map(|version| (key.to_owned(), version, version == first)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_takes_small_batches_only_is_flooded_in_order_and_one_large_event_parks_its_key() {
    let fixture = Fixture::new("a_topic_that_takes_small_batches").await;
    make_topic_of_small_batches(&fixture, 3).await;
    let mut connection = fixture.database.pool.acquire().await.unwrap();
    let flood = "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
        SELECT gen_random_uuid(), $1, 'k' || key, version, 'thing.changed', to_json(repeat(md5(random()::text), 9))
        FROM generate_series(1, 100) version, generate_series(1, 40) key ORDER BY version, key";
    fixture.insert(&mut connection, "large", 1).await;
    insert(&mut connection, &fixture.aggregate_type, "large", 2, &payload_of(30_000)).await;
    fixture.insert(&mut connection, "large", 3).await;
    sqlx::query(flood).bind(&fixture.aggregate_type).execute(&mut *connection).await.unwrap();
    let relay = fixture.relay(&[]);
    let records = fixture.published(4_001).await;
    assert_complete_and_in_order(&records, |key| if key == "large" { 1 } else { 100 }, 41);
    all_settled(&fixture).await;
    assert_eq!(parked(&fixture).await, parked_from("large", 2..=3));
    relay.stop().await;
    // That the batches are too large is known before one is sent.
    assert_no_repeats(&fixture.published(4_001).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_only_the_broker_finds_too_large_parks_its_key_and_not_its_batch() {
    let fixture = Fixture::new("an_event_that_only_the_broker_finds").await;
    make_topic_of_small_batches(&fixture, 3).await;
    let mut connection = fixture.database.pool.acquire().await.unwrap();
    fixture.insert(&mut connection, "before", 1).await;
    fixture.insert(&mut connection, "large", 1).await;
    insert_too_large_for_the_broker(&fixture, "large", 2).await;
    fixture.insert(&mut connection, "large", 3).await;
    fixture.insert(&mut connection, "after", 1).await;
    let relay = fixture.relay(&[]);
    fixture.insert_all("after", 2, 30).await;
    eventually("the large event is parked", async || {
        (parked(&fixture).await == parked_from("large", 2..=3)).then_some(())
    })
    .await;
    let records = fixture.published(32).await;
    assert_complete_and_in_order(&records, |key| if key == "after" { 30 } else { 1 }, 3);
    all_settled(&fixture).await;
    let reason: String = sqlx::query_scalar("SELECT reason FROM relay_parked WHERE reason IS NOT NULL")
        .fetch_one(&fixture.database.pool)
        .await
        .unwrap();
    assert!(reason.starts_with("a broker said: "), "{reason}");
    relay.stop().await;
}

/// While the first refused event is looked into, each record is sent by itself and nobody waits for its outcome: the second one is refused
/// with its youngers on their way.
#[tokio::test(flavor = "multi_thread")]
async fn events_that_are_refused_one_after_the_other_are_not_overtaken() {
    let fixture = Fixture::new("events_that_are_refused_one_after").await;
    make_topic_of_small_batches(&fixture, 1).await;
    let keys = ["a", "b", "c"];
    for key in keys {
        fixture.insert_all(key, 1, 1).await;
        insert_too_large_for_the_broker(&fixture, key, 2).await;
        fixture.insert_all(key, 3, 20).await;
    }
    let relay = fixture.relay(&[]);
    all_settled(&fixture).await;
    let expected: Vec<_> = keys.into_iter().flat_map(|key| parked_from(key, 2..=20)).collect();
    assert_eq!(parked(&fixture).await, expected);
    assert_complete_and_in_order(&fixture.published(3).await, |_| 1, 3);
    relay.stop().await;
}

/// A mock cluster with the fixture's topic on it, of one partition, and events in the outbox: four keys with five versions each.
///
/// The mock does not look at sequence numbers: behind a request that failed it takes the next one. So there must be one request only, and there
/// is: its records are handed over before the producer has found the brokers.
async fn with_mock(fixture: &Fixture, errors: &[RDKafkaRespErr]) -> MockCluster<'static, DefaultProducerContext> {
    let mock = MockCluster::new(1).unwrap();
    mock.create_topic(&fixture.topic(), 1, 1).unwrap();
    mock.request_errors(RDKafkaApiKey::Produce, errors);
    let sql = "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
        SELECT gen_random_uuid(), $1, 'k' || key, version, 'thing.changed', '{}'
        FROM generate_series(1, 5) version, generate_series(1, 4) key ORDER BY version, key";
    sqlx::query(sql).bind(&fixture.aggregate_type).execute(&fixture.database.pool).await.unwrap();
    mock
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_passes_parks_and_repeats_nothing() {
    let fixture = Fixture::new("an_error_that_passes").await;
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS;
    let mock = with_mock(&fixture, &[error; 3]).await;
    let brokers = mock.bootstrap_servers();
    // Each of them is repeated after a growing wait.
    let patient = [("RELAY_MESSAGE_TIMEOUT_MS", "10000"), ("RELAY_LEASE_MS", "20000")];
    let relay = fixture.relay(&[("KAFKA_BROKERS", &brokers), patient[0], patient[1]]);
    all_settled(&fixture).await;
    let records = published_at(&brokers, &fixture.topic(), 20).await;
    assert_complete_and_in_order(&records, |_| 5, 4);
    assert_no_repeats(&records);
    assert_eq!(parked(&fixture).await, []);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_refused_once_is_published_in_order_and_parks_nothing() {
    let fixture = Fixture::new("a_batch_that_is_refused_once").await;
    let mock = with_mock(&fixture, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_RECORD]).await;
    let brokers = mock.bootstrap_servers();
    let relay = fixture.relay(&[("KAFKA_BROKERS", &brokers)]);
    all_settled(&fixture).await;
    // The relay goes on in full batches.
    fixture.insert_all("k1", 6, 9).await;
    all_settled(&fixture).await;
    let records = published_at(&brokers, &fixture.topic(), 24).await;
    assert_complete_and_in_order(&records, |key| if key == "k1" { 9 } else { 5 }, 4);
    assert_eq!(parked(&fixture).await, []);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_denied_for_a_while_parks_nothing_and_flows_again_in_order() {
    let fixture = Fixture::new("a_topic_that_is_denied").await;
    let mock = with_mock(&fixture, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED]).await;
    let brokers = mock.bootstrap_servers();
    let relay = fixture.relay(&[("KAFKA_BROKERS", &brokers)]);
    let records = published_at(&brokers, &fixture.topic(), 20).await;
    assert_complete_and_in_order(&records, |_| 5, 4);
    all_settled(&fixture).await;
    assert_eq!(parked(&fixture).await, []);
    eventually("no type waits any more", async || {
        let waiting: i64 =
            sqlx::query_scalar("SELECT count(*) FROM relay_waiting").fetch_one(&fixture.database.pool).await.unwrap();
        (waiting == 0).then_some(())
    })
    .await;
    relay.stop().await;
}
