//! Records that are no events, and events that their handler refuses for good.

use uuid::Uuid;

use crate::support::{Produced, World, event};

/// Topic, partition, key, event id, event type, headers and payload of a dead letter.
type Letter = (String, i32, Option<Vec<u8>>, Option<Uuid>, Option<String>, serde_json::Value, Option<Vec<u8>>);

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_record_is_dead_lettered_and_its_neighbours_are_processed() {
    let world = World::new("broken", 1).await;
    let orders = world.orders(6).await;
    let good = |place: usize| orders[place].created(1);
    let order = |key: &str, payload: &str| event("order.created", Uuid::now_v7(), key, payload);
    let mut nul = order("1", "{}\0");
    nul.headers.push(("x", b"a\0b".to_vec()));
    nul.headers.push(("y", vec![0xff]));
    nul.headers[1].1 = b"order.created".to_vec();
    let records = [
        good(0),
        Produced { payload: Some(b"garbage".to_vec()), ..Produced::default() },
        good(1),
        Produced { headers: vec![("id", vec![0xff, 0x00])], ..Produced::default() },
        order("2", "no JSON"),
        good(2),
        Produced { payload: None, ..order("3", "") },
        nul,
        good(3),
        order("4", r#"{"id": 999, "version": 1}"#),
        order("987654321", r#"{"id": 987654321, "version": 1}"#),
        good(4),
        Produced { key: Some(vec![0xfe]), ..order("5", "{}") },
        good(5),
    ];
    world.produce(records);
    let running = world.start(&[]);
    world.eventually_at(0, 14).await;
    running.stop().await;
    world.assert_processed_once(6).await;
    let letters: Vec<(i64, String)> =
        sqlx::query_as("SELECT record_offset, reason FROM dead_letters ORDER BY record_offset")
            .fetch_all(&world.database.pool)
            .await
            .unwrap();
    let offsets: Vec<i64> = letters.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, [1, 3, 4, 6, 7, 9, 10, 12], "{letters:?}");
    let reason = |offset: i64| letters.iter().find(|(found, _)| *found == offset).map(|(_, reason)| reason.as_str());
    assert_eq!(reason(1), Some("the header 'id' is missing"));
    assert_eq!(reason(3), Some("the header 'id' is not a UUID"));
    assert_eq!(reason(10), Some("the order is not in the database"));
    assert_eq!(reason(12), Some("the key is missing or not UTF-8"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_keeps_the_record_as_it_was() {
    let world = World::new("kept", 1).await;
    let id = Uuid::now_v7();
    let mut record = event("order.created", id, "7", "not JSON");
    record.headers.push(("binary", vec![0xca, 0xfe]));
    world.produce([record]);
    let running = world.start(&[]);
    world.eventually_at(0, 1).await;
    running.stop().await;
    let letter: Letter =
        sqlx::query_as("SELECT topic, partition, record_key, event_id, event_type, headers, payload FROM dead_letters")
            .fetch_one(&world.database.pool)
            .await
            .unwrap();
    let headers = serde_json::json!([
        ["id", id.to_string()],
        ["ce_type", "order.created"],
        ["aggregate_version", "1"],
        ["binary", {"hex": "cafe"}]
    ]);
    let expected = (
        world.topic.clone(),
        0,
        Some(b"7".to_vec()),
        Some(id),
        Some("order.created".to_owned()),
        headers,
        Some(b"not JSON".to_vec()),
    );
    assert_eq!(letter, expected);
}
