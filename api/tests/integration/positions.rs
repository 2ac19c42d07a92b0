//! Positions in event streams: only those that this service has given out are read.

use shared::testing::{TestDatabase, eventually};

use crate::http::{request, send};
use crate::service::{Api, ORDER, execute};
use crate::watcher::Watcher;

async fn resumed(api: &Api, position: &str) -> (u16, String) {
    let headers = format!("last-event-id: {position}\r\n");
    let answer = send(api.address, request("GET", "/orders/events", &headers, b"")).await;
    (answer.status, answer.problem())
}

/// One that calls the whole outbox late would have Postgres sort all of it, at each resume.
#[tokio::test]
async fn a_position_that_was_made_up_is_refused_before_the_outbox_is_read() {
    let database = TestDatabase::create("made_up_positions").await;
    let api = Api::start(&database).await;
    assert_eq!(api.post(ORDER).await.status, 201);
    let mut watcher = Watcher::open(api.address, "/orders/events", None).await;
    let position = watcher.next().await.expect("it begins").id.expect("a position");
    let fields: Vec<&str> = position.split('.').collect();
    let [key, cluster, _, _, _, signature] = fields[..] else { panic!("{position}") };
    // The outbox is out of reach for this test: whatever reads it fails.
    execute(&database, "REVOKE SELECT ON outbox FROM outrider_api").await;
    let late = format!("{key}.{cluster}.0.7fffffffffffffff.3");
    for made_up in [format!("{late}.{signature}"), format!("ffff.{cluster}.0.1.3.{signature}")] {
        assert_eq!(resumed(&api, &made_up).await, (410, "/problems/events-gone".to_owned()), "{made_up}");
    }
    let unsigned = format!("{cluster}.0.7fffffffffffffff.3");
    for malformed in [late.as_str(), unsigned.as_str(), "7", "x", &"1".repeat(5_000)] {
        assert_eq!(resumed(&api, malformed).await, (400, "/problems/invalid-event-id".to_owned()), "{malformed}");
    }
    drop(watcher);
    api.stop().await;
}

#[tokio::test]
async fn a_position_holds_at_each_process_and_over_a_change_of_keys_until_its_key_is_gone() {
    let database = TestDatabase::create("keys_of_positions").await;
    let api = Api::start(&database).await;
    let mut watcher = Watcher::open(api.address, "/orders/events", None).await;
    let position = watcher.next().await.expect("it begins").id.expect("a position");
    drop(watcher);
    api.stop().await;

    execute(&database, "UPDATE cursor_keys SET created_at = now() - interval '31 days'").await;
    let api = Api::start(&database).await;
    let mut watcher = Watcher::open(api.address, "/orders/events", Some(&position)).await;
    let begun = watcher.next().await.expect("it begins").id.expect("a position");
    assert_ne!(begun.split('.').next(), position.split('.').next(), "signed with the new key");
    // Another process knows a key that was made after it has begun.
    let other = Api::start(&database).await;
    execute(&database, "INSERT INTO cursor_keys (secret) VALUES (decode(repeat('ab', 32), 'hex'))").await;
    let third = Api::start(&database).await;
    let mut watcher = Watcher::open(third.address, "/orders/events", None).await;
    let newest = watcher.next().await.expect("it begins").id.expect("a position");
    drop(Watcher::open(other.address, "/orders/events", Some(&newest)).await);

    execute(&database, "DELETE FROM cursor_keys WHERE created_at < now() - interval '30 days'").await;
    let last = Api::start(&database).await;
    assert_eq!(resumed(&last, &position).await, (410, "/problems/events-gone".to_owned()));
    drop(watcher);
    for api in [api, other, third, last] {
        eventually("its streams have ended", async || (api.metric("api_event_streams").await == 0).then_some(())).await;
        api.stop().await;
    }
}
