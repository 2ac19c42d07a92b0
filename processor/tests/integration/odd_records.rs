//! Records as others make them: whatever is in one, it costs itself, at most its key, and its neighbours are processed.

use std::time::{Duration, Instant};

use processor::Processor;
use processor::handlers::orders::ORDER_CREATED;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use shared::testing::{eventually, kafka_brokers};
use uuid::Uuid;

use crate::raw_records::{RawRecord, produce};
use crate::support::{Order, Produced, Running, World, event};

type Headers = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// Milliseconds since 1970. The broker deletes what is older than it keeps.
fn now_ms() -> i64 {
    sqlx::types::chrono::Utc::now().timestamp_millis()
}

/// Headers of an `order.created`.
fn headers(id: &str) -> Headers {
    let text = |name: &str, value: &str| (name.into(), Some(value.into()));
    vec![text("id", id), text("ce_type", ORDER_CREATED), text("aggregate_version", "1")]
}

/// The event of `order`, as the relay makes it.
fn whole(order: &Order) -> RawRecord {
    RawRecord {
        key: Some(order.id.to_string().into_bytes()),
        value: Some(order.payload.clone().into_bytes()),
        headers: headers(&order.event_id.to_string()),
        time_ms: now_ms(),
    }
}

/// An `order.created` that its handler refuses, with this key.
fn refused(key: Vec<u8>) -> RawRecord {
    RawRecord {
        key: Some(key),
        value: Some(b"no JSON".to_vec()),
        headers: headers(&Uuid::now_v7().to_string()),
        time_ms: now_ms(),
    }
}

/// Bytes that no index can compress.
fn noise(random: &mut ChaCha8Rng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    random.fill_bytes(&mut bytes);
    bytes
}

fn produced(world: &World, records: &[RawRecord]) {
    let codes = produce(&kafka_brokers(), &world.topic, 0, records);
    assert!(codes.iter().all(|code| *code == 0), "{codes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_any_length_are_blocked_and_everything_else_goes_on() {
    let world = World::new("long_keys", 1).await;
    let orders = world.orders(12).await;
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut text = |length: usize| hex::encode(noise(&mut random, length / 2)).into_bytes();
    let keys: Vec<Vec<u8>> = [2_600, 2_800, 3_000, 5_000, 8_200, 20_000, 100_000, 700_000].map(&mut text).to_vec();
    let mut records = Vec::new();
    for (order, key) in orders.iter().zip(keys.iter().cycle()) {
        // Twice each, so that one waits behind the other.
        records.extend([refused(key.clone()), refused(key.clone()), whole(order)]);
    }
    produced(&world, &records);
    let running = world.start(&[]);
    world.eventually_at(0, 36).await;
    world.assert_processed_once(12).await;
    assert_eq!(world.count("SELECT count(*) FROM blocked_keys WHERE state = 'parked'").await, 8);
    assert_eq!(world.count("SELECT count(*) FROM dead_letters").await, 24);

    // They can be tried again, and given up by hand.
    sqlx::query(
        "INSERT INTO dead_letter_requests (group_id, topic, partition, record_key, dry_run, requested_by)
        SELECT group_id, topic, partition, record_key, false, 'test' FROM blocked_keys",
    )
    .execute(&world.database.pool)
    .await
    .expect("requests");
    let answered = "SELECT count(*) FROM dead_letter_requests WHERE done_at IS NOT NULL AND reason IS NOT NULL";
    eventually("they are tried again", async || (world.count(answered).await == 8).then_some(())).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_whose_name_is_no_text_is_no_news() {
    let world = World::new("header_names", 1).await;
    let orders = world.orders(300).await;
    let odd = |order| {
        let mut record = whole(order);
        record.headers.insert(0, (b"\xff\xfe".to_vec(), Some(b"x".to_vec())));
        record.headers.push((b"a\xc3".to_vec(), None));
        record
    };
    let mut records: Vec<RawRecord> = orders.iter().map(odd).collect();
    let mut bad = refused(b"bad".to_vec());
    bad.headers.insert(0, (b"\xff\xfe".to_vec(), Some(b"x".to_vec())));
    records.push(bad);
    produced(&world, &records);
    let process = world.spawn_listened(&[("RUST_LOG", "debug,rdkafka=info")]);
    world.eventually_at(0, 301).await;
    world.assert_processed_once(300).await;
    let kept: serde_json::Value =
        sqlx::query_scalar("SELECT headers -> 0 FROM dead_letters").fetch_one(&world.database.pool).await.expect("one");
    assert_eq!(kept, serde_json::json!(["\u{fffd}\u{fffd}", "x"]));
    let said = process.killed();
    assert!(said.contains("assignment changed"), "{said}");
    assert!(!said.contains("panick"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_somebody_elses_stands_in_no_orders_way() {
    let world = World::new("foreign", 1).await;
    let orders = world.orders(3).await;
    let keyed = |order: &Order, headers: &[(&str, &str)]| RawRecord {
        key: Some(order.id.to_string().into_bytes()),
        value: Some(b"{}".to_vec()),
        headers: headers.iter().map(|(name, value)| ((*name).into(), Some((*value).into()))).collect(),
        time_ms: now_ms(),
    };
    let cloud = [("ce_specversion", "1.0"), ("ce_id", "A234-1234"), ("ce_source", "/theirs"), ("ce_type", "theirs")];
    let mut same_type = cloud;
    same_type[3].1 = ORDER_CREATED;
    produced(
        &world,
        &[
            keyed(&orders[0], &cloud),
            keyed(&orders[1], &same_type),
            keyed(&orders[2], &[("content-type", "application/cloudevents+json")]),
            RawRecord { value: None, ..keyed(&orders[2], &[]) },
            whole(&orders[0]),
            whole(&orders[1]),
            whole(&orders[2]),
        ],
    );
    let running = world.start(&[]);
    world.eventually_at(0, 7).await;
    let tally = running.stop().await.tally();
    world.assert_processed_once(3).await;
    assert_eq!((tally.passed_over, tally.dead_lettered, tally.applied), (1, 3, 3));
    assert_eq!(world.count("SELECT count(*) FROM blocked_keys").await, 0);
    // They wait by themselves, with their keys beside.
    let kept: Vec<(String, String)> = sqlx::query_as(
        "SELECT convert_from(unordered_key, 'UTF8'), reason FROM dead_letters WHERE record_key IS NULL ORDER BY record_offset",
    )
    .fetch_all(&world.database.pool)
    .await
    .expect("letters");
    assert_eq!(kept.len(), 3);
    assert_eq!(kept[0], (orders[1].id.to_string(), "the header 'id' is not a UUID".to_owned()));
}

/// Parts that odd records are put together of.
struct Odd<'a> {
    random: ChaCha8Rng,
    orders: &'a [Order],
}

impl Odd<'_> {
    fn below(&mut self, bound: u32) -> usize {
        usize::try_from(self.random.next_u32() % bound).expect("small")
    }

    /// Some record that is nothing that was ever meant for us.
    fn record(&mut self) -> RawRecord {
        RawRecord { key: self.key(), value: self.value(), headers: self.headers(), time_ms: self.time_ms() }
    }

    fn key(&mut self) -> Option<Vec<u8>> {
        Some(match self.below(9) {
            0 => return None,
            1 => Vec::new(),
            2 => b"\0".to_vec(),
            3 => b"\xff\xfe\xfd".to_vec(),
            4 => noise(&mut self.random, 4_000),
            5 => hex::encode(noise(&mut self.random, 2_000)).into_bytes(),
            6 => self.random.next_u32().to_string().into_bytes(),
            7 => "9223372036854775808".into(),
            _ => "-1".into(),
        })
    }

    fn value(&mut self) -> Option<Vec<u8>> {
        let order = &self.orders[0];
        Some(match self.below(12) {
            0 => return None,
            1 => Vec::new(),
            2 => b"\0\0\0\0\x07\x02H".to_vec(), // A schema registry's framing.
            3 => b"Obj\x01\x04\x14avro".to_vec(),
            4 => noise(&mut self.random, 100_000),
            5 => vec![b'['; 100_000],
            6 => b"{\"id\": 1e400, \"version\": 1}".to_vec(),
            7 => "{\"id\": 1, \"version\": 1, \"status\": \"\\u0000\"}".into(),
            8 => order.payload.replace("\"version\":1", "\"version\":9223372036854775807").into_bytes(),
            9 => [b"\xef\xbb\xbf", order.payload.as_bytes()].concat(),
            10 => order.payload.encode_utf16().flat_map(u16::to_le_bytes).collect(),
            _ => b"null".to_vec(),
        })
    }

    /// One from this generator, so that a seed makes the same records again.
    fn id(&mut self) -> String {
        let mut bytes = [0; 16];
        self.random.fill_bytes(&mut bytes);
        uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
    }

    fn time_ms(&mut self) -> i64 {
        [-1, 0, 1, i64::MAX, i64::MAX - 1, 253_402_300_800_000, now_ms()][self.below(7)]
    }

    fn headers(&mut self) -> Headers {
        let mut headers = Headers::new();
        let id = match self.below(8) {
            0 => None,
            1 => Some(None),
            2 => Some(Some(b"A234-1234".to_vec())),
            3 => Some(Some(Uuid::nil().to_string().into_bytes())),
            4 => Some(Some(Uuid::max().to_string().into_bytes())),
            // The year 10889.
            5 => Some(Some(Uuid::from_u128(u128::MAX << 80 | 0x7fff_8fff_ffff_ffff_ffff).to_string().into_bytes())),
            6 => Some(Some(b"\xff".to_vec())),
            _ => Some(Some(self.id().into_bytes())),
        };
        headers.extend(id.map(|id| (b"id".to_vec(), id)));
        let version = ["1", "0", "-1", "9223372036854775807", "9223372036854775808", "1.0", "", "one"][self.below(8)];
        if self.below(4) > 0 {
            headers.push((b"aggregate_version".to_vec(), Some(version.into())));
        }
        let long = "t".repeat(50_000);
        let event_type = [ORDER_CREATED, ORDER_CREATED, "theirs", "", "\0", &long][self.below(6)];
        if self.below(5) > 0 {
            headers.push((b"ce_type".to_vec(), Some(event_type.into())));
        }
        match self.below(8) {
            0 => headers.push((b"ce_time".to_vec(), Some(b"+12026-01-01T00:00:00Z".to_vec()))),
            1 => headers.push((b"ce_time".to_vec(), Some(b"0000-01-01T00:00:00Z".to_vec()))),
            2 => headers.push((b"\xff".to_vec(), Some(noise(&mut self.random, 10)))),
            3 => headers.push((Vec::new(), None)),
            4 => headers.extend((0..2_000).map(|_| (b"many".to_vec(), Some(b"x".to_vec())))),
            5 => headers.push((b"traceparent".to_vec(), Some(b"00-\xff-\0".to_vec()))),
            6 => headers.push((vec![b'n'; 40_000], Some(vec![0; 40_000]))),
            _ => {}
        }
        headers
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_records_cost_only_themselves() {
    let world = World::new("odd", 1).await;
    // Before Kafka 4, brokers took any time by default.
    let admin: AdminClient<DefaultClientContext> = world.consumer_config().create().expect("an admin client");
    let topic = AlterConfig::new(ResourceSpecifier::Topic(&world.topic))
        .set("message.timestamp.after.max.ms", "9223372036854775807");
    admin.alter_configs([&topic], &AdminOptions::new()).await.expect("an answer");
    for seed in 0..3 {
        let orders = world.orders(100).await;
        let mut odd = Odd { random: ChaCha8Rng::seed_from_u64(seed), orders: &orders };
        let records: Vec<RawRecord> = orders.iter().flat_map(|order| [odd.record(), whole(order)]).collect();
        let codes = produce(&kafka_brokers(), &world.topic, 0, &records);
        let taken = i64::try_from(codes.iter().filter(|code| **code == 0).count()).expect("few");
        assert!(taken >= 190, "seed {seed}: the broker refuses most: {codes:?}");
        let end = world.end(0);
        let started = Instant::now();
        let running = world.start(&[]);
        world.eventually_at(0, end).await;
        assert!(started.elapsed() < Duration::from_secs(15), "seed {seed}: {:?}", started.elapsed());
        let tally = running.stop().await.tally();
        world.assert_processed_once(100 * i64::try_from(seed + 1).expect("few")).await;
        let letters =
            world.count("SELECT count(*) FROM dead_letters WHERE created_at > now() - interval '1 minute'").await;
        assert!(letters > 20, "seed {seed}: {letters}");
        assert_eq!(
            world.count("SELECT count(*) FROM dead_letters WHERE key_hash IS NULL AND reason IS NULL").await,
            0,
            "seed {seed}: each that waits by itself has a reason"
        );
        let sorted = tally.applied + tally.repeated + tally.passed_over + tally.dead_lettered + tally.waiting;
        assert_eq!(i64::try_from(sorted).expect("few"), taken, "seed {seed}: each is accounted for, {tally:?}");
        sqlx::query("TRUNCATE dead_letters, blocked_keys").execute(&world.database.pool).await.expect("emptied");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reason_of_any_length_and_bytes_is_kept_as_far_as_it_can_be() {
    let world = World::new("reasons", 1).await;
    let handler = LongReasons;
    let keys = ["\0 and more", "x"];
    world.produce(keys.map(|key| Produced { partition: 0, ..event("noted", Uuid::now_v7(), key, "{}") }));
    let running = Running::start(Processor::builder(world.config(&[])).handler("noted", handler));
    world.eventually_at(0, 2).await;
    running.stop().await;
    let longest = world.count("SELECT max(octet_length(reason))::bigint FROM dead_letters").await;
    assert!((4_000..5_000).contains(&longest), "{longest}");
    assert_eq!(
        world.count("SELECT count(*) FROM blocked_keys WHERE reason LIKE '%[cut: 10000000 bytes in all]'").await,
        1
    );
    assert_eq!(world.count("SELECT count(*) FROM dead_letters WHERE reason LIKE '\\\\u0000 and more%'").await, 1);
}

/// Refuses each event, with its key and much more, or, for the key `x`, with ten megabytes.
struct LongReasons;

impl processor::handler::EventHandler for LongReasons {
    async fn handle(
        &self,
        events: &[processor::record::Event<'_>],
        _: &mut sqlx::PgConnection,
    ) -> Result<processor::handler::Handled, processor::handler::HandlerError> {
        let reason = |key: &str| if key == "x" { "x".repeat(10_000_000) } else { key.to_owned() };
        let refused = events.iter().enumerate().map(|(index, event)| (index, reason(event.aggregate_id()))).collect();
        Err(processor::handler::HandlerError::refused(refused))
    }
}
