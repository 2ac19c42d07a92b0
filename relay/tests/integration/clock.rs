//! Jumps of the database's clock, which dates the leases. To the relays, a clock that has jumped ahead by an hour looks like leases that
//! end an hour earlier, and one that has gone back like leases that end an hour later: so the leases are what is moved here.

use std::collections::HashSet;
use std::sync::Arc;

use shared::testing::eventually;

use crate::support::{Fixture, all_settled, assert_complete_and_in_order};
use crate::writing::Writing;

const AHEAD: &str = "WITH members AS (UPDATE relay_members SET expires_at = expires_at - interval '1 hour')
    UPDATE relay_lanes SET expires_at = expires_at - interval '1 hour'";

const BACK: &str = "WITH members AS (UPDATE relay_members SET expires_at = expires_at + interval '1 hour')
    UPDATE relay_lanes SET expires_at = expires_at + interval '1 hour'";

const IN_FLIGHT_MAX: i64 = 100;

/// A real jump locks no row. This one may get into a deadlock with a relay that settles; then Postgres lets one of the two do it again.
async fn jump(fixture: &Fixture, sql: &'static str) {
    eventually("the clock has jumped", async || match sqlx::query(sql).execute(&fixture.database.pool).await {
        Ok(_) => Some(()),
        Err(error) => {
            assert_eq!(shared::db::sql_state(&error).as_deref(), Some("40P01"), "{error}");
            None
        }
    })
    .await;
}

/// How often lanes were taken.
async fn taken(fixture: &Fixture) -> i64 {
    sqlx::query_scalar("SELECT sum(token)::bigint FROM relay_lanes").fetch_one(&fixture.database.pool).await.unwrap()
}

async fn share_evenly(fixture: &Fixture) {
    eventually("each relay holds half of the lanes", async || {
        let lanes = fixture.lanes_by_owner().await;
        (lanes.len() == 2 && lanes.values().all(|count| *count == 8)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jumps_of_the_databases_clock_lose_and_reorder_nothing() {
    let fixture = Arc::new(Fixture::new("jumps_of_the_databases_clock").await);
    let writing = Writing::begin(&fixture, 3, 8);
    let in_flight = IN_FLIGHT_MAX.to_string();
    let settings =
        [("RELAY_LANE_ROWS_MAX", "20"), ("RELAY_IN_FLIGHT_MAX", in_flight.as_str()), ("RELAY_SETTLE_MS", "20")];
    let (one, two) = (fixture.relay(&settings), fixture.relay(&settings));
    share_evenly(&fixture).await;
    for _ in 0..3 {
        // Each relay dates its leases anew at its next settle, so one jump may be over before anybody looks: several in a row are as a
        // clock that is moved on in steps.
        let before = taken(&fixture).await;
        eventually("a lane is taken from its living owner", async || {
            jump(&fixture, AHEAD).await;
            (taken(&fixture).await > before).then_some(())
        })
        .await;
        jump(&fixture, BACK).await;
        share_evenly(&fixture).await;
    }
    let (records, total) = writing.end().await;
    all_settled(&fixture).await;
    // Whoever takes a lane begins at what is settled: behind that is at most what was in flight, and as much again that was acknowledged
    // and not settled yet.
    let distinct: HashSet<&str> = records.iter().map(|record| record.event_id.as_str()).collect();
    let repeats = i64::try_from(records.len() - distinct.len()).unwrap();
    let allowed = taken(&fixture).await * 2 * IN_FLIGHT_MAX;
    assert!(repeats <= allowed, "{repeats} repeats of {total} events, {allowed} are allowed");
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_has_gone_back_does_not_keep_a_dead_relays_lanes() {
    let fixture = Fixture::new("a_clock_that_has_gone_back").await;
    let dead = fixture.process(&[]);
    eventually("it holds all lanes", async || {
        (fixture.lanes_by_owner().await.values().sum::<i64>() == 16).then_some(())
    })
    .await;
    dead.kill();
    jump(&fixture, BACK).await;
    fixture.insert_all("a", 1, 3).await;
    let heir = fixture.relay(&[]);
    eventually("all lanes are the living relay's", async || {
        (fixture.lanes_by_owner().await.get(&heir.name) == Some(&16)).then_some(())
    })
    .await;
    assert_complete_and_in_order(&fixture.published(3).await, |_| 3, 1);
    heir.stop().await;
}
