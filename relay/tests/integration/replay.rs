//! Publishing again what was published before.

use std::collections::HashMap;

use relay::RelayConfig;
use relay::replay::{Replay, Selection, Target};
use shared::config::Env;
use shared::testing::unique;

use crate::support::{Fixture, all_settled, assert_complete_and_in_order, published};

fn all() -> Selection {
    Selection { key: None, aggregate_type: None, since: None, from_id: 1, to_id: i64::MAX }
}

impl Fixture {
    fn config(&self) -> RelayConfig {
        let settings = self.settings(&[]);
        let pairs = settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        RelayConfig::from_env(&Env::from_pairs(pairs)).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_replayed_comes_in_order_and_with_the_same_event_ids() {
    let fixture = Fixture::new("what_is_replayed_comes_in_order").await;
    let relay = fixture.relay(&[]);
    for key in ["a", "b", "c"] {
        fixture.insert_all(key, 1, 700).await;
    }
    let first = fixture.published(2_100).await;
    all_settled(&fixture).await;
    relay.stop().await;
    // These the relay has not published yet, and a replay would get them ahead of whatever is before them.
    fixture.insert_all("a", 701, 710).await;

    let (database, config, topic) = (fixture.database.database(), fixture.config(), unique("again"));
    let target = Target { topic: Some(topic.clone()), rate: None };
    let mut whole = Replay::open(&database, all()).await.unwrap();
    let summary = whole.summarize().await.unwrap();
    assert_eq!((summary.events, summary.keys), (2_100, 3));
    assert_eq!(summary.by_type.values().sum::<u64>(), 2_100);
    let mut told = 0;
    assert_eq!(whole.publish(&config, &target, |count| told = count).await.unwrap(), 2_100);
    assert_eq!(told, 2_100);
    let again = published(&topic, 2_100).await;
    assert_eq!(again.len(), 2_100);
    assert_complete_and_in_order(&again, |_| 700, 3);
    let ids = |records: &[crate::support::Record]| -> HashMap<(String, i64), String> {
        records.iter().map(|record| ((record.key.clone(), record.version), record.headers["id"].clone())).collect()
    };
    assert_eq!(ids(&first), ids(&again));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_takes_what_is_selected_and_no_more() {
    let fixture = Fixture::new("a_replay_takes_what_is_selected").await;
    let relay = fixture.relay(&[]);
    for key in ["a", "b"] {
        fixture.insert_all(key, 1, 10).await;
    }
    fixture.published(20).await;
    all_settled(&fixture).await;
    relay.stop().await;
    let database = fixture.database.database();
    #[expect(clippy::disallowed_methods, reason = "held against the times of events, and no lease is involved")]
    let last = chrono::Utc::now() + chrono::Duration::hours(1);
    let of_a = Some((fixture.aggregate_type.clone(), "a".to_owned()));
    for (selection, events) in [
        (Selection { key: of_a.clone(), ..all() }, 10),
        (Selection { from_id: 3, to_id: 12, ..all() }, 10),
        (Selection { key: of_a, from_id: 3, to_id: 12, ..all() }, 8),
        (Selection { aggregate_type: Some("another".to_owned()), ..all() }, 0),
        (Selection { since: Some(last), ..all() }, 0),
    ] {
        let mut some = Replay::open(&database, selection.clone()).await.unwrap();
        assert_eq!(some.summarize().await.unwrap().events, events, "{selection:?}");
        // A rate that the few do not feel.
        let target = Target { topic: Some(unique("selected")), rate: Some(10_000) };
        assert_eq!(some.publish(&fixture.config(), &target, |_| {}).await.unwrap(), events, "{selection:?}");
    }
    // A parked event stays with the relay.
    let parked = "INSERT INTO relay_parked (id, lane, event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, headers, occurred_at)
        SELECT id, lane, event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, headers, occurred_at FROM outbox WHERE id = 5";
    sqlx::query(parked).execute(&fixture.database.pool).await.unwrap();
    let summary = Replay::open(&database, all()).await.unwrap().summarize().await.unwrap();
    assert_eq!((summary.events, summary.left_out), (19, 1));
}
