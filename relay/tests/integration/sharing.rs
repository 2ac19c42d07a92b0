//! Several relays at once.

use std::sync::Arc;

use shared::testing::eventually;

use crate::support::{Fixture, all_settled, assert_no_repeats};
use crate::writing::Writing;

#[tokio::test(flavor = "multi_thread")]
async fn two_relays_share_the_lanes_and_keep_each_keys_order() {
    let fixture = Arc::new(Fixture::with_topic("two_relays_share_the_lanes").await);
    let writing = Writing::begin(&fixture, 4, 8);

    let one = fixture.relay(&[]);
    eventually("the first relay holds all lanes", async || {
        (fixture.lanes_by_owner().await.get(&one.name) == Some(&16)).then_some(())
    })
    .await;
    let two = fixture.relay(&[]);
    eventually("each relay holds half of the lanes", async || {
        let lanes = fixture.lanes_by_owner().await;
        (lanes.get(&one.name) == Some(&8) && lanes.get(&two.name) == Some(&8)).then_some(())
    })
    .await;
    let three = fixture.relay(&[]);
    eventually("none has more than one lane more than its share", async || {
        let lanes = fixture.lanes_by_owner().await;
        (lanes.len() == 3 && lanes.values().all(|count| (4..=6).contains(count)) && lanes.values().sum::<i64>() == 16)
            .then_some(())
    })
    .await;
    one.stop().await;
    eventually("the lanes of the one that left are taken", async || {
        let lanes = fixture.lanes_by_owner().await;
        (lanes.get(&two.name) == Some(&8) && lanes.get(&three.name) == Some(&8)).then_some(())
    })
    .await;

    let (_, total) = writing.end().await;
    all_settled(&fixture).await;
    two.stop().await;
    three.stop().await;
    // Lanes were handed over four times, always after all of them was acknowledged and settled.
    assert_no_repeats(&fixture.published(total).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_is_written_only_under_its_present_token() {
    use std::time::Duration;

    use relay::lanes::{Cursor, HeldLane};
    use relay::outbox;

    let fixture = Fixture::new("a_lane_is_written_only_under_its_token").await;
    let mut connection = fixture.database.pool.acquire().await.unwrap();
    let lease = Duration::ZERO;
    let old = outbox::claim_lanes(&mut connection, "old", lease, &[], 1).await.unwrap().remove(0);
    let new = outbox::claim_lanes(&mut connection, "new", Duration::from_mins(1), &[], 1).await.unwrap().remove(0);
    assert_eq!((new.lane, new.token), (old.lane, old.token + 1));
    let held = HeldLane::new(old.lane, old.token, Cursor::START);
    let before = lane_row(&fixture, old.lane).await;
    let renewal = outbox::renew_and_settle(&mut connection, "old", lease, &[&held], 1).await.unwrap();
    assert_eq!(renewal.lanes, [] as [i16; 0]);
    assert_eq!(outbox::release_lanes(&mut connection, "old", &[&held]).await.unwrap(), 0);
    fixture.insert(&mut connection, "k", 1).await;
    assert!(!outbox::parked::park(&mut connection, old.lane, old.token, &[1], &[None]).await.unwrap());
    assert_eq!(lane_row(&fixture, old.lane).await, before);
}

async fn lane_row(fixture: &Fixture, lane: i16) -> String {
    sqlx::query_scalar("SELECT l::text FROM relay_lanes l WHERE lane = $1")
        .bind(lane)
        .fetch_one(&fixture.database.pool)
        .await
        .unwrap()
}
